"""Statements run, and database errors made ours. aiopg is known to this file and to `pool.py` alone."""

from __future__ import annotations

import asyncio
import logging
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiopg
import psycopg2
from aiohttp import web
from psycopg2.errors import QueryCanceled, ReadOnlySqlTransaction
from psycopg2.extensions import parse_dsn

from app.errors import ApiError
from app.storage.pool import Pool, PoolClosed, Session
from app.storage.statements import Statement, load

log = logging.getLogger(__name__)

# Nothing is under way by then: what still holds a connection has hung.
CLOSE_TIMEOUT_S = 1.0

# A machine that dies says no word, and by default PostgreSQL keeps its locks for two hours: also the one by which
# a server shows that it lives. So each side asks after 4 s of silence, gives the other up after 10 s, and as long
# after it has sent what is never received (RFC 5482), when no keepalive goes out. Unix sockets ignore them.
KEEPALIVES: dict[str, Any] = {"keepalives_idle": 4, "keepalives_interval": 2, "keepalives_count": 3}
TCP_USER_TIMEOUT_MS = 10_000


class DatabaseAway(ApiError):
    """503. `sent` tells whether the statement was sent, and so may have been carried out."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__(
            503,
            "Database unavailable",
            "The database did not answer; try again.",
            headers={"Retry-After": "1"},
        )
        self.sent = sent


def is_not_a_canceled_query(record: logging.LogRecord) -> bool:
    """Keep aiopg's traceback of each statement that PostgreSQL gave up out of the log: we log it as ours."""
    return not (record.exc_info and isinstance(record.exc_info[1], QueryCanceled))


logging.getLogger("asyncio").addFilter(is_not_a_canceled_query)


async def connect(url: str, application_name: str, timeout_s: float) -> aiopg.Connection:
    """Connect within `timeout_s`, after which PostgreSQL gives up a statement of this connection, too."""
    settings = {
        "statement_timeout": int(timeout_s * 1000),
        # Each statement is written for one plan, whatever its parameters; so none is planned twice.
        "plan_cache_mode": "force_generic_plan",
        **{f"tcp_{name}": value for name, value in KEEPALIVES.items()},
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
    }
    options = [parse_dsn(url).get("options", ""), *(f"-c {name}={value}" for name, value in settings.items())]
    return await aiopg.connect(
        url,
        timeout=timeout_s,
        enable_hstore=False,
        # Ids are the text that headers and JSON have of them.
        enable_uuid=False,
        application_name=application_name,
        options=" ".join(options),
        **KEEPALIVES,
        tcp_user_timeout=TCP_USER_TIMEOUT_MS,
    )


