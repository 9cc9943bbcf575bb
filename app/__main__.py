"""`python -m app`: settings, logs, database, serve."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from app import logs
from app.db import migrate
from app.errors import StartError
from app.server import BACKLOG, create_app, serve
from app.settings import Settings
from app.store import DEMO_ORG_ID, DEMO_USER_ID


def main() -> None:
    signals = Signals()
    try:
        settings = Settings.from_environ(os.environ)
        logs.configure(settings.log_level)
        with listen(settings) as listener, database(settings, signals) as settings:
            assert settings.database_url is not None
            migrate(settings.database_url, timeout_s=settings.db_timeout_s)
            run(serve_until_signal(settings, listener, signals))
    except StartError as exc:
        sys.exit(f"llm-app: {exc}")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` in an event loop. Unlike asyncio.run, do not wait for tasks that will not be cancelled."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


async def serve_until_signal(settings: Settings, listener: socket.socket, signals: Signals) -> None:
    stop = signals.take()
    greet(settings, listener)
    await serve(create_app(settings), listener, stop)


class Signals:
    """SIGTERM and SIGINT: at the start they end the process, later they ask it once to stop."""

    def __init__(self) -> None:
        self._deferred = False
        self._received = False
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, they are only noted: what must not be cut short goes here."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            if self._received:
                sys.exit(0)

    def take(self) -> asyncio.Event:
        """Return the event that is set from now on, in place of the end of the process."""
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        return self._stop

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self._received = self._received, True
        if self._loop is not None and self._stop is not None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._stop.set)
        elif not self._deferred and not again:
            # Unwinds the start, and so stops an embedded PostgreSQL.
            sys.exit(0)


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens already, so that a taken port shows before a database is started."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise StartError(f"PORT is {settings.port}, which is taken, expected a free one") from None
        raise StartError(f"cannot listen on {settings.host}:{settings.port}: {exc.strerror}") from None
    return listener


@contextmanager
def database(settings: Settings, signals: Signals) -> Iterator[Settings]:
    """Give the settings with the URL of a database that runs: the one they name, or the embedded one."""
    if settings.database_url is not None:
        yield settings
        return
    # Not installed where it is not needed, as in the container.
    from app.embedded import postgres

    with ExitStack() as stack:
        with signals.deferred():
            url = stack.enter_context(postgres(settings.data_dir))
        yield replace(settings, database_url=url, seed_demo=settings.seed_demo is not False)


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
