"""Who takes part: this server, its peers, and the reference."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .rig import BUILD, HERE, REPLY, ROOT, BenchError, Postgres, Server, free_port, started

PEERS = HERE / "peers"


@dataclass(frozen=True)
class Job:
    """What a server is told: where to listen, the time between words, where to store turns."""

    port: int
    period_ms: float
    database_url: str = ""

    def environ(self) -> dict[str, str]:
        """Return this server's settings; all that is asked here is asked by one user."""
        return {
            "PORT": str(self.port),
            "DATABASE_URL": self.database_url,
            "SEED_DEMO": "1",
            "SIM_DELAY_MS": f"{self.period_ms:g}-{self.period_ms:g}",
            "USER_STREAM_LIMIT": "0",
            "USER_READER_LIMIT": "0",
            "USER_TURNS_PER_MINUTE": "0",
        }

    def options(self) -> list[object]:
        """Return the options that all peers in Python have."""
        stored = ["--database-url", self.database_url] if self.database_url else []
        return ["--port", self.port, "--period-ms", self.period_ms, "--reply", REPLY, *stored]


@dataclass(frozen=True)
class Candidate:
    """A server to start, and whether it stores its turns."""

    name: str
    label: str
    command: Callable[[Job], list[object]]
    stores: bool = False
    # Of a checkout of this server.
    folder: Path = ROOT


@contextmanager
def serving(candidate: Candidate, postgres: Postgres, period_ms: float = 0.0) -> Iterator[Server]:
    """Run a candidate, with a database of its own if it stores turns."""
    job = Job(free_port(), period_ms)
    with ExitStack() as stack:
        if candidate.stores:
            job = replace(job, database_url=stack.enter_context(postgres.database()))
        yield stack.enter_context(started(candidate.command(job), job.port, job.environ(), candidate.folder))


def ours() -> Candidate:
    return Candidate("ours", "this server", lambda job: [sys.executable, "-m", "app"], stores=True)


def pull() -> Candidate:
    def command(job: Job) -> list[object]:
        return [sys.executable, HERE / "pull.py", job.period_ms, REPLY]

    return Candidate("ours-pull", "this server, generator model", command, stores=True)


def against(folder: Path) -> Candidate:
    return replace(ours(), name="against", label=f"this server as in {folder.name}", folder=folder.absolute())


def bare() -> Candidate:
    return Candidate(
        "bare", "bare event loop (reference)", lambda job: [sys.executable, PEERS / "bare.py", *job.options()]
    )


def express() -> Candidate:
    folder = BUILD / "express"
    if not (folder / "node_modules" / "express").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text((PEERS / "express" / "package.json").read_text())
        run_quietly(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder)
    # Beside its packages, because that is where Node looks for them.
    script = folder / "server.js"
    script.write_text((PEERS / "express" / "server.js").read_text())
    return Candidate("express", "Express", lambda job: ["node", script, job.port, job.period_ms, REPLY])


def fastapi() -> Candidate:
    interpreter = peer_python("fastapi")
    return Candidate(
        "fastapi",
        "FastAPI + sse-starlette",
        lambda job: [interpreter, PEERS / "fastapi_sse.py", *job.options()],
    )


def fastapi_asyncpg() -> Candidate:
    interpreter = peer_python("fastapi")
    return Candidate(
        "fastapi-asyncpg",
        "FastAPI + asyncpg",
        lambda job: [interpreter, PEERS / "fastapi_asyncpg.py", *job.options()],
        stores=True,
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


def run_quietly(command: list[object], cwd: Path) -> None:
    try:
        subprocess.run([str(part) for part in command], cwd=cwd, check=True, capture_output=True, timeout=300)
    except FileNotFoundError:
        raise BenchError(f"{command[0]} is not installed") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise BenchError(f"{Path(str(command[0])).name} could not install it") from None


# In the order in which they take turns. What is to be installed for it may be missing; ours and the reference not.
STREAMERS: dict[str, Callable[[], Candidate]] = {"ours": ours, "ours-pull": pull, "bare": bare}
PEER_STREAMERS: dict[str, Callable[[], Candidate]] = {"express": express, "fastapi": fastapi}
PEER_STORERS: dict[str, Callable[[], Candidate]] = {"fastapi-asyncpg": fastapi_asyncpg}
