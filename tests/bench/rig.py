"""The rig: what is built on the spot, processes on their cores, the load generator, one PostgreSQL."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2

from app.storage.embedded import postgres

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = Path(os.environ.get("BENCH_BUILD") or HERE / ".build").absolute()

# Who asks: the demo user, whom SEED_DEMO=1 puts in the database.
HEADERS = {
    "x-org-id": "00000000-0000-0000-0000-000000000001",
    "x-user-id": "00000000-0000-0000-0000-000000000002",
    "Content-Type": "application/json",
}
# The simulated model has one answer to this, of some 220 words; all others say it too.
QUESTION = "tell a story"
BODY = json.dumps({"message": QUESTION})

# What every server is to say, and what the generator sends and has to get.
REPLY, REPLY_JSON, EVENTS = BUILD / "reply.txt", BUILD / "reply.json", BUILD / "events.txt"

# The server has a core to itself; the generator and PostgreSQL share the other one.
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]

# A round is void where the generator itself was this busy: it would measure itself.
LOAD_CORE_LIMIT = 0.70
# A round is disturbed where the server waited this share of the time for its core, and others were what it waited
# for: Node also waits for its own threads.
WAIT_LIMIT = 0.05
OTHERS_LIMIT = 0.02

PR_SET_PDEATHSIG = 1


class BenchError(Exception):
    """Why something cannot be measured."""


def stay_on_load_core() -> None:
    """Pin this process, and so all that it starts without saying otherwise."""
    os.sched_setaffinity(0, {LOAD_CORE})


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other bench runs on this machine: two would measure each other."""
    with (Path(tempfile.gettempdir()) / "llm-app-bench.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another bench is running: waiting for its end", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_load() -> None:
    """Make the load generator, anew where its source is newer."""
    BUILD.mkdir(exist_ok=True)
    source, program = HERE / "load.c", BUILD / "load"
    newest = max(file.stat().st_mtime for file in (source, *HERE.glob("*.h")))
    if not program.exists() or program.stat().st_mtime < newest:
        try:
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", program, source, "-lm"], check=True)
        except FileNotFoundError:
            raise BenchError(
                "cc is missing: install a C compiler (Debian: apt-get install gcc libc6-dev)"
            ) from None
        except subprocess.CalledProcessError:
            raise BenchError("load.c does not compile; are the C library's headers installed?") from None


def prepare_files(reply: str) -> int:
    """Write what all are to say and what the generator sends and gets; return the number of words."""
    words = re.findall(r"\S+", reply)
    if not reply.isascii() or len(words) < 200:
        raise BenchError(
            f"the server's answer to {QUESTION!r} has {len(words)} words, expected 200 or more, in ASCII"
        )
    REPLY.write_text(reply)
    REPLY_JSON.write_text(json.dumps(reply)[1:-1])
    tokens = [json.dumps(token) for token in re.findall(r"\s+|\S+", reply)]
    EVENTS.write_text("".join(f'data: {{"token":{token},"done":false}}\n\n' for token in tokens))
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    for name, path in (("stream", "/chat/stream"), ("chat", "/chat")):
        (BUILD / f"{name}.http").write_text(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: {len(BODY)}\r\n\r\n{BODY}",
            newline="",
        )
    return len(words)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process on its core, listening on loopback."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.pid = process.pid
        self._http = HTTPConnection("127.0.0.1", port, timeout=60)
        self.port = port

    def rss(self) -> int:
        """Bytes of the process itself; none of the candidates has children."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """Ask as the demo user, on a connection that is kept; return the body of a 200."""
        self._http.request(method, path, json.dumps(body) if body else None, HEADERS)
        response = self._http.getresponse()
        answer = response.read()
        if response.status != 200:
            raise BenchError(f"{method} {path}: {response.status} {answer.decode(errors='replace')[:200]}")
        return answer


@contextmanager
def started(command: Sequence[object], port: int, environ: Mapping[str, str], folder: Path) -> Iterator[Server]:
    """Run a server until the block ends; give it once it answers."""
    # None of the settings that this process may have by chance.
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    try:
        with (BUILD / f"server-{port}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                # Where ours logs, three lines a stream: they cost it their making and a system call each.
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=folder,
                env=keep | dict(environ),
                preexec_fn=take_server_core,
            )
    except OSError as exc:
        raise BenchError(f"{Path(str(command[0])).name} cannot be run: {exc.strerror}") from None
    try:
        wait_for_answer(port, process)
        yield Server(process, port)
        if process.poll() is not None:
            raise BenchError(f"a server died: {last_words(port)}")
    finally:
        stop(process)
        (BUILD / f"server-{port}.log").unlink()


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process group that we started; at once, for nothing of it is kept."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_answer(port: int, process: subprocess.Popen[bytes], timeout_s: float = 20) -> None:
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up and process.poll() is None:
        # Any answer will do: not all have this path. A socket that listens is not enough, ours does so early.
        with (
            closing(HTTPConnection("127.0.0.1", port, timeout=timeout_s)) as http,
            suppress(OSError, HTTPException),
        ):
            http.request("GET", "/health")
            http.getresponse()
            return
        time.sleep(0.02)
    raise BenchError(f"a server does not start: {last_words(port)}")


def last_words(port: int) -> str:
    log = (BUILD / f"server-{port}.log").read_text(errors="replace").strip()
    return log.splitlines()[-1] if log else "it said nothing"


def load(
    server: Server,
    *,
    connections: int,
    request: str = "stream",
    period_ms: float = 0.0,
    tick_ms: float = 0.25,
    ramp: float,
    settle: float,
    window: float,
    others: int = 0,
) -> dict[str, Any]:
    """Put a load on `server` and return what the generator measured (see load.c), with what follows from it."""
    options = {
        "port": server.port,
        "connections": connections,
        "request": BUILD / f"{request}.http",
        "text": REPLY_JSON,
        "period-ms": period_ms,
        "tick-ms": tick_ms,
        "ramp": ramp,
        "settle": settle,
        "window": window,
        "server": server.pid,
        "others": others,
        "server-core": SERVER_CORE,
        "load-core": LOAD_CORE,
    }
    if request == "stream":
        options["events"] = EVENTS
    command = [str(BUILD / "load")]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    out = subprocess.run(
        command,
        check=True,
        capture_output=True,
        # A hang is not waited for.
        timeout=ramp + settle + window + 30,
        # A clock that waits for PostgreSQL, on the same core, would tell lies about lateness.
        preexec_fn=first_in_line,
    ).stdout
    result: dict[str, Any] = json.loads(out)
    seconds = result["seconds"]
    result["load_busy"] = result["load_cpu_s"] / seconds
    result["server_busy"] = result["server_cpu_s"] / seconds
    result["server_waited"] = result["server_waited_s"] / seconds
    result["others_on_core"] = (result["server_core_s"] - result["server_cpu_s"]) / seconds
    if result["tokens"]:
        result["cpu_us_per_word"] = result["server_cpu_s"] / result["tokens"] * 1e6
        result["words_per_s"] = result["tokens"] / seconds
    if result["ended"]:
        result["cpu_us_per_turn"] = result["server_cpu_s"] / result["ended"] * 1e6
        result["turns_per_s"] = result["ended"] / seconds
    return result


def first_in_line() -> None:
    """Go before whatever else runs on the machine, where that is allowed; the same for all candidates."""
    with suppress(OSError):
        os.setsid()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
        # Where Linux groups processes by session, the nice value counts within the session only.
        Path("/proc/self/autogroup").write_text("-15")


def take_server_core() -> None:
    """In a new process: go to the server's core, and end when this one does, however it ends."""
    os.sched_setaffinity(0, {SERVER_CORE})
    first_in_line()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_disturbed(result: dict[str, Any]) -> bool:
    return bool(result["server_waited"] > WAIT_LIMIT and result["others_on_core"] > OTHERS_LIMIT)


def why_void(result: dict[str, Any]) -> str | None:
    """Return why a round does not count, None if it does."""
    failed = result["failed"]
    count = sum(value for value in failed.values() if isinstance(value, int))
    if count:
        return f"{count} failed: {failed['first']}"
    if not (result["tokens"] or result["ended"]):
        return "not a word came"
    if result["load_busy"] > LOAD_CORE_LIMIT:
        return f"the generator used {result['load_busy']:.0%} of its core"
    return None


class Postgres:
    """A new PostgreSQL, with the settings that the embedded one has, on this process's core."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._made = 0
        self.pid = int((folder / "postmaster.pid").read_text().split("\n")[0])
        self.version = (folder / "PG_VERSION").read_text().strip()
        self.log = folder / "log"

    @contextmanager
    def database(self) -> Iterator[str]:
        """Give the URL of a new, empty database."""
        self._made += 1
        name = f"bench_{self._made}"
        self.run(f"create database {name}")
        # What is dirty is written now, so that none of it falls into the next window.
        self.run("checkpoint")
        try:
            yield urlsplit(self._url)._replace(path=f"/{name}").geturl()
        finally:
            self.run(f"drop database {name} with (force)")

    def run(self, statement: str) -> None:
        with closing(psycopg2.connect(self._url)) as connection:
            connection.autocommit = True
            connection.cursor().execute(statement)


@contextmanager
def new_postgres() -> Iterator[Postgres]:
    """Run one until the block ends, and delete it."""
    folder = BUILD / "postgres"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with postgres(folder) as url:
            yield Postgres(url, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
