"""Statements run, and database errors made ours. aiopg is known to this file, `connect.py` and `pool.py` alone."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, namedtuple
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiopg
import psycopg2
from aiohttp import web
from psycopg2.errors import DeadlockDetected, FeatureNotSupported, QueryCanceled, ReadOnlySqlTransaction

from app.errors import ApiError
from app.storage.connect import connect, one_line
from app.storage.pool import Pool, PoolClosed, Session
from app.storage.statements import Constants, Statement, load

log = logging.getLogger(__name__)

# Nothing is under way by then: what still holds a connection has hung.
CLOSE_TIMEOUT_S = 1.0


class DatabaseAway(ApiError):
    """503. `sent`: the statement was sent, and so may have been carried out. `cause`: for operators."""

    def __init__(self, *, sent: bool, cause: str = "no answer") -> None:
        super().__init__(
            503,
            "Database unavailable",
            "The database did not answer; try again.",
            headers={"Retry-After": "1"},
        )
        self.sent = sent
        self.cause = cause


class StatementRefused(Exception):
    """PostgreSQL has refused a statement, and would again."""


def is_not_a_canceled_query(record: logging.LogRecord) -> bool:
    """Keep aiopg's traceback of each statement that PostgreSQL gave up out of the log: we log it as ours."""
    return not (record.exc_info and isinstance(record.exc_info[1], QueryCanceled))


logging.getLogger("asyncio").addFilter(is_not_a_canceled_query)