class Database:
    """Runs the statements in `sql/`, each in a transaction of its own.

    Waits at most `timeout_s` for a connection, then as long for the answer; PostgreSQL itself gives a
    statement up after the same time, because a client that stops waiting does not stop it.
    """

    def __init__(self, url: str, *, pool_size: int, timeout_s: float) -> None:
        self.statements = load()
        self._prepares = ";\n".join(statement.prepare() for statement in self.statements.values())
        self._executes = {name: statement.execute() for name, statement in self.statements.items()}
        # Each statement's named tuple, made with its first rows.
        self._rows: dict[str, Any] = {}
        self._url = url
        self._timeout_s = timeout_s
        self._pool = Pool(self._connect, size=pool_size, timeout_s=timeout_s)
        self._guard = Pool(self._connect, size=1, timeout_s=timeout_s)

    @property
    def connections_in_use(self) -> int:
        return len(self._pool.used)

    async def close(self) -> None:
        await asyncio.gather(self._pool.close(CLOSE_TIMEOUT_S), self._guard.close(CLOSE_TIMEOUT_S))

    async def run(self, statement: Statement, params: Mapping[str, object]) -> Any:
        """Run a statement and return its result: rows are named tuples.

        It is tried again once where its connection turned out to be dead: before the statement was sent, or
        after, if it may be repeated. The guard's connection, too, is replaced if it is lost, and its locks with it
        are.

        Raises:
            Conflict: as it says.
            DatabaseAway: the database cannot be reached, or took longer than `timeout_s`.
        """
        try:
            return await self._attempt(statement, params)
        except ConnectionLost as exc:
            if exc.sent and not statement.repeatable:
                raise DatabaseAway(sent=True) from None
        try:
            return await self._attempt(statement, params)
        except ConnectionLost as exc:
            raise DatabaseAway(sent=exc.sent) from None

    async def listen(self, channel: str, ready: Callable[[], None]) -> AsyncIterator[str]:
        """Yield what is sent to a channel, on a connection of its own; call `ready` once it is heard.

        Raises:
            OSError: the connection cannot be made, or is lost. What is sent until the next call is not heard.
        """
        try:
            connection = await connect(self._url, "llm-app bell", self._timeout_s)
        except (psycopg2.Error, TimeoutError) as exc:
            raise OSError("no connection") from exc
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(f'listen "{channel}"')
            ready()
            while True:
                yield (await connection.notifies.get()).payload
        except (psycopg2.Error, TimeoutError) as exc:
            raise OSError("connection lost") from exc
        finally:
            await connection.close()

    async def _connect(self) -> Session:
        connection = await connect(self._url, "llm-app", self._timeout_s)
        try:
            session = Session(connection, await connection.cursor())
            await session.cursor.execute(self._prepares)
        except BaseException:
            connection.close()
            raise
        return session

    async def _attempt(self, statement: Statement, params: Mapping[str, object]) -> Any:
        pool = self._guard if statement.on_guard else self._pool
        task = asyncio.current_task()
        sent = False
        try:
            session = await pool.take()
            try:
                sent = True
                return statement.result(await self._execute(session, statement, params))
            finally:
                pool.give_back(session)
        except PoolClosed:
            # A save that a stop has no more time for.
            raise ConnectionLost(sent=False) from None
        except TimeoutError:
            _log_outage(statement, f"no answer in {self._timeout_s:g} s")
            raise DatabaseAway(sent=sent) from None
        except asyncio.CancelledError:
            # aiopg raises this too when PostgreSQL gave the statement up; then nobody cancelled this task.
            if task and task.cancelling():
                raise
            _log_outage(statement, "statement_timeout")
            raise DatabaseAway(sent=sent) from None
        except psycopg2.errors.UniqueViolation:
            raise Conflict from None
        except psycopg2.errors.FeatureNotSupported:
            # "cached plan must not change result type": what was prepared is older than the schema, by the other
            # connections as well. Refused before it ran, so that a new one may run it.
            pool.clear()
            raise ConnectionLost(sent=False) from None
        except psycopg2.Error as exc:
            cause = f"{type(exc).__name__} {exc.pgcode or ''}".rstrip()
            if _is_outage(exc):
                _log_outage(statement, cause)
                # After a restart of PostgreSQL the other idle connections are as dead.
                pool.clear()
                raise ConnectionLost(sent=sent) from None
            # Its detail quotes rows, and so message text: only the first line goes on, to the log.
            raise RuntimeError(f"{statement.name}: {cause}: {exc.diag.message_primary}") from None

    async def _execute(
        self, session: Session, statement: Statement, params: Mapping[str, object]
    ) -> Sequence[Any]:
        cursor = session.cursor
        try:
            await cursor.execute(self._executes[statement.name], params)
        except psycopg2.errors.FeatureNotSupported:
            session.connection.close()
            raise
        if cursor.description is None:
            return ()
        if statement.name not in self._rows:
            self._rows[statement.name] = namedtuple("Row", [column.name for column in cursor.description])
        return list(map(self._rows[statement.name]._make, await cursor.fetchall()))


class Conflict(Exception):
    """A unique index does not allow what the statement would have stored."""


class ConnectionLost(Exception):
    """The connection was refused, closed or found dead."""

    def __init__(self, *, sent: bool) -> None:
        self.sent = sent


def _is_outage(exc: psycopg2.Error) -> bool:
    # libpq reports some lost connections as a bare DatabaseError; a server that others have taken over from is
    # read only.
    return (
        isinstance(exc, psycopg2.OperationalError | psycopg2.InterfaceError | ReadOnlySqlTransaction)
        or type(exc) is psycopg2.DatabaseError
    )


def _log_outage(statement: Statement, cause: str) -> None:
    log.warning("Database unavailable", extra={"statement": statement.name, "cause": cause})


DATABASE: web.AppKey[Database] = web.AppKey("database", Database)
