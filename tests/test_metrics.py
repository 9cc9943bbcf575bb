"""`GET /metrics`: what goes on in each process, at a port that a setting opens."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp.test_utils import TestServer, unused_port
from house import House, answer, ask, disconnect, hears, open_house, read_at_the_door, stop
from processes import Process, Processes, status_of
from processes import ask as ask_process
from prometheus_client.parser import text_string_to_metric_families
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, logged, post, says

from app.__main__ import metrics_port
from app.errors import StartError
from app.settings import Settings

README = (Path(__file__).parent.parent / "app/README.md").read_text("utf-8")
LISTENING = "Listening for metrics"


class Page:
    """Where a server of this process shows its metrics."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.url = f"http://{address}/metrics"

    async def read(self, **headers: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(self.url, headers=headers) as response:
            return response.status, await response.text()

    async def lines(self, name: str) -> list[str]:
        """Return the lines of one metric, without zeros."""
        _, text = await self.read()
        lines = [line for line in text.splitlines() if re.split("[{ ]", line)[0] == name]
        assert lines, f"no {name}"
        return [line for line in lines if not line.endswith(" 0.0")]

    async def becomes(self, name: str, *lines: str) -> None:
        async with asyncio.timeout(10):
            while await self.lines(name) != list(lines):
                await asyncio.sleep(0.01)


@pytest.fixture
def page_of(caplog: pytest.LogCaptureFixture) -> Any:
    """Return the page of the server that was started last."""
    return lambda: Page(logged(caplog, LISTENING)[-1].address)


async def read_to_the_end(
    server: TestServer, tenant: Tenant, path: str = "/chat/stream", headers: str = ""
) -> bytes:
    client = await RawClient.connect(server)
    client.send(post(path, b'{"message": "Hi"}', tenant, headers=headers + "Connection: close\r\n"))
    return await client.reader.read()


async def test_turns_are_counted_by_how_they_have_ended(
    start_server: StartServer, tenant: Tenant, page_of: Any
) -> None:
    model = Gated(pieces=["a", "b"])
    server = await start_server(model=model, metrics_port=0, resume_window_s=0.0, write_timeout_s=0.5)
    page = page_of()
    model.go(2)
    assert b'"done":true' in await read_to_the_end(server, tenant)
    model.pieces = "a"
    client, reply_id = await ask(server, tenant)
    assert (await answer(await stop(server, tenant, reply_id)))[0] == 200
    left, _ = await ask(server, tenant)
    left.reset()
    await page.becomes(
        "chat_turns_total",
        'chat_turns_total{status="complete"} 1.0',
        'chat_turns_total{status="disconnected"} 1.0',
        'chat_turns_total{status="stopped"} 1.0',
    )
    model.pieces = iter(says_then_fails())
    model.go(2)
    assert b'"error"' in await read_to_the_end(server, tenant)
    assert 'chat_turns_total{status="failed"} 1.0' in await page.lines("chat_turns_total")
    # Those that have not happened are there, too, so that their first one is an increase.
    assert 'chat_turns_total{status="interrupted"} 0.0' in (await page.read())[1]
    await client.close()


def says_then_fails() -> Iterable[str]:
    yield "a"
    raise RuntimeError("the model is broken")


async def test_replies_that_run_and_those_that_nobody_reads(
    start_server: StartServer, tenant: Tenant, page_of: Any
) -> None:
    house = await open_house(start_server, False, Gated(), metrics_port=0)
    page = page_of()
    assert await page.lines("chat_replies_running") == []
    client, reply_id = await ask(house.home, tenant)
    assert await page.lines("chat_replies_running") == ["chat_replies_running 1.0"]
    assert await page.lines("chat_replies_unread") == []
    assert await page.lines("chat_readers") == ["chat_readers 1.0"]
    await disconnect(house, client, reply_id)
    assert await page.lines("chat_replies_running") == ["chat_replies_running 1.0"]
    assert await page.lines("chat_replies_unread") == ["chat_replies_unread 1.0"]
    assert await page.lines("chat_readers") == []


async def test_reply_that_is_read_elsewhere_is_counted_at_both_servers(
    start_server: StartServer, tenant: Tenant, page_of: Any
) -> None:
    model = Gated()
    home = await hears(await start_server(model=model, metrics_port=0, write_timeout_s=0.5))
    home_page = page_of()
    door = await hears(await start_server(model=says("not asked"), metrics_port=0, write_timeout_s=0.5))
    door_page = page_of()
    _, reader, _ = await read_at_the_door(House(home, door, model), tenant)
    assert await home_page.lines("chat_replies_running") == ["chat_replies_running 1.0"]
    assert await home_page.lines("chat_replies_unread") == []
    assert await home_page.lines("chat_replies_elsewhere") == []
    assert await door_page.lines("chat_replies_running") == []
    assert await door_page.lines("chat_replies_elsewhere") == ["chat_replies_elsewhere 1.0"]
    await reader.close()


async def test_first_pieces_and_gaps_of_streams_are_counted(
    start_server: StartServer, tenant: Tenant, page_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(metrics_port=0)
    page = page_of()
    whole = await read_to_the_end(server, tenant, "/chat")
    assert b"200 OK" in whole
    assert await page.lines("chat_first_piece_seconds_count") == []
    await read_to_the_end(server, tenant)
    [completed] = logged(caplog, "Stream completed")
    pieces = completed.piecesStreamed  # type: ignore[attr-defined]
    assert await page.lines("chat_first_piece_seconds_count") == ["chat_first_piece_seconds_count 1.0"]
    assert await page.lines("chat_piece_gap_seconds_count") == [f"chat_piece_gap_seconds_count {pieces - 1}.0"]
    buckets = await page.lines("chat_piece_gap_seconds_bucket")
    assert buckets[-1] == f'chat_piece_gap_seconds_bucket{{le="+Inf"}} {pieces - 1}.0'


async def test_ends_that_cannot_be_stored_are_owed_and_their_statements_counted(
    start_server: StartServer, rows: Rows, tenant: Tenant, page_of: Any
) -> None:
    model = Gated(pieces=["a"])
    server = await start_server(model=model, metrics_port=0, db_timeout_s=1)
    page = page_of()
    client, _ = await ask(server, tenant)
    with rows.locked("messages"):
        model.go()
        await page.becomes("chat_saves_owed", "chat_saves_owed 1.0")
        name = "chat_database_errors_total"
        await eventually_in(page, name, 'chat_database_errors_total{statement="turn_close"}')
    await page.becomes("chat_saves_owed")
    assert await page.lines("chat_turns_total") == ['chat_turns_total{status="complete"} 1.0']
    await client.close()


async def eventually_in(page: Page, name: str, start: str) -> None:
    async with asyncio.timeout(10):
        while not any(line.startswith(start) for line in await page.lines(name)):
            await asyncio.sleep(0.01)


async def test_questions_that_budgets_refuse_are_counted_and_no_turn_of_before(
    start_server: StartServer, rows: Rows, tenant: Tenant, page_of: Any
) -> None:
    server = await start_server(model=says("a"), metrics_port=0)
    page = page_of()
    key = "Idempotency-Key: 1\r\n"
    assert b"200 OK" in await read_to_the_end(server, tenant, headers=key)
    rows("insert into budgets (org_id, period, units) values (%s, 'day', 1)", tenant.org_id)
    assert b"200 OK" in await read_to_the_end(server, tenant, headers=key)
    assert await page.lines("chat_budget_refusals_total") == []
    assert b"402 Payment Required" in await read_to_the_end(server, tenant)
    assert await page.lines("chat_budget_refusals_total") == ['chat_budget_refusals_total{reason="used"} 1.0']
    rows("delete from budgets where org_id = %s", tenant.org_id)


async def test_responses_have_no_label_that_clients_make_up(
    start_server: StartServer, tenant: Tenant, page_of: Any
) -> None:
    server = await start_server(model=says("a"), metrics_port=0)
    page = page_of()
    base = f"http://{server.host}:{server.port}"
    async with aiohttp.ClientSession(headers=tenant.headers) as session:
        for n, method in enumerate(["PUT", "TRACE", "PROPFIND"]):
            await session.get(f"{base}/none/{n}")
            await session.request(method, f"{base}/chats")
            await session.get(f"{base}/chats/00000000-0000-0000-0000-00000000000{n}/messages")
        async with session.post(f"{base}/chat/stream", json={"message": "Hi"}) as stream:
            await stream.read()
    assert await page.lines("chat_http_responses_total") == [
        'chat_http_responses_total{method="*",route="",status="404"} 3.0',
        'chat_http_responses_total{method="*",route="",status="405"} 3.0',
        'chat_http_responses_total{method="GET",route="/chats/{chat_id}/messages",status="404"} 3.0',
        'chat_http_responses_total{method="POST",route="/chat/stream",status="200"} 1.0',
    ]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:9", 200), ("127.0.0.1", 200), ("chat.example", 200), ("evil.example", 403), ("10.1.2.3", 403)],
)
async def test_page_under_a_name_that_resolves_to_this_machine_reads_no_metrics(
    start_server: StartServer, page_of: Any, host: str, status: int
) -> None:
    await start_server(metrics_port=0, allowed_hosts=frozenset({"chat.example"}))
    told, text = await page_of().read(Host=host)
    assert told == status
    assert ("chat_replies_running" in text) == (status == 200)


@pytest.mark.parametrize(
    ("target", "header", "status"),
    [("/metrics", b"Expect: \xff\r\n", b"200 OK"), ("http://xn--/metrics", b"", b"403 Forbidden")],
)
async def test_what_aiohttp_cannot_read_is_answered(
    start_server: StartServer, page_of: Any, target: str, header: bytes, status: bytes
) -> None:
    await start_server(metrics_port=0)
    host, _, port = page_of().address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode() + header + b"\r\n")
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 " + status + b"\r\n")
    writer.close()


