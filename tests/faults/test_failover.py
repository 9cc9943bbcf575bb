"""Two PostgreSQL in synchronous streaming replication: the primary is lost, the standby is promoted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from aiohttp.test_utils import unused_port
from ledger import Server, all_ended, broken_invariants, scale, under_database_faults
from psycopg2.extensions import parse_dsn
from serving import OwnPostgres, new_postgres
from support import Rows, eventually

from app.storage import programs


class Standby:
    """A copy of a primary, which takes what is written there before the writer is told."""

    def __init__(self, folder: Path, primary_url: str) -> None:
        port = unused_port()
        self.place = f"127.0.0.1:{port}"
        self.url = f"postgresql://postgres@{self.place}/llm_app"
        folder.mkdir(mode=0o700)
        self._server = programs.Server(folder, programs.account_for(folder))
        source = primary_url.replace("/llm_app", "/")
        self._server.run("pg_basebackup", "-d", source, "-D", str(folder), "-R", "-c", "fast")
        self._server.launch({"listen_addresses": "127.0.0.1", "port": port})

    def promote(self) -> None:
        self._server.control("promote", 30)

    def stop(self) -> None:
        self._server.control("stop", 30, "-m", "immediate")


@pytest.fixture
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OwnPostgres, str]]:
    folder = tmp_path_factory.mktemp("primary") / "data"
    with new_postgres(folder) as url:
        postgres = OwnPostgres(folder, url)
        with postgres.on_tcp() as tcp_url:
            yield postgres, tcp_url
            with suppress(psutil.NoSuchProcess):
                postgres.thaw()


@pytest.fixture
def standby(primary: tuple[OwnPostgres, str]) -> Iterator[Standby]:
    postgres, url = primary
    standby = Standby(Path(parse_dsn(postgres.url)["host"]).parent / "standby", url)
    with closing(Rows(url)) as rows:
        # Set now, so that it is not copied.
        rows("alter system set synchronous_standby_names = '*'")
        rows("select pg_reload_conf()")
        give_up = time.monotonic() + 10
        while rows("select sync_state from pg_stat_replication") != [("sync",)]:
            assert time.monotonic() < give_up
            time.sleep(0.02)
    yield standby
    standby.stop()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", scale(["killed"], ["killed", "frozen"]))
async def test_when_the_standby_is_promoted_all_servers_go_on_and_nothing_acknowledged_is_lost(
    fault: str,
    primary: tuple[OwnPostgres, str],
    standby: Standby,
    tmp_path: Path,
    say: Callable[..., None],
) -> None:
    postgres, url = primary
    both = url.replace("/llm_app", f",{standby.place}/llm_app?target_session_attrs=read-write")
    servers = []
    try:
        for i in range(2):
            servers.append(Server(both, tmp_path / f"{i}.log", DB_TIMEOUT_S="1"))

        lost_at_s = 0.0

        async def lose() -> None:
            nonlocal lost_at_s
            lost_at_s = time.monotonic()
            await asyncio.to_thread(postgres.kill if fault == "killed" else postgres.freeze)
            await asyncio.to_thread(standby.promote)

        with closing(Rows(url)) as rows:
            clients = await under_database_faults(servers, rows, lose)
        took_s = time.monotonic() - lost_at_s
        with closing(Rows(standby.url)) as rows:
            await all_ended(rows)
            counts = clients.compare(rows)
            # The lock of each server is held here, and its bell heard here.
            locks = "select count(*) from pg_locks where locktype = 'advisory'"
            bells = "select count(*) from pg_stat_activity where application_name = 'llm-app bell'"
            for each in (locks, bells):
                await eventually(lambda each=each: rows(each) == [(len(servers),)])  # type: ignore[misc]
        say(fault=fault, over_after=f"{took_s:.1f}s", **counts)
        assert counts["complete"] > 0
        for server in servers:
            # An end that waits for the database is told to the log.
            assert [line for line in server.errors() if '"Reply not stored yet"' not in line] == []
        assert broken_invariants(standby.url) == {}
        # One that starts now, too.
        servers.append(Server(both, tmp_path / "late.log"))
    finally:
        for server in servers:
            server.close()
