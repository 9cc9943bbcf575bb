"""The schema: each start brings it up to date."""

from __future__ import annotations

import time

import psycopg2
import yoyo
from psycopg2.extensions import parse_dsn

from app.errors import StartError
from app.settings import DATABASE_URL
from app.storage.statements import SQL

# Any 64-bit number of our own: held while migrating, so that of servers started at once one migrates.
MIGRATION_LOCK = 7_310_579_421
MIGRATION_WAIT_S = 60.0


def migrate(url: str, *, timeout_s: float) -> None:
    """Bring the schema up to date. Blocks.

    Raises:
        StartError: the database cannot be reached within `timeout_s`, or another server keeps migrating it.
    """
    try:
        parse_dsn(url)
    except psycopg2.ProgrammingError:
        # Its text quotes the URL, and so the password.
        raise StartError(f"DATABASE_URL is (not shown), expected {DATABASE_URL}") from None
    try:
        guard = psycopg2.connect(url, connect_timeout=max(2, int(timeout_s)))
    except psycopg2.OperationalError as exc:
        reason = " ".join(str(exc).split())
        raise StartError(f"the database of DATABASE_URL cannot be reached: {reason}") from None
    try:
        wait_for_lock(guard)
        apply(url)
    except psycopg2.Error as exc:
        reason = " ".join(str(exc).split())
        hint = "; may its user create tables?" if isinstance(exc, psycopg2.ProgrammingError) else ""
        raise StartError(f"the database cannot be migrated: {reason}{hint}") from None
    finally:
        guard.close()


def wait_for_lock(guard: psycopg2.extensions.connection) -> None:
    guard.autocommit = True
    deadline_s = time.monotonic() + MIGRATION_WAIT_S
    with guard.cursor() as cursor:
        while True:
            # Not pg_advisory_lock: no signal is handled while libpq waits.
            cursor.execute("select pg_try_advisory_lock(%s)", (MIGRATION_LOCK,))
            if cursor.fetchall()[0][0]:
                return
            if time.monotonic() > deadline_s:
                raise StartError(f"another server has been migrating for {MIGRATION_WAIT_S:g} s")
            time.sleep(0.1)


def apply(url: str) -> None:
    """Apply the migrations that are missing. The lock must be held."""
    migrations = yoyo.read_migrations(str(SQL / "schema"))
    backend = yoyo.get_backend(url)
    try:
        # Under our lock, yoyo's own can only be what a killed server left behind.
        backend.break_lock()
        with backend.lock():
            backend.ensure_internal_schema_updated()
            for migration in backend.to_apply(migrations):
                # Not apply_migrations, which notes a migration after it is committed: who is killed between
                # the two finds the tables there at each start to come.
                with backend.transaction():
                    migration.load()
                    for step in migration.steps:
                        step.apply(backend)
                    backend.mark_one(migration)
    finally:
        backend.connection.close()