async def test_there_is_nothing_but_the_page_and_nothing_of_it_at_the_servers_own_port(
    start_server: StartServer, page_of: Any
) -> None:
    server = await start_server(metrics_port=0)
    page = page_of()
    async with aiohttp.ClientSession() as session:
        for url in (page.url.replace("/metrics", "/chats"), f"http://{server.host}:{server.port}/metrics"):
            async with session.get(url) as response:
                assert response.status == 404
        async with session.get(page.url) as response:
            # The version is the library's.
            assert re.fullmatch("text/plain; version=[0-9.]+; charset=utf-8", response.headers["Content-Type"])
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_readme_lists_every_metric_and_no_other(
    start_server: StartServer, tenant: Tenant, page_of: Any
) -> None:
    server = await start_server(metrics_port=0)
    await read_to_the_end(server, tenant)
    shown = {}
    for family in text_string_to_metric_families((await page_of().read())[1]):
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = family.name + "_total" * (family.type == "counter")
        if name.startswith("chat_"):
            shown[name] = (family.type, ", ".join(f"`{label}`" for label in labels))
    section = README.split("\n## Metrics\n")[1].split("\n## ")[0]
    listed = [line[2:-2].split(" | ") for line in section.splitlines() if line.startswith("| `chat_")]
    assert {name.strip("`"): (kind, labels.strip()) for name, kind, labels, _ in listed} == shown
    # What the queries ask for is there.
    names = set(re.findall(r"chat_\w+", section.split("```promql")[1].split("```")[0]))
    known = shown.keys() | {f"{name}_bucket" for name, (kind, _) in shown.items() if kind == "histogram"}
    assert names <= known


