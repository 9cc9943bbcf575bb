"""Fixtures: one real PostgreSQL, an org of its own for each test, servers on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from support import RawClient, Rows, Tenant

from app.db import migrate
from app.embedded import postgres
from app.model import Model
from app.server import create_app
from app.settings import Settings


class Server(TestServer):
    """aiohttp's, but run as `app.server.serve` runs it: a client that leaves cancels no handler."""

    async def _make_runner(self, **kwargs: Any) -> web.BaseRunner:
        return web.AppRunner(self.app, **kwargs | {"handler_cancellation": False, "access_log": None})


StartServer = Callable[..., Awaitable[TestServer]]


@contextmanager
def new_postgres(folder: Path) -> Iterator[str]:
    """Run an embedded PostgreSQL on a new folder, migrated."""
    with postgres(folder) as url:
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            # Nothing here outlives the test run, so nothing need reach the disk.
            connection.cursor().execute("alter system set fsync = off")
            connection.cursor().execute("select pg_reload_conf()")
        migrate(url, timeout_s=10)
        yield url


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


@asynccontextmanager
async def serving(postgres_url: str) -> AsyncIterator[StartServer]:
    """Give a function that starts a server on a free port: `start(model=…, heartbeat_s=…, …)`."""
    servers: list[TestServer] = []

    async def start(*, model: Model | None = None, **settings: Any) -> TestServer:
        no_limits = {"user_stream_limit": 0, "user_turns_per_minute": 0}
        settings = {"database_url": postgres_url, "sim_delay_ms": (0.0, 0.0)} | no_limits | settings
        server = Server(create_app(Settings(**settings), model=model))
        await server.start_server(shutdown_timeout=1)
        servers.append(server)
        return server

    yield start
    while RawClient.opened:
        await RawClient.opened.pop().close()
    for server in servers:
        await server.close()


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
