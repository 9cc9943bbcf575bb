"""The load tool: figures of a known schedule, failures by kind, what is shown, and an end by itself."""

from __future__ import annotations

import asyncio
import os
import pty
import random
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
from aiohttp.test_utils import unused_port
from processes import Processes
from serving import StartServer
from support import Rows, Tenant, eventually

from tests.load.__main__ import DEMO, main, names, users
from tests.load.figures import Figures, Tick, Times, failure_lines
from tests.load.generators import choose, run
from tests.load.plan import LoadError, Plan, Target

ROOT = Path(__file__).parent.parent

GENERATORS = pytest.mark.parametrize("python", [False, True], ids=["C", "Python"])

NO_LIMITS = {"USER_STREAM_LIMIT": "0", "USER_READER_LIMIT": "0", "USER_TURNS_PER_MINUTE": "0"}

Load = Callable[..., "Running"]


class Running:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = self.err = ""

    async def end(self) -> int:
        out, err = await self.process.communicate()
        self.out, self.err = out.decode(), (err or b"").decode()
        assert self.process.returncode is not None
        return self.process.returncode

    def row_ms(self, what: str, url: object) -> list[float]:
        """Return p50, p95, p99 and the longest."""
        [line] = re.findall(rf"^{what} +{re.escape(str(url).rstrip('/'))} +(.*)$", self.out, re.MULTILINE)
        return [float(value) for value in line.split()]


@pytest.fixture
async def load(tenant: Tenant) -> AsyncIterator[Callable[..., object]]:
    """Give a function that starts the tool as a tenant's user."""
    all_running: list[Running] = []

    async def start(*options: object, **kwargs: object) -> Running:
        headers = [f"--header={name}: {value}" for name, value in tenant.headers.items()]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.load", *headers, *map(str, options)),
            cwd=ROOT,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs,  # type: ignore[arg-type]
        )
        all_running.append(Running(process))
        return all_running[-1]

    yield start
    for running in all_running:
        if running.process.returncode is None:
            running.process.kill()
            await running.process.wait()


