"""`python -m app`: settings, logs, database, serve."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from app import logs
from app.errors import StartError
from app.server import BACKLOG, create_app, serve
from app.settings import Settings
from app.storage.migrate import migrate
from app.storage.store import DEMO_ORG_ID, DEMO_USER_ID
from app.workers import Workers


def main() -> None:
    signals = Signals()
    try:
        settings = Settings.from_environ(os.environ)
        logs.configure(settings.log_level)
        if sys.argv[1:] == ["worker"]:
            with listen(settings, shared=True) as listener:
                run(serve_until_signal(settings, listener, signals, is_worker=True))
            return
        with listen(settings) as listener, database(settings, signals) as settings:
            assert settings.database_url is not None
            migrate(settings.database_url, timeout_s=settings.db_timeout_s)
            greet(settings, listener)
            if settings.workers == 1:
                run(serve_until_signal(settings, listener, signals))
            else:
                run_workers(settings, listener, signals)
    except StartError as exc:
        sys.exit(f"llm-app: {exc}")


def run_workers(settings: Settings, listener: socket.socket, signals: Signals) -> None:
    """Run the workers until a signal comes."""
    environ = dict(os.environ, DATABASE_URL=settings.database_url or "", PORT=str(listener.getsockname()[1]))
    environ["SEED_DEMO"] = str(int(settings.seed_demo or False))
    # Only workers may share the port.
    listener.close()
    workers = Workers(settings.workers, environ)
    signals.on_receipt = workers.stop
    workers.run()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` in an event loop. Unlike asyncio.run, do not wait for tasks that will not be cancelled."""
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


async def serve_until_signal(
    settings: Settings, listener: socket.socket, signals: Signals, *, is_worker: bool = False
) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def set_stop() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    def parent_is_gone() -> None:
        loop.remove_reader(sys.stdin)
        stop.set()

    signals.on_receipt = set_stop
    if is_worker:
        loop.add_reader(sys.stdin, parent_is_gone)
    await serve(create_app(settings), listener, stop)


class Signals:
    """SIGTERM and SIGINT: at the start they end the process, later they do what `on_receipt` says."""

    def __init__(self) -> None:
        self.on_receipt: Callable[[], None] | None = None
        self._deferred = False
        self._received = False
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

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self._received = self._received, True
        if self.on_receipt is not None:
            self.on_receipt()
        elif not self._deferred and not again:
            # Unwinds the start, and so stops an embedded PostgreSQL.
            sys.exit(0)


def listen(settings: Settings, *, shared: bool = False) -> socket.socket:
    """Return a socket that listens already, so that a taken port shows before a database is started.

    A `shared` one lets others that are listen on the same port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Linux, RFC 5482; each connection inherits it. A peer that vanished without a word looks served until
            # megabytes of kernel buffers are full, and one that stops reading a page would keep it for ever.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(settings.write_timeout_s * 1000))
        listener.bind(address)
        refuse_strangers(settings, listener)
        listener.listen(BACKLOG)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise StartError(
                f"PORT is {settings.port}, which is taken: try another, as in PORT=3001 make run"
            ) from None
        raise StartError(f"HOST is {settings.host}, where nothing can listen: {exc.strerror}") from None
    return listener


def refuse_strangers(settings: Settings, listener: socket.socket) -> None:
    """Refuse to listen where others than this machine reach it, if whoever asks is believed."""
    address = listener.getsockname()[0]
    if not settings.believes_anybody or ipaddress.ip_address(address).is_loopback:
        return
    raise StartError(
        f"HOST is {settings.host}, which other machines reach, and x-org-id and x-user-id would be believed:"
        " set JWT_SECRET or JWT_JWKS_URL, or TRUST_IDENTITY_HEADERS=1 if a gateway sets these headers"
    )


@contextmanager
def database(settings: Settings, signals: Signals) -> Iterator[Settings]:
    """Give the settings with the URL of a database that runs: the one they name, or the embedded one."""
    if settings.database_url is not None:
        yield settings
        return
    # Not installed where it is not needed, as in the container.
    from app.storage.embedded import postgres

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
    if settings.seed_demo and not settings.checks_tokens:
        lines += [
            "  Try        curl -N " + f"{base}/chat/stream \\",
            f"               -H 'x-org-id: {DEMO_ORG_ID}' \\",
            f"               -H 'x-user-id: {DEMO_USER_ID}' \\",
            """               -H 'content-type: application/json' -d '{"message": "Hello"}'""",
        ]
    print(*lines, "  Stop       Ctrl-C", "", sep="\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
