"""What the tests share: one real PostgreSQL, an org of its own for each test, servers on real sockets."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
from aiohttp.test_utils import TestServer

from app.db import migrate
from app.embedded import postgres
from app.model import Model
from app.server import create_app
from app.settings import Settings

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Tenant:
    """A user and the org that they belong to."""

    org_id: str
    user_id: str

    @property
    def headers(self) -> dict[str, str]:
        return {"x-org-id": self.org_id, "x-user-id": self.user_id}

    @property
    def query(self) -> dict[str, str]:
        return {"orgId": self.org_id, "userId": self.user_id}


class Rows:
    """Reads and writes the test database, beside the server."""

    def __init__(self, url: str) -> None:
        psycopg2.extras.register_uuid()
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def __call__(self, statement: str, *params: object) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, params)
            return cursor.fetchall() if cursor.description else []

    def messages(self, org_id: str) -> list[tuple[Any, ...]]:
        """Return (role, content, status) of an org's messages, in order."""
        return self(
            "select role, content, status from messages where org_id = %s order by created_at, position", org_id
        )

    def tenant(self, org_id: str | None = None) -> Tenant:
        """Return a new user, of a new org if none is given."""
        tenant = Tenant(org_id or str(uuid.uuid4()), str(uuid.uuid4()))
        self("insert into orgs (id, name) values (%s, 'Test') on conflict do nothing", tenant.org_id)
        self(
            "insert into users (org_id, id, email) values (%s, %s, %s)",
            tenant.org_id,
            tenant.user_id,
            f"{tenant.user_id}@example.com",
        )
        return tenant

    def close(self) -> None:
        self._connection.close()


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


StartServer = Callable[..., Awaitable[TestServer]]


@pytest.fixture
async def start_server(postgres_url: str) -> AsyncIterator[StartServer]:
    """Give a function that starts a server on a free port: `start_server(model=…, heartbeat_s=…, …)`."""
    servers: list[TestServer] = []

    async def start(*, model: Model | None = None, **settings: Any) -> TestServer:
        settings = {"database_url": postgres_url, "sim_delay_ms": (0.0, 0.0)} | settings
        server = TestServer(create_app(Settings(**settings), model=model))
        await server.start_server(shutdown_timeout=1)
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def server(start_server: StartServer) -> TestServer:
    """A server as it comes, but for the delays of the model."""
    return await start_server()


class RawClient:
    """A TCP connection, for exact bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, server: TestServer) -> RawClient:
        return cls(*await asyncio.open_connection(server.host, server.port))

    async def __aenter__(self) -> RawClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    def send(self, request: bytes) -> None:
        self.writer.write(request)

    async def read_head(self) -> tuple[bytes, dict[bytes, bytes]]:
        """Return the status line and the headers, their names in lower case."""
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).rstrip().split(b"\r\n")
        pairs = (line.split(b": ", 1) for line in lines)
        return status, {name.lower(): value for name, value in pairs}

    async def read_chunk(self) -> bytes:
        """Return the next chunk of a chunked body, b"" at its end."""
        size = int(await self.reader.readline(), 16)
        chunk = await self.reader.readexactly(size + 2)
        assert chunk.endswith(b"\r\n")
        return chunk[:-2]

    async def read_chunks(self) -> list[bytes]:
        chunks = []
        while chunk := await self.read_chunk():
            chunks.append(chunk)
        return chunks

    def reset(self) -> None:
        """Close with an RST in place of a FIN."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.close()


def post(path: str, body: bytes, tenant: Tenant, *, version: str = "1.1", headers: str = "") -> bytes:
    """Return a POST of JSON as it goes over the wire."""
    return (
        f"POST {path} HTTP/{version}\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n"
    ).encode() + body
