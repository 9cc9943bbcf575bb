"""Who takes part: this server, its peers, and the two references."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .rig import BUILD, HERE, BenchError, compile_c

PEERS = HERE / "peers"

# A server's command line, given its port, the time between words in ms, and the file that holds its reply.
Command = Callable[[int, float, Path], list[object]]


@dataclass(frozen=True)
class Candidate:
    """A server to start; with a database, its URL is put at the end of its command."""

    name: str
    label: str
    command: Command
    database: bool = False
    env: dict[str, str] = field(default_factory=dict)


def python_peer(interpreter: Path, script: str) -> Command:
    return lambda port, period_ms, reply: [interpreter, PEERS / script, *python_options(port, period_ms, reply)]


def python_options(port: int, period_ms: float, reply: Path) -> list[object]:
    return ["--port", port, "--period-ms", period_ms, "--reply", reply]


def ours(name: str, label: str, *, database: bool, loop: str = "any", app: Path | None = None) -> Candidate:
    def command(port: int, period_ms: float, reply: Path) -> list[object]:
        return [sys.executable, HERE / "ours.py", *python_options(port, period_ms, reply), "--loop", loop]

    env = {"BENCH_APP": str(app)} if app else {}
    return Candidate(name, label, command, database=database, env=env)


def bare() -> Candidate:
    interpreter = uvloop_python()
    return Candidate(
        "bare",
        "bare uvloop (reference)",
        python_peer(interpreter, "bare.py"),
    )


def floor() -> Candidate:
    program = compile_c(PEERS / "floor.c")
    return Candidate("floor", "C, epoll (floor)", lambda port, period_ms, reply: [program, port, period_ms, reply])


def express() -> Candidate:
    folder = BUILD / "express"
    if not (folder / "node_modules" / "express").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text((PEERS / "express" / "package.json").read_text())
        run_quietly(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder)
    # Beside its packages, because that is where Node looks for them.
    script = folder / "server.js"
    script.write_text((PEERS / "express" / "server.js").read_text())
    return Candidate(
        "express", "Express", lambda port, period_ms, reply: ["node", script, str(port), str(period_ms), reply]
    )


def fastapi() -> Candidate:
    interpreter = peer_python("fastapi")
    return Candidate(
        "fastapi",
        "FastAPI + sse-starlette",
        lambda port, period_ms, reply: [
            interpreter,
            PEERS / "fastapi_sse.py",
            *python_options(port, period_ms, reply),
        ],
    )


def fastapi_asyncpg() -> Candidate:
    interpreter = peer_python("fastapi")
    return Candidate(
        "fastapi-asyncpg",
        "FastAPI + asyncpg",
        lambda port, period_ms, reply: [
            interpreter,
            PEERS / "fastapi_asyncpg.py",
            *python_options(port, period_ms, reply),
        ],
        database=True,
    )


def aiohttp_sse() -> Candidate:
    interpreter = peer_python("aiohttp-sse")
    return Candidate(
        "aiohttp-sse",
        "aiohttp-sse",
        lambda port, period_ms, reply: [
            interpreter,
            PEERS / "aiohttp_sse_server.py",
            *python_options(port, period_ms, reply),
        ],
    )


def peer_python(name: str) -> Path:
    """Return the Python of a virtual environment with exactly what `requirements-<name>.txt` names."""
    requirements = PEERS / f"requirements-{name}.txt"
    folder = BUILD / name
    installed = folder / "installed.txt"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        venv.create(folder, clear=True, with_pip=True)
        run_quietly(
            [folder / "bin/python", "-m", "pip", "install", "-q", "--no-deps", "-r", requirements], cwd=BUILD
        )
        installed.write_text(requirements.read_text())
    return folder / "bin/python"


def uvloop_python() -> Path:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return peer_python("fastapi")
    return Path(sys.executable)


def run_quietly(command: list[object], cwd: Path) -> None:
    try:
        subprocess.run([str(part) for part in command], cwd=cwd, check=True, capture_output=True, timeout=300)
    except FileNotFoundError:
        raise BenchError(f"{command[0]} is not installed") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise BenchError(f"{Path(str(command[0])).name} could not install it") from None


# In the order in which they take turns.
STREAMERS: dict[str, Callable[[], Candidate]] = {
    "ours": lambda: ours("ours", "this server", database=False),
    "ours-pg": lambda: ours("ours-pg", "this server, each turn in PostgreSQL", database=True),
    "bare": bare,
    "floor": floor,
    "express": express,
    "fastapi": fastapi,
    "aiohttp-sse": aiohttp_sse,
}

# Only when asked for by name.
EXTRAS: dict[str, Callable[[], Candidate]] = {
    "ours-asyncio": lambda: ours("ours-asyncio", "this server on asyncio's loop", database=False, loop="asyncio"),
}
