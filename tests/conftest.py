"""Fixtures: one real PostgreSQL, an org of its own for each test, servers on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from processes import Processes
from serving import StartServer, new_postgres, serving
from support import Clock, Rows, Tenant

from app.storage.db import Database
from app.storage.statements import Statement


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with new_postgres(tmp_path_factory.mktemp("postgres") / "data") as url:
        yield url


@pytest.fixture(scope="session")
def rows(postgres_url: str) -> Iterator[Rows]:
    rows = Rows(postgres_url)
    yield rows
    rows.close()


@pytest.fixture
def tenant(rows: Rows) -> Tenant:
    return rows.tenant()


@pytest.fixture
async def start_server(postgres_url: str) -> AsyncIterator[StartServer]:
    async with serving(postgres_url) as start:
        yield start


@pytest.fixture
async def server(start_server: StartServer) -> TestServer:
    """A server as it comes, but for the delays of the model."""
    return await start_server()


@pytest.fixture
async def client(server: TestServer, aiohttp_client: Any) -> TestClient:
    return await aiohttp_client(server)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of those that servers run, but for what shows that they live; to be asked for before a server."""
    ran: list[str] = []
    run = Database.run

    async def noted(self: Database, statement: Statement, params: Any) -> Any:
        if statement.name not in ("turn_interrupt", "server_lock"):
            ran.append(statement.name)
        return await run(self, statement, params)

    monkeypatch.setattr(Database, "run", noted)
    return ran


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What servers call each other for about once a second, they do fifty times as often.

    An answer has more time: it may be that nobody is there, but not that a busy machine is a moment late.
    """
    monkeypatch.setattr("app.replies.mirrors.CALL_AGAIN_S", 0.02)
    monkeypatch.setattr("app.replies.elsewhere.ANSWER_S", 0.2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that leases go by: it stands unless a test sets it."""
    clock = Clock()
    monkeypatch.setattr("app.replies.lease.now_s", clock)
    return clock


@pytest.fixture(params=["same server", "other server"])
def elsewhere(request: pytest.FixtureRequest) -> bool:
    return request.param == "other server"


@pytest.fixture
def start(postgres_url: str) -> Iterator[Processes]:
    processes = Processes()
    yield processes
    processes.close()
