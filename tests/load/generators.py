"""The two generators of streams: in C, where a compiler is and the streams are not encrypted; else in Python."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path

from . import streams
from .asides import stop_replies
from .figures import Figures, Tick
from .plan import LoadError, Plan, Target

HERE = Path(__file__).parent
BUILD = HERE / ".build"

Generator = Callable[[Plan, asyncio.Event], AsyncIterator[Tick]]


def choose(plan: Plan, *, python: bool) -> tuple[str, Generator]:
    """Return a generator and its name. It ends by itself, or soon after the event is set."""
    if python:
        return "Python", streams.ticks
    if any(target.scheme == "https" for target in plan.targets):
        return "Python (the one in C speaks no TLS)", streams.ticks
    if shutil.which("cc") is None:
        return "Python (there is no C compiler; it takes some five times as much CPU)", streams.ticks
    return "C", partial(ticks, compiled())


def compiled() -> Path:
    """Return the program, made anew where its source is newer."""
    program = BUILD / "streams"
    sources = [HERE / "streams.c", *(HERE.parent / "bench").glob("*.h")]
    if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        BUILD.mkdir(exist_ok=True)
        # Two may do so at once.
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            made = Path(folder) / "streams"
            command: list[str | Path] = ["cc", "-O2", "-Wall", "-Wextra", "-o", made, sources[0], "-lm"]
            if subprocess.run(command, check=False).returncode:
                raise LoadError("streams.c does not compile (are the C library's headers there?): try --python")
            made.replace(program)
    return program


def addresses(target: Target) -> list[str]:
    """Return options of the program: where to connect to, by number."""
    try:
        [(_, _, _, _, (host, port, *_)), *_] = socket.getaddrinfo(
            target.host, target.port, type=socket.SOCK_STREAM
        )
    except OSError as exc:
        raise LoadError(f"{target}: {exc.strerror}") from None
    return ["--address", str(host), "--port", str(port)]


async def ticks(program: Path, plan: Plan, stopped: asyncio.Event) -> AsyncIterator[Tick]:
    options = [option for target in plan.targets for option in addresses(target)]
    with tempfile.NamedTemporaryFile(prefix="load-") as requests:
        for target in plan.targets:
            for user in plan.users:
                requests.write(plan.request(target, user) + b"\0")
        requests.flush()
        process = await asyncio.create_subprocess_exec(
            program,
            *options,
            *("--streams", str(plan.streams), "--seconds", str(plan.seconds), "--ramp", str(plan.ramp_s)),
            *("--silence", str(plan.silence_s), "--users", str(len(plan.users)), "--requests", requests.name),
            stdout=subprocess.PIPE,
            limit=1 << 20,
            # What a terminal sends is for us: it is told by us.
            start_new_session=True,
        )
        assert process.stdout
        stopping = asyncio.create_task(terminate(process, stopped))
        try:
            left: dict[int, str] = {}
            async for line in process.stdout:
                said = json.loads(line)
                if "reply" in said:
                    left[said["stream"]] = said["reply"]
                else:
                    yield Tick([Figures.read(figures) for figures in said["figures"]], said["cpu_s"])
            if code := await process.wait():
                raise LoadError(f"the generator has ended with {code}: try --python")
            await stop_replies(plan, left)
        finally:
            stopping.cancel()
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def terminate(process: asyncio.subprocess.Process, stopped: asyncio.Event) -> None:
    await stopped.wait()
    with suppress(ProcessLookupError):
        process.terminate()


async def run(plan: Plan, generator: Generator, stopped: asyncio.Event, told: Callable[[Tick], None]) -> None:
    async with aclosing(generator(plan, stopped)) as all_ticks:  # type: ignore[type-var]
        async for tick in all_ticks:
            told(tick)


def raise_descriptors(wanted: int) -> None:
    """Let this process and those that it starts open as many files.

    Raises:
        LoadError: that is more than it may.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise LoadError(f"{wanted} descriptors are needed, and ulimit -Hn is {hard}: ask for fewer streams")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