class Database:
    """Runs the statements in `sql/`, each in a transaction of its own.

    Waits at most `timeout_s` for a connection, then as long for the answer; PostgreSQL itself gives a
    statement up after the same time, because a client that stops waiting does not stop it.
    `constants`: parameters that are the same for all calls.
    """

    def __init__(self, url: str, *, pool_size: int, timeout_s: float, constants: Constants | None = None) -> None:
        self.statements = load(constants or {})
        self._prepares = ";\n".join(statement.prepare for statement in self.statements.values())
        # Each statement's named tuple, made with its first rows.
        self._rows: dict[str, Any] = {}
        self._url = url
        self._timeout_s = timeout_s
        self._pool = Pool(self._connect, size=pool_size, timeout_s=timeout_s)
        self._guard = Pool(self._connect, size=1, timeout_s=timeout_s)
        self._bell: aiopg.Connection | None = None
        self.unanswered: Counter[str] = Counter()

    @property
    def connections_in_use(self) -> int:
        return len(self._pool.used)

    async def close(self) -> None:
        await asyncio.gather(self._pool.close(CLOSE_TIMEOUT_S), self._guard.close(CLOSE_TIMEOUT_S))

    async def run(self, statement: Statement, params: Mapping[str, object]) -> Any:
        """Run a statement and return its result: rows are named tuples.

        It is tried again once where PostgreSQL has undone it, or its connection was dead: before it was sent, or
        after, if it may be repeated. The guard's connection is replaced, too; its locks are lost with it.

        Raises:
            DatabaseAway: the database cannot be reached, or took longer than `timeout_s`.
        """
        try:
            return await self._attempt(statement, params)
        except ConnectionLost as exc:
            if exc.sent and not statement.repeatable:
                raise DatabaseAway(sent=True, cause=exc.cause) from None
        try:
            return await self._attempt(statement, params)
        except ConnectionLost as exc:
            raise DatabaseAway(sent=exc.sent, cause=exc.cause) from None

    async def listen(self, channel: str, ready: Callable[[], None]) -> AsyncIterator[str]:
        """Yield what is sent to a channel, on a connection of its own; call `ready` once it is heard.

        Raises:
            OSError: the connection cannot be made, or is lost. What is sent until the next call is not heard.
        """
        try:
            self._bell = await connect(self._url, "llm-app bell", self._timeout_s)
            async with self._bell.cursor() as cursor:
                await cursor.execute(f'listen "{channel}"')
            ready()
            while True:
                yield (await self._bell.notifies.get()).payload
        except (psycopg2.Error, TimeoutError) as exc:
            raise OSError("no connection, or none any more") from exc
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise OSError("given up by PostgreSQL") from None
        finally:
            bell, self._bell = self._bell, None
            # aiopg must not close a connection twice.
            if bell and not bell.closed:
                bell.close()

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
        sent = False
        try:
            session = await pool.take()
            try:
                sent = True
                return statement.result(await self._execute(session, statement, params))
            finally:
                pool.give_back(session)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise DatabaseAway(sent=sent, cause=noted(self.unanswered, statement, "statement_timeout")) from None
        except (PoolClosed, TimeoutError, psycopg2.Error) as exc:
            raise self._ours(statement, pool, exc, sent=sent) from None

    def _ours(
        self, statement: Statement, pool: Pool, exc: PoolClosed | TimeoutError | psycopg2.Error, *, sent: bool
    ) -> Exception:
        """Return the error to raise for one of aiopg's or the pool's, and close what it shows to be dead."""
        if isinstance(exc, PoolClosed):
            return ConnectionLost(sent=False, cause="the pool is closed, no time is left")
        if isinstance(exc, TimeoutError):
            if statement.on_guard:
                # It asks for nothing that takes time: it is PostgreSQL that hangs.
                self._leave()
            cause = f"no answer in {self._timeout_s:g} s"
            return DatabaseAway(sent=sent, cause=noted(self.unanswered, statement, cause))
        cause = cause_of(exc)
        if isinstance(exc, FeatureNotSupported):
            # Before it ran: the schema is newer than what all of these have prepared.
            pool.clear()
            return ConnectionLost(sent=False, cause=cause)
        if isinstance(exc, ReadOnlySqlTransaction):
            # Before it ran, too: another server is the primary now.
            self._leave()
            return ConnectionLost(sent=False, cause=noted(self.unanswered, statement, cause))
        if isinstance(exc, DeadlockDetected):
            # With rows that are deleted by hand: PostgreSQL has undone it, and the connection is sound.
            return ConnectionLost(sent=False, cause=noted(self.unanswered, statement, cause))
        if not is_outage(exc):
            return StatementRefused(f"{statement.name}: {cause}")
        # After a restart of PostgreSQL the other connections are as dead.
        pool.clear()
        return ConnectionLost(sent=sent, cause=noted(self.unanswered, statement, cause))

    async def _execute(
        self, session: Session, statement: Statement, params: Mapping[str, object]
    ) -> Sequence[Any]:
        cursor = session.cursor
        try:
            await cursor.execute(statement.execute, [*map(params.__getitem__, statement.takes)])
        except (FeatureNotSupported, ReadOnlySqlTransaction):
            session.connection.close()
            raise
        if cursor.description is None:
            return ()
        if statement.name not in self._rows:
            self._rows[statement.name] = namedtuple("Row", [column.name for column in cursor.description])
        return list(map(self._rows[statement.name]._make, await cursor.fetchall()))

    def _leave(self) -> None:
        """Close all connections, the bell's too, to a server that hangs or that others have left."""
        self._pool.clear()
        self._guard.clear()
        if self._bell and not self._bell.closed:
            self._bell.close()


class ConnectionLost(Exception):
    """The connection was refused, closed or found dead, or PostgreSQL has not carried the statement out."""

    def __init__(self, *, sent: bool, cause: str) -> None:
        self.sent = sent
        self.cause = cause


def is_cancelled() -> bool:
    """Whether it was this task that was cancelled: aiopg says so, too, where PostgreSQL gave a statement up."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_outage(exc: psycopg2.Error) -> bool:
    # libpq reports some lost connections as a bare DatabaseError.
    return (
        isinstance(exc, psycopg2.OperationalError | psycopg2.InterfaceError) or type(exc) is psycopg2.DatabaseError
    )


def cause_of(exc: psycopg2.Error) -> str:
    """Return what an error of PostgreSQL or libpq says, for the log.

    Not the detail of what PostgreSQL says: it quotes rows, and so message text.
    """
    kind = f"{type(exc).__name__} {exc.pgcode or ''}".rstrip()
    return f"{kind}: {exc.diag.message_primary or one_line(exc)}"


def noted(unanswered: Counter[str], statement: Statement, cause: str) -> str:
    unanswered[statement.name] += 1
    log.warning("Database unavailable", extra={"statement": statement.name, "cause": cause})
    return cause


DATABASE: web.AppKey[Database] = web.AppKey("database", Database)
