"""`python -m app`: settings, logs, database, serve."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from app.signals import end_at_once

    # A Ctrl-C while all the others are imported.
    end_at_once()

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from app import logs
from app.api.site import STOP
from app.descriptors import BACKLOG, fill_standard, raise_limit
from app.errors import StartError
from app.models import Model
from app.server import create_app, serve
from app.settings import MAX_PORT, OWN_CONNECTIONS, Settings
from app.signals import Signals
from app.storage.migrate import migrate
from app.storage.room import fit
from app.storage.store import DEMO_ORG_ID, DEMO_USER_ID
from app.workers import CANNOT_START, STOP_S, Workers

# The seam: a model of your own, in place of the one that the setting names.
OWN_MODEL: Model | None = None


def main() -> None:
    fill_standard()
    signals = Signals()
    lines, code = None, 0
    try:
        settings = Settings.from_environ(os.environ)
        lines = logs.configure(settings.log_level)
        raise_limit()
        if sys.argv[1:] == ["worker"]:
            with listen(settings, shared=True) as listener:
                run(serve_until_signal(settings, listener, signals, is_worker=True))
        else:
            with listen(settings) as listener, database(settings, signals) as settings:
                start(settings, listener, signals)
    except SystemExit:
        # A signal, see `Signals`. It ends as below.
        pass
    except StartError as exc:
        logs.say(f"llm-app: {exc}\n")
        code = CANNOT_START if sys.argv[1:] == ["worker"] else 1
    finally:
        signals.ignore()
        if lines is not None:
            lines.finish()
    # Not sys.exit, which gives signals back their power to kill, and waits for threads: one may hang for minutes,
    # asking for an address.
    os._exit(code)


def start(settings: Settings, listener: socket.socket, signals: Signals) -> None:
    """Bring the database up to date and serve, by this process or by workers, until a signal comes."""
    assert settings.database_url is not None
    migrate(settings.database_url, timeout_s=settings.db_timeout_s)
    settings = fit(settings)
    greet(settings, listener)
    if settings.workers == 1:
        run(serve_until_signal(settings, listener, signals))
    else:
        run_workers(settings, listener, signals)


def run_workers(settings: Settings, listener: socket.socket, signals: Signals) -> None:
    """Run the workers until a signal comes."""
    environ = dict(os.environ, DATABASE_URL=settings.database_url or "", PORT=str(listener.getsockname()[1]))
    environ["SEED_DEMO"] = str(int(settings.seed_demo or False))
    environ["DB_POOL_SIZE"] = str(settings.pool_size)
    # Only workers may share the port.
    listener.close()
    environs = [environ | metrics_port(settings, number) for number in range(settings.workers)]
    workers = Workers(environs, stop_s=settings.stop_delay_s + settings.shutdown_grace_s + STOP_S)
    signals.serving(workers.stop)
    workers.run()


def metrics_port(settings: Settings, number: int) -> dict[str, str]:
    """Return where a worker shows its metrics: whoever is asked answers for itself alone."""
    if not settings.metrics_port:
        # None, or each a free one.
        return {}
    if settings.metrics_port + settings.workers - 1 > MAX_PORT:
        raise StartError(
            f"METRICS_PORT is {settings.metrics_port}, expected at most {MAX_PORT - settings.workers + 1}:"
            f" each of {settings.workers} workers takes the next one"
        )
    return {"METRICS_PORT": str(settings.metrics_port + number)}


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
    app, loop = create_app(settings, model=OWN_MODEL), asyncio.get_running_loop()

    def set_stop() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(app[STOP].set)

    def parent_is_gone() -> None:
        loop.remove_reader(sys.stdin)
        app[STOP].set()

    signals.serving(set_stop)
    if is_worker:
        loop.add_reader(sys.stdin, parent_is_gone)
    await serve(app, listener)


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
                f"PORT is {settings.port}, which is taken: try another, or PORT=0 make run for a free one"
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

    # Twice what is needed: see `fit`.
    connections = max(100, 2 * settings.workers * (settings.pool_size + OWN_CONNECTIONS) + 3)
    with postgres(settings.data_dir, {"max_connections": connections}, uncut=signals.deferred) as url:
        yield replace(settings, database_url=url, seed_demo=settings.seed_demo is not False)


def greet(settings: Settings, listener: socket.socket) -> None:
    """Say on the terminal where to go; the logs have stdout to themselves."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    elif ":" in host:
        host = f"[{host}]"
    base = f"http://{host}:{port}"
    model = "simulated" if settings.model == "sim" else settings.model
    if OWN_MODEL is not None:
        model = "your own"
    lines = ["", f"  Test page  {base}/", f"  Model      {model}"]
    if settings.seed_demo and not settings.checks_tokens:
        lines += [
            "  Try        curl -N " + f"{base}/chat/stream \\",
            f"               -H 'x-org-id: {DEMO_ORG_ID}' \\",
            f"               -H 'x-user-id: {DEMO_USER_ID}' \\",
            """               -H 'content-type: application/json' -d '{"message": "Hello"}'""",
        ]
    logs.say("\n".join([*lines, "  Stop       Ctrl-C", "", ""]))


if __name__ == "__main__":
    main()
