"""A real engine, `transformers serve` with a tiny model: read to its end, and let go: `make faults` alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from aiohttp.test_utils import unused_port
from ledger import FULL, ROOT, SEED, Server, ledger
from support import Rows, eventually
from test_providers import listening

pytestmark = [
    pytest.mark.skipif(not FULL, reason="make faults alone: it installs PyTorch, 6 GB"),
    # The installation.
    pytest.mark.timeout(1800),
]

# Of its own: what it installs is to be beside nothing else.
VENV = ROOT / ".venv/engine"
PYTHON = VENV / "bin/python"

# More than it says in an hour.
ENDLESS = "100000"


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python that has transformers; installed once, until `make clean`."""
    done = VENV / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "transformers[serving]>=5.24", "torch"], check=True)
        done.touch()
    return PYTHON


@pytest.fixture(scope="module")
def engine(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    """The base URL of an engine that answers one request at a time, and its process."""
    folder, port = tmp_path_factory.mktemp("engine"), unused_port()
    # One thread: more would be in each other's way over so small a model.
    environ = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([python, Path(__file__).with_name("engine.py"), folder / "tiny"], check=True)
    serve = [python, Path(__file__).with_name("engine_serve.py"), "serve", "tiny", "--device", "cpu"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*serve, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=environ,
            stdout=log,
            stderr=log,
        )
    try:
        # The first time, Python compiles all that was installed.
        asyncio.run(listening(port, 120))
        yield f"http://127.0.0.1:{port}/v1", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def ask_engine(serve: Callable[..., Server], engine: tuple[str, psutil.Process]) -> Callable[..., Server]:
    """Give a function that starts a server before the engine."""

    def start(max_tokens: str, **environ: str) -> Server:
        return serve(MODEL="openai:tiny", MODEL_URL=engine[0], MODEL_MAX_TOKENS=max_tokens, **environ)

    return start


async def test_reply_is_whole_and_counted_by_the_engine(
    ask_engine: Callable[..., Server], own_rows: Rows, say: Callable[..., None]
) -> None:
    server, tenant = ask_engine("200"), own_rows.tenant()
    async with ledger([server], tenant, SEED) as clients:
        entry = clients.entry("Hi")
        await clients.ask(entry)
    assert entry.last is not None
    assert (entry.last["fullText"], entry.last["stop"]) == (entry.seen, "length")
    # A token for each byte of the question, one for the end of its line.
    usage = {"input": len(entry.question) + 1, "output": 200, "estimated": False}
    assert entry.last["usage"] == usage
    assert own_rows.messages(tenant.org_id)[1] == ("assistant", entry.seen, "complete")
    # Lines of the log come a moment later.
    [line] = await eventually(lambda: [line for line in server.log().splitlines() if "Stream completed" in line])
    completed = json.loads(line)
    # A character of several bytes, or none at all, comes with the next one.
    assert 0 < completed["piecesStreamed"] < 200
    assert completed["usage"] == usage
    say(tokens=200, pieces=completed["piecesStreamed"])


@pytest.mark.parametrize("how", ["stop", "leaving", "SIGTERM"])
async def test_engine_stops_when_its_reply_is_not_wanted_any_more(
    ask_engine: Callable[..., Server],
    engine: tuple[str, psutil.Process],
    own_rows: Rows,
    say: Callable[..., None],
    how: str,
) -> None:
    server = ask_engine(ENDLESS, RESUME_WINDOW_S="0", SHUTDOWN_GRACE_S="0")
    # An engine that has not stopped is not waited for as long as a model may take.
    other = ask_engine("20", MODEL_FIRST_S="20")
    tenant, port = own_rows.tenant(), int(engine[0].split(":")[2].split("/")[0])

    def is_connected() -> bool:
        """Whether the engine has a connection from the server that asks without end."""
        asking = psutil.Process(server.popen.pid).net_connections()
        return any(connection.raddr and connection.raddr.port == port for connection in asking)

    async with ledger([server], tenant, SEED) as clients:
        entry = clients.entry("Hi")
        asking = asyncio.create_task(clients.ask(entry))
        await eventually(lambda: len(entry.seen) > 50)
        assert is_connected()
        began_s = time.monotonic()
        if how == "stop":
            await clients.stop(entry)
        elif how == "leaving":
            asking.cancel()
        else:
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.end) == 0
        if how != "SIGTERM":
            await eventually(lambda: not is_connected())
        closed_ms = round((time.monotonic() - began_s) * 1000)
        # It answers one at a time: this comes when it has stopped.
        after = clients.entry("And now?")
        await clients.ask(after, base=other.base)
        await asyncio.gather(asking, return_exceptions=True)
    assert after.is_done, other.log()[-2000:]
    assert after.first_word_s is not None
    status = {"stop": "stopped", "leaving": "disconnected", "SIGTERM": "interrupted"}[how]
    [(content, stored)] = own_rows("select content, status from messages where id = %s", entry.reply_id)
    assert (content[: len(entry.seen)], stored) == (entry.seen, status)
    # And does nothing more.
    cpu_s = cpu(engine[1])
    await asyncio.sleep(1)
    assert cpu(engine[1]) - cpu_s < 0.3
    say(how=how, closed_ms=closed_ms, first_word_ms=round(after.first_word_s * 1000))


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