# ---- Processes


def scrape(address: str) -> dict[str, float]:
    """Return the values of a page, by their names with labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def together(addresses: Iterable[str]) -> Counter[str]:
    """Return what `sum()` gives."""
    values: Counter[str] = Counter()
    for address in addresses:
        values.update(scrape(address))  # type: ignore[arg-type]
    return values


def two_free_ports() -> int:
    """Return a port that is free and so is the next one."""
    while True:
        port = unused_port()
        with ExitStack() as stack:
            try:
                for number in (port, port + 1):
                    stack.enter_context(socket.create_server(("127.0.0.1", number)))
            except OSError:
                continue
            return port


def listeners(process: Process) -> int:
    return sum(
        connection.status == psutil.CONN_LISTEN
        for connection in psutil.Process(process.popen.pid).net_connections()
    )


def test_by_default_there_is_no_such_port(start: Processes, postgres_url: str) -> None:
    process = start(DATABASE_URL=postgres_url)
    base = process.listening()
    assert LISTENING not in [line["message"] for line in process.lines]
    assert listeners(process) == 1
    assert status_of(f"{base}/metrics") == 404


def test_each_worker_shows_its_own_and_one_that_dies_takes_its_gauges_along(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    port = two_free_ports()
    addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
    process = start(DATABASE_URL=postgres_url, WORKERS="2", METRICS_PORT=str(port), SIM_DELAY_MS="60000-60000")
    lines = [process.wait_for("Listening") for _ in range(2)]
    shown = {line["pid"]: line["address"] for line in process.lines if line["message"] == LISTENING}
    assert sorted(shown.values()) == sorted(addresses)
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(ask_process(f"http://{lines[0]['address']}", tenant))
        all_of_them = together(addresses)
        assert (all_of_them["chat_replies_running"], all_of_them["chat_readers"]) == (8, 8)
        started = 'chat_http_responses_total{method="POST",route="/chat/stream",status="200"}'
        assert all_of_them[started] == 8
        victim = max(shown, key=lambda pid: scrape(shown[pid])["chat_replies_running"])
        died = scrape(shown[victim])["chat_replies_running"]
        psutil.Process(victim).kill()
        # In its place, at its port.
        while (line := process.wait_for(LISTENING))["address"] != shown[victim]:
            pass
        assert line["pid"] != victim
        assert together(addresses)["chat_replies_running"] == 8 - died

        def closed() -> int:
            return sum(status == "interrupted" for _, _, status in rows.messages(tenant.org_id)[1::2])

        deadline_s = time.monotonic() + 10
        # What other tests have left open in this database is closed, and counted, too.
        while closed() < died or together(addresses)["chat_turns_abandoned_total"] < died:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    assert closed() == died


def test_port_that_is_taken_is_one_line(start: Processes, postgres_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, terminal = start(DATABASE_URL=postgres_url, METRICS_PORT=str(port), WORKERS="2").end()
    assert code == 1
    # The second worker's may be another test's, and is told first.
    assert re.search(f"^llm-app: METRICS_PORT is ({port}|{port + 1}), which is taken$", terminal, re.M)
    assert "Traceback" not in terminal


def test_host_that_is_none_of_this_machine_is_one_line(start: Processes, postgres_url: str) -> None:
    code, terminal = start(DATABASE_URL=postgres_url, METRICS_PORT="0", METRICS_HOST="192.0.2.1").end()
    assert code == 1
    [line] = [line for line in terminal.splitlines() if line.startswith("llm-app: ")]
    assert line.startswith("llm-app: METRICS_HOST is 192.0.2.1, where nothing can listen: ")


def test_each_worker_takes_the_next_port_and_all_must_be_there() -> None:
    settings = Settings(workers=2, metrics_port=65534)
    assert [metrics_port(settings, number) for number in (0, 1)] == [
        {"METRICS_PORT": "65534"},
        {"METRICS_PORT": "65535"},
    ]
    with pytest.raises(StartError) as caught:
        metrics_port(Settings(workers=3, metrics_port=65534), 0)
    assert str(caught.value) == (
        "METRICS_PORT is 65534, expected at most 65533: each of 3 workers takes the next one"
    )
    # None, or each a free one.
    assert metrics_port(Settings(workers=2), 1) == metrics_port(Settings(workers=2, metrics_port=0), 1) == {}


def test_port_without_the_library_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.settings.has_prometheus", False)
    with pytest.raises(StartError, match="METRICS_PORT is set, and prometheus-client not installed: "):
        Settings.from_environ({"METRICS_PORT": "0"})
    assert Settings.from_environ({"METRICS_PORT": ""}).metrics_port is None


def test_server_without_metrics_does_not_need_the_library() -> None:
    code = "import sys; import app.__main__; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
