"""The schema: each start brings it up to date, of a database that this server can live with."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import closing

import psycopg2
import psycopg2.extensions
import yoyo
from yoyo import internalmigrations
from yoyo.backends.core.postgresql import PostgresqlBackend
from yoyo.connections import parse_uri

from app.errors import StartError
from app.settings import DATABASE_URL
from app.storage.connect import connect, connect_blocking, one_line
from app.storage.statements import SQL

# Any 64-bit number of our own: held while migrating, so that of servers started at once one migrates.
MIGRATION_LOCK = 7_310_579_421
MIGRATION_WAIT_S = 60.0

# So long a migration waits for a table, and gives up: others who want it wait behind the migration, and no signal
# is handled while libpq waits.
TABLE_WAIT_MS = 500

# How often two connections are looked at in turn: a pooler that is busy seldom gives them the same sessions again.
LOOKS = 5


def migrate(url: str, *, timeout_s: float) -> None:
    """Bring the schema up to date. Blocks.

    Raises:
        StartError: the database cannot be reached within `timeout_s`, or is none for this server; or another
            server keeps migrating it.
    """
    try:
        guard = connect_blocking(url, timeout_s)
    except psycopg2.ProgrammingError:
        # Its text quotes the URL, and so the password.
        raise StartError(f"DATABASE_URL is (not shown), expected {DATABASE_URL}") from None
    except psycopg2.OperationalError as exc:
        raise StartError(f"the database of DATABASE_URL cannot be reached: {one_line(exc)}") from None
    with closing(guard):
        encoding = guard.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StartError(
                f"the encoding of the database of DATABASE_URL is {encoding}, expected UTF8:"
                " create database … encoding 'UTF8' template template0"
            )
        asyncio.run(refuse_shared_sessions(url, timeout_s))
        backend = Backend(guard)
        try:
            migrations = yoyo.read_migrations(str(SQL / "schema"))
            while apply_next(backend, migrations):
                pass
        except psycopg2.Error as exc:
            hint = "; may its user create tables?" if isinstance(exc, psycopg2.ProgrammingError) else ""
            raise StartError(f"the database cannot be migrated: {one_line(exc)}{hint}") from None


async def refuse_shared_sessions(url: str, timeout_s: float) -> None:
    """Refuse what lies before PostgreSQL if it gives a connection's session to others between two transactions.

    Raises:
        StartError: it does, or sessions cannot be had.
    """
    mark = secrets.token_hex()
    try:
        async with (
            asyncio.timeout(2 * timeout_s),
            await connect(url, "llm-app start", timeout_s) as marked,
            await connect(url, "llm-app start", timeout_s) as other,
            marked.cursor() as mine,
            other.cursor() as others,
        ):
            await mine.execute(f"set llm_app.start = '{mark}'")
            for _ in range(LOOKS):
                for cursor, expected in ((others, False), (mine, True)):
                    await cursor.execute("select current_setting('llm_app.start', true) = %s", (mark,))
                    [(is_marked,)] = await cursor.fetchall()
                    if bool(is_marked) is not expected:
                        raise StartError(
                            "what lies between this server and PostgreSQL shares sessions among its clients,"
                            " expected one that keeps them (PgBouncer: pool_mode = session)"
                        )
    except TimeoutError:
        raise StartError(f"the database of DATABASE_URL does not answer within {timeout_s:g} s") from None
    except psycopg2.Error as exc:
        raise StartError(f"the database of DATABASE_URL cannot be used: {one_line(exc)}") from None


class Backend(PostgresqlBackend):  # type: ignore[misc]
    """yoyo's, on a connection of ours: it does not understand all URLs that libpq does."""

    def __init__(self, connection: psycopg2.extensions.connection) -> None:
        self._given = connection
        super().__init__(parse_uri("postgresql:"), yoyo.default_migration_table)

    def connect(self, uri: object) -> psycopg2.extensions.connection:
        # yoyo says BEGIN and COMMIT itself.
        self._given.autocommit = True
        return self._given


def apply_next(backend: Backend, migrations: yoyo.migrations.MigrationList) -> bool:
    """Apply the first migration that is missing, in one transaction with the note that it is done.

    Return whether there was one.
    """
    with backend.transaction():
        # It ends with the transaction, however that ends, also where a pooler gives the session to others.
        wait_for_lock(backend)
        backend.execute(f"set local lock_timeout = {TABLE_WAIT_MS}")
        if internalmigrations.needs_upgrading(backend):
            internalmigrations.upgrade(backend)
        for migration in backend.to_apply(migrations):
            migration.load()
            for step in migration.steps:
                step.apply(backend)
            backend.mark_one(migration, log=False)
            return True
    return False


def wait_for_lock(backend: Backend) -> None:
    deadline_s = time.monotonic() + MIGRATION_WAIT_S
    # Not pg_advisory_xact_lock: no signal is handled while libpq waits.
    while not backend.execute(f"select pg_try_advisory_xact_lock({MIGRATION_LOCK})").fetchone()[0]:
        if time.monotonic() > deadline_s:
            raise StartError(f"another server has been migrating for {MIGRATION_WAIT_S:g} s")
        time.sleep(0.1)
