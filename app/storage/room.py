"""Whether the connections of all processes fit into the database."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import psycopg2

from app.errors import StartError
from app.settings import OWN_CONNECTIONS, POOL_SIZE, Settings
from app.storage.connect import connect_blocking, one_line

# -1 means no limit. A superuser is held to none but the first.
ROOM = """
select current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true), '0')::int,
       case when rolsuper then -1 else rolconnlimit end,
       case when rolsuper then -1 else datconnlimit end
from pg_roles, pg_database
where rolname = current_user and datname = current_database()
"""


def fit(settings: Settings) -> Settings:
    """Return the settings with a pool that fits for each worker. Blocks.

    DB_POOL_SIZE=auto takes no more than half of what the database has room for: the server that is to follow this
    one starts beside it.

    Raises:
        StartError: they do not fit, or the database does not answer.
    """
    limits = limits_of(settings)
    room = min(limits.values())
    pool_size = settings.db_pool_size
    if not pool_size:
        pool_size = max(1, min(POOL_SIZE, room // (2 * settings.workers) - OWN_CONNECTIONS))
    wanted = settings.workers * (pool_size + OWN_CONNECTIONS)
    if wanted > room:
        said = ", ".join(f"{name} {limit}" for name, limit in limits.items())
        raise StartError(
            f"WORKERS x (DB_POOL_SIZE + {OWN_CONNECTIONS}) is {settings.workers} x {pool_size + OWN_CONNECTIONS} ="
            f" {wanted} connections, expected at most {room}; the database allows: {said}"
        )
    return replace(settings, db_pool_size=pool_size)


def limits_of(settings: Settings) -> dict[str, int]:
    """Return how many connections there may be, by what limits them."""
    try:
        assert settings.database_url is not None
        with (
            closing(connect_blocking(settings.database_url, settings.db_timeout_s)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(ROOM)
            [(most, reserved, role, database)] = cursor.fetchall()
    except psycopg2.Error as exc:
        raise StartError(f"the database of DATABASE_URL cannot be asked for its room: {one_line(exc)}") from None
    limits = {"max_connections less reserved ones": most - reserved, "its user": role, "the database": database}
    return {name: limit for name, limit in limits.items() if limit >= 0}
