"""`python -m app`: settings, logs, database, serve."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from app import logs
from app.db import migrate
from app.errors import StartError
from app.server import create_app, serve
from app.settings import Settings
from app.store import DEMO_ORG_ID, DEMO_USER_ID


def main() -> None:
    signals = Signals()
    try:
        settings = Settings.from_environ(os.environ)
        logs.configure(settings.log_level)
        with listen(settings) as listener, database(settings) as settings:
            assert settings.database_url is not None
            migrate(settings.database_url, timeout_s=settings.db_timeout_s)
            asyncio.run(run(settings, listener, signals))
    except StartError as exc:
        sys.exit(f"llm-app: {exc}")


async def run(settings: Settings, listener: socket.socket, signals: Signals) -> None:
    stop = signals.take()
    greet(settings, listener)
    await serve(create_app(settings), listener, stop)


class Signals:
    """SIGTERM and SIGINT: at the start they end the process, later they ask it once to stop."""

    def __init__(self) -> None:
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def take(self) -> asyncio.Event:
        """Return the event that is set from now on, in place of the end of the process."""
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        return self._stop

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._loop is None or self._stop is None:
            # Unwinds the start, and so stops an embedded PostgreSQL.
            sys.exit(0)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)


def listen(settings: Settings) -> socket.socket:
    """Return a socket bound to the address, so that a taken port shows before a database is started."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise StartError(f"PORT is {settings.port}, which is taken, expected a free one") from None
        raise StartError(f"cannot listen on {settings.host}:{settings.port}: {exc.strerror}") from None
    return listener


@contextmanager
def database(settings: Settings) -> Iterator[Settings]:
    """Give the settings with the URL of a database that runs: the one they name, or the embedded one."""
    if settings.database_url is not None:
        yield settings
        return
    # Not installed where it is not needed, as in the container.
    from app.embedded import postgres

    with postgres(settings.data_dir) as url:
        seed_demo = settings.seed_demo is not False
        yield replace(settings, database_url=url, seed_demo=seed_demo)


def greet(settings: Settings, listener: socket.socket) -> None:
    """Say on the terminal where to go; the logs have stdout to themselves."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    elif ":" in host:
        host = f"[{host}]"
    base = f"http://{host}:{port}"
    lines = ["", f"  Test page  {base}/"]
    if settings.seed_demo:
        lines += [
            "  Try        curl -N " + f"{base}/chat/stream \\",
            f"               -H 'x-org-id: {DEMO_ORG_ID}' \\",
            f"               -H 'x-user-id: {DEMO_USER_ID}' \\",
            """               -H 'content-type: application/json' -d '{"message": "Hello"}'""",
        ]
    print(*lines, "  Stop       Ctrl-C", "", sep="\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
