"""How a connection is made: to which of the hosts in `DATABASE_URL`, and with which settings."""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import aiopg
import psycopg2
import psycopg2.extensions
from psycopg2.extensions import parse_dsn

# A machine that dies says no word, and by default PostgreSQL keeps its locks for two hours: also the one by which
# a server shows that it lives. So each side asks after 4 s of silence, gives the other up after 10 s, and as long
# after it has sent what is never received (RFC 5482), when no keepalive goes out. Unix sockets ignore them.
KEEPALIVES: dict[str, Any] = {"keepalives_idle": 4, "keepalives_interval": 2, "keepalives_count": 3}
TCP_USER_TIMEOUT_MS = 10_000

# How long an address may take before the next one is tried beside it (as RFC 8305, Connection Attempt Delay).
NEXT_S = 0.25

Attempt = Callable[[], Coroutine[Any, Any, aiopg.Connection]]


class Connection(aiopg.Connection):
    """aiopg's, which watches no socket that libpq has closed.

    aiopg goes on to watch some: for writing, and where another file has the number by then. The next connection
    whose socket has that number could not be made, or would not be heard.
    """

    @staticmethod
    def _ready(weak_self: weakref.ref[Any]) -> None:
        self = weak_self()
        if self is None:
            return
        watched = self._fileno
        aiopg.Connection._ready(weak_self)
        if watched is not None and (self.closed or self.raw.fileno() != watched):
            self._loop.remove_reader(watched)
            self._loop.remove_writer(watched)
            self._fileno, self._writing = None, False


def parameters(url: str) -> dict[str, str]:
    """Return what libpq connects with.

    Of several hosts only the one that takes writes is of use; the text that it is sent is UTF-8, whatever its role
    or the environment say.

    Raises:
        psycopg2.ProgrammingError: the URL is malformed. Its text quotes the URL.
    """
    return {"target_session_attrs": "read-write"} | parse_dsn(url) | {"client_encoding": "UTF8"}


def connect_blocking(url: str, timeout_s: float) -> psycopg2.extensions.connection:
    """Connect before there is an event loop.

    Raises:
        psycopg2.ProgrammingError: the URL is malformed. Its text quotes the URL.
        psycopg2.OperationalError: no host can be reached.
    """
    options: dict[str, Any] = parameters(url)
    # Of seconds, and two are libpq's least.
    options["connect_timeout"] = max(2, int(timeout_s))
    try:
        connection: psycopg2.extensions.connection = psycopg2.connect(**options)
    except UnicodeDecodeError as exc:
        # What refuses it does so in an encoding of its own.
        raise psycopg2.OperationalError(exc.object.decode(errors="replace")) from None
    return connection


async def connect(url: str, application_name: str, timeout_s: float) -> aiopg.Connection:
    """Connect within `timeout_s`, after which PostgreSQL gives up a statement of this connection, too.

    Raises:
        psycopg2.Error, TimeoutError: no host can be reached. The text says why, for each.
    """
    settings = {
        "statement_timeout": int(timeout_s * 1000),
        # Each statement is written for one plan, whatever its parameters; so none is planned twice.
        "plan_cache_mode": "force_generic_plan",
        **{f"tcp_{name}": value for name, value in KEEPALIVES.items()},
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
    }
    options = {
        **parameters(url),
        "application_name": application_name,
        **KEEPALIVES,
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
        "timeout": timeout_s,
        "enable_hstore": False,
        # Ids are the text that headers and JSON have of them.
        "enable_uuid": False,
    }
    async with asyncio.timeout(timeout_s):
        connection = await first([partial(connect_to, options | place) for place in places(options)])
        try:
            async with connection.cursor() as cursor:
                # Not with the start-up parameter `options`, which PgBouncer refuses.
                await cursor.execute(";".join(f"set {name} = {value}" for name, value in settings.items()))
        except BaseException:
            connection.close()
            raise
    return connection


def places(options: dict[str, Any]) -> list[dict[str, str]]:
    """Return the `host`, `hostaddr` and `port` of each host, as far as they are given (libpq, 32.1.1.3)."""
    given = {key: options[key].split(",") for key in ("host", "hostaddr", "port") if key in options}
    count = max(len(given.get(key, [""])) for key in ("host", "hostaddr"))
    # One port is for all hosts.
    columns = (values * count if len(values) == 1 else values for values in given.values())
    return [dict(zip(given, row, strict=False)) for row in zip(*columns, strict=False)] or [{}]


async def connect_to(options: dict[str, Any]) -> aiopg.Connection:
    """Connect to one host.

    aiopg watches the first socket alone that libpq opens: where the first address of several is dead, it waits
    in vain. So libpq is given one at a time; and a slow name server does not hold up the event loop.
    """
    host = options.get("host", "")
    if options.get("hostaddr") or not host or host.startswith(("/", "@")):
        return await open_(options)
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    return await first([partial(open_, options | {"hostaddr": address}) for address in addresses])


async def open_(options: dict[str, Any]) -> aiopg.Connection:
    return await Connection(None, **options)


async def first(attempts: Sequence[Attempt]) -> aiopg.Connection:
    """Return what the first of the attempts makes that succeeds.

    The next one begins when one has failed, or hangs. While one hangs, those that have failed are made again: a
    standby may be promoted meanwhile.
    """
    ahead, failed = list(attempts), []
    running: dict[asyncio.Task[aiopg.Connection], Attempt] = {}
    causes: dict[str, None] = {}
    try:
        while ahead or running:
            if ahead:
                attempt = ahead.pop(0)
                running[asyncio.create_task(attempt())] = attempt
            done, _ = await asyncio.wait(running, timeout=NEXT_S, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    connection = task.result()
                except (psycopg2.Error, OSError) as exc:
                    failed.append(running.pop(task))
                    causes[one_line(exc)] = None
                else:
                    del running[task]
                    return connection
            if not done and not ahead:
                ahead, failed = failed, []
        raise psycopg2.OperationalError("; ".join(causes))
    finally:
        for task in running:
            task.cancel()
        for late in await asyncio.gather(*running, return_exceptions=True):
            if not isinstance(late, BaseException):
                late.close()


def one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())
