"""Behind a real PgBouncer: with a session for each connection it serves, otherwise it does not start."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from aiohttp.test_utils import unused_port
from ledger import LONG, SEED, DidNotStart, Server, all_ended, broken_invariants, ledger, scale
from psycopg2.extensions import parse_dsn
from support import Rows, eventually, tool

# All else is as it comes.
CONFIG = """
[databases]
llm_app = host={host} dbname=llm_app user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
"""

REFUSED = (
    "llm-app: what lies between this server and PostgreSQL shares sessions among its clients,"
    " expected one that keeps them (PgBouncer: pool_mode = session)\n"
)


@contextmanager
def pgbouncer(folder: Path, database: str, mode: str) -> Iterator[str]:
    """Run PgBouncer before a database, and give the URL there."""
    program, port = tool("pgbouncer", "pgbouncer"), unused_port()
    config = folder / "pgbouncer.ini"
    config.write_text(CONFIG.format(host=parse_dsn(database)["host"], port=port, mode=mode))
    # It refuses to run as root; and the folder of the socket is the embedded PostgreSQL's own.
    as_user = ["-u", "pgserver"] if os.geteuid() == 0 else []
    url = f"postgresql://app@127.0.0.1:{port}/llm_app"
    with config.open() as given, (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen([program, *as_user, "/dev/stdin"], stdin=given, stdout=log, stderr=log)
    try:
        give_up = time.monotonic() + 10
        while True:
            assert process.poll() is None, (folder / "pgbouncer.log").read_text()
            try:
                psycopg2.connect(url, connect_timeout=2).close()
                break
            except psycopg2.OperationalError:
                assert time.monotonic() < give_up, (folder / "pgbouncer.log").read_text()
                time.sleep(0.02)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bouncer(tmp_path: Path, database: str, request: pytest.FixtureRequest) -> Iterator[str]:
    with pgbouncer(tmp_path, database, request.param) as url:
        yield url


def locks(rows: Rows) -> list[tuple[object, ...]]:
    return rows("select pid, classid, objid from pg_locks where locktype = 'advisory'")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bouncer", ["session"], indirect=True)
async def test_session_mode_serves_as_postgresql_does(
    bouncer: str, own_rows: Rows, database: str, tmp_path: Path, say: Callable[..., None]
) -> None:
    count = scale(20, 300)
    with ExitStack() as stack:
        # Together no more connections than default_pool_size.
        servers = [Server(bouncer, tmp_path / f"{i}.log", DB_POOL_SIZE="5") for i in range(2)]
        for server in servers:
            stack.callback(server.close)
        async with ledger(servers, own_rows.tenant(), SEED) as clients:
            entries = [clients.entry(LONG) for _ in range(count)]
            # Many come back to the other server, and so by the bells.
            await asyncio.gather(*(clients.until_done(entry, cuts=2) for entry in entries))
            assert clients.compare(own_rows) == {"complete": count}
        assert len(locks(own_rows)) == 2
        for server in servers:
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.end) == 0
        assert [server.errors() for server in servers] == [[], []]
        # PgBouncer keeps its own connections: what was held on them is given back.
        await eventually(lambda: locks(own_rows) == [])
    await all_ended(own_rows)
    say(streams=count)
    assert broken_invariants(database) == {}


@contextmanager
def traffic(url: str, clients: int) -> Iterator[None]:
    """Let others use the same pooler, one short statement after the other."""
    over = threading.Event()

    def talk() -> None:
        with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not over.is_set():
                cursor.execute("select pg_sleep(0.001)")

    threads = [threading.Thread(target=talk) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("others", scale([0], [0, 8]))
@pytest.mark.parametrize("bouncer", ["transaction", "statement"], indirect=True)
def test_other_modes_are_refused_in_one_line_and_nothing_is_left_behind(
    bouncer: str, own_rows: Rows, tmp_path: Path, others: int
) -> None:
    with traffic(bouncer, others):
        for i in range(scale(1, 20)):
            began_s = time.monotonic()
            with pytest.raises(DidNotStart):
                Server(bouncer, tmp_path / f"{i}.log")
            assert (tmp_path / f"{i}.log").read_text() == REFUSED
            assert time.monotonic() - began_s < 10
            assert locks(own_rows) == []


@pytest.mark.parametrize("bouncer", ["session"], indirect=True)
def test_pooler_whose_sessions_are_all_taken_is_one_line_within_the_timeout(
    bouncer: str, own_rows: Rows, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            taken = stack.enter_context(closing(psycopg2.connect(bouncer)))
            taken.cursor().execute("select 1")
        with pytest.raises(DidNotStart):
            Server(bouncer, tmp_path / "log", DB_TIMEOUT_S="1")
    line = "llm-app: the database of DATABASE_URL does not answer within 1 s\n"
    assert (tmp_path / "log").read_text() == line
