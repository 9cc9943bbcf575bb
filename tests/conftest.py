"""Fixtures: one real PostgreSQL, an org of its own for each test, servers on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from serving import StartServer, new_postgres, serving
from support import Rows, Tenant


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


@pytest.fixture(params=["same server", "other server"])
def elsewhere(request: pytest.FixtureRequest) -> bool:
    return request.param == "other server"