@asynccontextmanager
async def delayed(port: int, delay_s: float) -> AsyncIterator[str]:
    """Stand before a server, and hold back what it says."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await asyncio.sleep(delay_s)
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, to_writer, 0))
            group.create_task(pump(to_reader, writer, delay_s))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def measured(
    plan: Plan, python: bool, is_enough: Callable[[Figures], object] = lambda figures: False
) -> Figures:
    """Return what a generator has measured, until its time is over or that is enough."""
    total, stopped = Figures(), asyncio.Event()

    def told(tick: Tick) -> None:
        total.update(tick.figures[0])
        if is_enough(total):
            stopped.set()

    _, generator = choose(plan, python=python)
    await run(plan, generator, stopped, told)
    return total


def plan(url: object, *tenants: Tenant, streams: int = 1, seconds: float = 30, **question: str) -> Plan:
    users = [tenant.headers for tenant in tenants]
    return Plan(streams, seconds, 0, [Target.parse(str(url))], users, {"message": "Hi", **question})


@GENERATORS
async def test_figures_are_those_of_a_known_schedule(
    start_server: StartServer, rows: Rows, tenant: Tenant, python: bool
) -> None:
    server = await start_server(sim_faults=True)
    # Of 9 gaps of a reply one is long, so that it is p95, and not p50; also where the next is in its middle.
    sim = "ttft=300ms gap=100ms stall@4=800ms words=10 seed=7"
    asked = plan(server.make_url(""), tenant, streams=4, sim=sim)
    figures = await measured(asked, python, lambda figures: figures.replies >= 4)
    assert figures.failures == {}
    whole = "select count(*) from messages where org_id = %s and role = 'assistant' and status = 'complete'"
    stored = rows(whole, tenant.org_id)
    # One may have ended since.
    assert 4 <= figures.replies <= stored[0][0] <= figures.replies + 4
    assert figures.replies * 10 <= figures.words <= (figures.replies + 4) * 10
    first, gaps = figures.first.row_ms(), figures.gaps.row_ms()
    # On a busy machine all is late, and what is late comes closer together.
    assert 296 < first["p50"] < 2000
    assert first["p50"] <= first["p95"] <= first["p99"] <= first["max"]
    assert 20 < gaps["p50"] < 400
    assert 600 < gaps["p95"] < 2000
    assert gaps["p95"] <= gaps["p99"] <= gaps["max"]


@GENERATORS
async def test_refusals_are_counted_by_kind_and_asked_again_when_the_server_says(
    start_server: StartServer, tenant: Tenant, python: bool
) -> None:
    server = await start_server(user_stream_limit=1, sim_delay_ms=(20.0, 20.0))
    figures = await measured(plan(server.make_url(""), tenant, streams=3, seconds=0.9), python)
    assert figures.failures == {"429 Too many replies": 2}
    assert figures.words > 0


@GENERATORS
async def test_stream_that_does_not_come_to_done_is_a_failure(
    start_server: StartServer, tenant: Tenant, python: bool
) -> None:
    server = await start_server(sim_faults=True)
    kinds = {
        "fin@3": "broken off",
        "rst@0": "broken off",
        "hang@3": "silent for 0.3 s",
        "cut@done gap=0ms": "ended without done",
        "fail@2": "error event: Stream failed",
        "status=529": "529 Simulated",
    }

    async def broken(sim: str) -> tuple[dict[str, int], int]:
        silence_s = 0.3 if sim.startswith("hang") else 10.0
        asked = replace(plan(server.make_url(""), tenant, seconds=0.9, sim=sim), silence_s=silence_s)
        figures = await measured(asked, python)
        return dict(figures.failures), figures.replies

    # At once: who has failed asks again after 1 s, and so each takes nearly that.
    found = await asyncio.gather(*map(broken, kinds))
    assert dict(zip(kinds, found, strict=True)) == {sim: ({kind: 1}, 0) for sim, kind in kinds.items()}


@GENERATORS
async def test_server_that_dies_in_the_middle_is_told_by_kind(
    start: Processes, tenant: Tenant, postgres_url: str, python: bool
) -> None:
    server = start(DATABASE_URL=postgres_url, SIM_DELAY_MS="50-50", **NO_LIMITS)
    url = await asyncio.to_thread(server.listening)

    def is_enough(figures: Figures) -> bool:
        if figures.first.counts.total() == 5:
            server.popen.kill()
        return figures.failures["Connection refused"] >= 5

    figures = await measured(plan(url, tenant, streams=5, message="tell a story"), python, is_enough)
    assert figures.failures["broken off"] == 5
    assert set(figures.failures) == {"broken off", "Connection refused"}
    # What had come by then.
    assert figures.gaps.row_ms()["p50"] > 0


@GENERATORS
async def test_each_user_asks(start_server: StartServer, rows: Rows, tenant: Tenant, python: bool) -> None:
    server = await start_server(user_stream_limit=1, sim_delay_ms=(20.0, 20.0))
    tenants = [tenant, rows.tenant(tenant.org_id), rows.tenant(tenant.org_id)]
    figures = await measured(plan(server.make_url(""), *tenants, streams=3, seconds=0.9), python)
    assert figures.failures == {}
    asked = rows("select user_id::text from chats where org_id = %s", tenant.org_id)
    assert sorted(set(asked)) == sorted((user.user_id,) for user in tenants)


def test_failures_say_which_setting_to_raise() -> None:
    figures = Figures(failures=Counter({"429 Too many replies": 1480, "503 Busy": 2}))
    assert failure_lines(["http://a"], [figures]) == [
        "failed  1,480 x 429 Too many replies",
        "failed      2 x 503 Busy",
        "-> Too many replies: start the server with USER_STREAM_LIMIT=0 USER_READER_LIMIT=0"
        " USER_TURNS_PER_MINUTE=0 (no limit), or ask as more users (--users)",
        "-> 503 Busy: raise STREAM_LIMIT or WORKERS of the server, or its limit of descriptors",
    ]
    assert failure_lines(["http://a"], [Figures()]) == ["failed      0"]


def test_users_are_lines_of_a_file_beside_the_headers_of_all(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("Authorization: Bearer a\n\nAuthorization: Bearer b\n")
    shared = {"x-tenant": "t"}
    assert users([("x-tenant", "t")], file) == [
        {**shared, "authorization": "Bearer a"},
        {**shared, "authorization": "Bearer b"},
    ]
    file.write_text("x-user-id: c\n")
    assert users([], file) == [{"x-org-id": DEMO["x-org-id"], "x-user-id": "c"}]
    assert users([], None) == [DEMO]
    assert users([("authorization", "Bearer c")], None) == [{"authorization": "Bearer c"}]


@GENERATORS
async def test_interrupt_ends_it_with_what_it_has(
    start_server: StartServer, load: Load, rows: Rows, tenant: Tenant, python: bool
) -> None:
    server = await start_server(sim_delay_ms=(20.0, 20.0), checkpoint_s=0.2)
    url = server.make_url("")
    running = await load(*(["--python"] if python else []), "--streams=2", "--minutes=9", url)
    # Some words have come.
    said = "select 1 from messages where org_id = %s and role = 'assistant' and content <> ''"
    await eventually(lambda: rows(said, tenant.org_id))
    running.process.send_signal(signal.SIGINT)
    async with asyncio.timeout(5):
        assert await running.end() == 0
    assert running.row_ms("first token", url)[0] > 0
    assert running.err == ""


@GENERATORS
async def test_replies_that_it_leaves_are_stopped(
    start_server: StartServer, load: Load, rows: Rows, tenant: Tenant, python: bool
) -> None:
    server = await start_server(sim_delay_ms=(200.0, 200.0), checkpoint_s=0.2)
    running = await load(*(["--python"] if python else []), "--streams=3", "--minutes=0.5", server.make_url(""))
    said = "select 1 from messages where org_id = %s and role = 'assistant' and content <> ''"
    await eventually(lambda: len(rows(said, tenant.org_id)) == 3)
    running.process.send_signal(signal.SIGINT)
    assert await running.end() == 0, running.out + running.err
    # Long before RESUME_WINDOW_S is over: nobody but a client says this.
    ended = "select status, count(*) from messages where org_id = %s and role = 'assistant' group by status"
    await eventually(lambda: rows(ended, tenant.org_id) == [("stopped", 3)])


@GENERATORS
@pytest.mark.parametrize("sim_faults", [True, False])
async def test_what_each_question_would_be_refused_ends_it_at_once(
    start_server: StartServer, load: Load, python: bool, sim_faults: bool
) -> None:
    url = str((await start_server(sim_faults=sim_faults)).make_url("")).rstrip("/")
    running = await load(*(["--python"] if python else []), "--sim=fi@5", "--streams=2", "--minutes=9", url)
    assert await running.end() == 2
    assert f"load: {url}: 400 Bad sim: " in running.err
    assert ("'fi@5'" in running.err) is sim_faults
    assert ("start the server with SIM_FAULTS=1" in running.err) is not sim_faults
    assert running.out == ""


async def test_all_users_refused_ends_it_and_one_who_is_not_does_not(
    start_server: StartServer, load: Load, tenant: Tenant, tmp_path: Path
) -> None:
    server, file = await start_server(sim_delay_ms=(20.0, 20.0)), tmp_path / "users"
    strangers = "".join(f"x-user-id: {tenant.user_id[:-2]}{number}\n" for number in ("zz", "zy"))
    file.write_text(strangers)
    options = ["--streams=3", "--minutes=0.03", f"--users={file}", server.make_url("")]
    running = await load(*options)
    assert await running.end() == 2, running.out + running.err
    assert re.search(r"load: http://\S+: 40[013] \w", running.err)
    file.write_text(f"{strangers}x-user-id: {tenant.user_id}\n")
    running = await load(*options)
    assert await running.end() == 1, running.out + running.err
    assert "\nfailed " in running.out


async def test_where_nobody_listens_is_one_line(load: Load) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    running = await load("--minutes=9", url)
    assert await running.end() == 2
    assert running.err == f"load: {url}: Connection refused\n"
    assert running.out == ""


def test_same_address_twice_is_first_and_second() -> None:
    one, other = Target.parse("http://a"), Target.parse("http://b")
    assert names([one, one]) == ["first http://a:80", "second http://a:80"]
    assert names([one, other]) == ["http://a:80", "http://b:80"]


async def test_what_stands_before_a_server_is_measured_beside_it(
    start_server: StartServer, load: Load, tmp_path: Path
) -> None:
    server, drawing = await start_server(sim_faults=True), tmp_path / "load.svg"
    url = str(server.make_url(""))
    assert server.port
    async with delayed(server.port, 0.4) as proxy:
        sim = "ttft=50ms gap=10ms words=20"
        running = await load(
            f"--sim={sim}", "--streams=6", "--minutes=0.04", f"--svg={drawing}", url, "--against", proxy
        )
        assert await running.end() == 0, running.out + running.err
    direct, behind = running.row_ms("first token", url)[0], running.row_ms("first token", proxy)[0]
    assert behind - direct > 200
    [ratios, _] = re.findall(r"^ +second / first +(.*)$", running.out, re.MULTILINE)
    assert float(ratios.split()[0].rstrip("x")) == pytest.approx(behind / direct, abs=0.01)
    [differences, _] = re.findall(r"^ +second - first +(.*)$", running.out, re.MULTILINE)
    assert float(differences.split()[0]) == pytest.approx(behind - direct, abs=0.02)
    image = ElementTree.parse(drawing).getroot()
    names = {"svg": "http://www.w3.org/2000/svg"}
    assert image.get("aria-labelledby") == "title description"
    assert re.match(r"6 streams for \d s: \d+ replies, \d+ words$", image.findtext("svg:title", "", names))
    described = image.findtext("svg:desc", "", names)
    [shown] = re.findall(rf"{url.rstrip('/')}, first token: p50 ([\d.]+) ms", described)
    # One digit, of a figure of which the terminal shows two.
    assert float(shown) == pytest.approx(direct, abs=0.056)
    assert len(image.findall("svg:polyline", names)) == 4
    assert "prefers-color-scheme: dark" in image.findtext("svg:style", "", names)


async def test_without_a_compiler_python_asks(start_server: StartServer, load: Load, tmp_path: Path) -> None:
    server = await start_server()
    running = await load(
        "--streams=2", "--minutes=0.01", server.make_url(""), env=os.environ | {"PATH": str(tmp_path)}
    )
    assert await running.end() == 0, running.out + running.err
    assert "generator in Python (there is no C compiler" in running.out


async def test_progress_on_a_terminal_is_one_line_that_is_rewritten(start_server: StartServer, load: Load) -> None:
    server = await start_server(sim_delay_ms=(20.0, 20.0))
    ours, theirs = pty.openpty()
    running = await load("--streams=2", "--minutes=0.04", server.make_url(""), stderr=theirs)
    os.close(theirs)
    assert await running.end() == 0
    shown = ""
    # EIO: nobody has the other end any more, and all is read.
    with suppress(OSError):
        while part := os.read(ours, 65536):
            shown += part.decode()
    os.close(ours)
    assert re.match(r"\r0:0\d of 0:02  2 streams  \d+ replies  [\d,]+ words/s  first token p50 \d+ ms", shown)
    assert shown.count("\r0:0") >= 2
    assert shown.endswith("\r\n")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["ftp://127.0.0.1"], "ftp://127.0.0.1 is no URL, expected one like http://127.0.0.1:3000\n"),
        (["http://127.0.0.1:99999"], "http://127.0.0.1:99999: Port out of range 0-65535\n"),
        (["http://a:b@127.0.0.1"], "the URL has a user, a query or a fragment, expected none"),
        (["--streams=0", "http://127.0.0.1"], "argument --streams: 0, expected a number from 1 to 60000\n"),
        (
            ["--minutes=0", "http://127.0.0.1"],
            "argument --minutes: 0, expected minutes, above 0 and at most a week\n",
        ),
        (
            ["--streams=1", "http://a", "--against=http://b"],
            "--streams is 1, expected one for each address at least",
        ),
        (["--svg=/nowhere/load.svg", "http://127.0.0.1"], "/nowhere/load.svg: No such file or directory"),
        (["--users=/nowhere", "http://127.0.0.1"], "/nowhere: [Errno 2] No such file or directory"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["load", *options])
    with pytest.raises((LoadError, SystemExit)) as refused:
        main()
    if isinstance(refused.value, SystemExit):
        assert refused.value.code == 2
    assert said in f"{refused.value}\n{capsys.readouterr().err}"


def test_percentiles_are_by_nearest_rank_to_one_percent() -> None:
    values_s = [random.Random(seed).lognormvariate(-4, 1.5) for seed in range(5000)]
    times = Times()
    for value_s in values_s:
        times.add(value_s)
    parts = [0.001, 0.5, 0.95, 0.99, 0.9999, 1]
    for part, value_ms in zip(parts, times.at(*parts), strict=True):
        assert value_ms == pytest.approx(sorted(values_s)[ceil(part * 5000) - 1] * 1000, rel=0.0101)
    assert times.row_ms()["max"] == max(values_s) * 1000
    assert Times().at(0.5, 1) == [0, 0]
