"""The rig: what is built on the spot, processes on their cores, the load generator, one PostgreSQL."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = HERE / ".build"
# The words of every reply, again and again.
WORDS = (HERE / "reply.txt").read_text().split()

ORG_ID = uuid.UUID("00000000-0000-0000-0000-000000000001")
USER_ID = uuid.UUID("00000000-0000-0000-0000-000000000002")
QUESTION = "How fast can you tell me something?"

PERIOD_MS = 20.0

# Words of a reply: a short one, and one of a length that models are known for.
SHORT, LONG = 80, 200

# The server has a core to itself; the generator, and PostgreSQL where it takes part, share the other one.
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
    if len(CORES) < 2:
        raise BenchError("one core only: the server and the load generator need one each")
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


def compile_c(source: Path) -> Path:
    """Return the program compiled from `source`, compiled anew where the source is newer."""
    BUILD.mkdir(exist_ok=True)
    program = BUILD / source.stem
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        try:
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", program, source, "-lm"], check=True)
        except FileNotFoundError:
            raise BenchError("cc is missing, expected a C compiler") from None
    return program


def prepare_files() -> None:
    """Write what the generator sends and what it has to get."""
    BUILD.mkdir(exist_ok=True)
    event = 'data: {{"token":"{}","done":false}}\n\n'.format
    for count in (SHORT, LONG):
        words = list(islice(cycle(WORDS), count))
        reply_file(count).write_text(" ".join(words))
        (BUILD / f"events-{count}.txt").write_text(event(" ").join(event(word) for word in words))
    body = json.dumps({"message": QUESTION})
    for name, path in (("stream", "/chat/stream"), ("chat", "/chat")):
        (BUILD / f"{name}.http").write_bytes(
            f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"x-org-id: {ORG_ID}\r\nx-user-id: {USER_ID}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )


def reply_file(words: int) -> Path:
    return BUILD / f"reply-{words}.txt"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process on its core, listening on loopback."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.pid = process.pid
        self.port = port

    def rss(self) -> int:
        """Bytes of the process itself; none of the candidates has children."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@contextmanager
def started(command: Sequence[object], port: int, *, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run a server until the block ends; give it once it accepts connections."""
    try:
        with (BUILD / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                # Where ours logs, three lines a stream: they cost it their making and a system call each.
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=ROOT,
                env=os.environ | (env or {}),
                preexec_fn=take_server_core,
            )
    except OSError as exc:
        raise BenchError(f"{Path(str(command[0])).name} cannot be run: {exc.strerror}") from None
    try:
        wait_for_port(port, process)
        yield Server(process, port)
        if process.poll() is not None:
            raise BenchError(f"a server died: {last_words()}")
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process group that we started; at once, for nothing of it is kept."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 20) -> None:
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        if process.poll() is not None:
            break
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise BenchError(f"a server does not start: {last_words()}")


def last_words() -> str:
    log = (BUILD / "server.log").read_text(errors="replace").strip()
    return log.splitlines()[-1] if log else "it said nothing"


def load(
    server: Server,
    *,
    connections: int,
    request: str = "stream",
    words: int = SHORT,
    period_ms: float = PERIOD_MS,
    tick_ms: float = 0.25,
    ramp: float,
    settle: float,
    window: float,
    drain: float = 4.0,
    others: int = 0,
) -> dict[str, Any]:
    """Put a load on `server` and return what the generator measured (see load.c), with what follows from it."""
    options = {
        "port": server.port,
        "connections": connections,
        "request": BUILD / f"{request}.http",
        "text": reply_file(words),
        "period-ms": period_ms,
        "tick-ms": tick_ms,
        "ramp": ramp,
        "settle": settle,
        "window": window,
        "drain": drain,
        "server": server.pid,
        "others": others,
        "server-core": SERVER_CORE,
        "load-core": LOAD_CORE,
    }
    if request == "stream":
        options["events"] = BUILD / f"events-{words}.txt"
    command = [str(BUILD / "load")]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    out = subprocess.run(
        command,
        check=True,
        capture_output=True,
        # A hang is not waited for.
        timeout=ramp + settle + window + drain + 20,
        # A clock that waits for PostgreSQL, on the same core, would tell lies about lateness.
        preexec_fn=first_in_line,
    ).stdout
    result: dict[str, Any] = json.loads(out)
    seconds = result["seconds"] or 1e-9
    result["load_busy"] = result["load_cpu_s"] / seconds
    result["server_busy"] = result["server_cpu_s"] / seconds
    result["server_waited"] = result["server_waited_s"] / seconds
    result["others_on_core"] = (result["server_core_s"] - result["server_cpu_s"]) / seconds
    if result["tokens"]:
        result["cpu_us_per_token"] = result["server_cpu_s"] / result["tokens"] * 1e6
        result["tokens_per_s"] = result["tokens"] / seconds
        result["tokens_per_read"] = result["tokens"] / result["reads"]
    result["ended_per_s"] = result["ended"] / seconds
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
    if result["load_busy"] > LOAD_CORE_LIMIT:
        return f"the generator used {result['load_busy']:.0%} of its core"
    return None


class Bench:
    """What the parts share: how long they measure, the database, and what there is to tell."""

    def __init__(self, window_s: float, *, repeats: int) -> None:
        self.window_s = window_s
        # How many void or disturbed rounds may be measured again, and were: there is an end to patience.
        self.repeats = repeats
        self.repeated = 0
        self.postgres_url = ""
        self.postgres_pid = 0
        self.postgres_version = ""
        self.postgres_folder = BUILD / "postgres"

    def may_repeat(self) -> bool:
        may = self.repeated < self.repeats
        self.repeated += may
        return may

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def checkpoint(self) -> None:
        """Write what is dirty now, so that none of it falls into the next window."""
        import psycopg2

        with closing(psycopg2.connect(self.postgres_url)) as connection:
            connection.autocommit = True
            connection.cursor().execute("checkpoint")

    @contextmanager
    def postgres(self) -> Iterator[None]:
        """Run a new PostgreSQL, with the settings that the embedded one has; delete it at the end.

        It inherits this process's core.
        """
        from app.storage.embedded import postgres
        from app.storage.migrate import migrate

        shutil.rmtree(self.postgres_folder, ignore_errors=True)
        try:
            with postgres(self.postgres_folder) as url:
                self.postgres_url = url
                self.postgres_pid = int((self.postgres_folder / "postmaster.pid").read_text().split("\n")[0])
                self.postgres_version = (self.postgres_folder / "PG_VERSION").read_text().strip()
                migrate(url, timeout_s=10)
                yield
        finally:
            shutil.rmtree(self.postgres_folder, ignore_errors=True)
