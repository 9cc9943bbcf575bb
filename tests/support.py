"""What the tests are written with: tenants, rows, models, raw connections."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import psycopg2
import pytest
from aiohttp.test_utils import TestServer

from app.models import Conversation, Model, Piece
from app.storage.store import DEMO_ORG_ID


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

    @contextmanager
    def locked(self, table: str, mode: str = "exclusive") -> Iterator[None]:
        """Keep others from writing to a table."""
        self("begin")
        self(f"lock table {table} in {mode} mode")
        try:
            yield
        finally:
            self("commit")

    def waiting(self) -> int:
        """Return how many others wait for the lock of a table."""
        return len(self("select 1 from pg_locks where not granted and locktype = 'relation'"))

    def forget_demo(self) -> None:
        """Take the demo org and all that is in it out of the database."""
        for table in ("turn_keys", "tickets"):
            self(f"delete from {table} where org_id = %s", DEMO_ORG_ID)
        for table, key in (("messages", "org_id"), ("chats", "org_id"), ("users", "org_id"), ("orgs", "id")):
            self(f"delete from {table} where {key} = %s", DEMO_ORG_ID)

    def close(self) -> None:
        self._connection.close()


def says(*pieces: Piece | BaseException) -> Model:
    """Return a model that says these pieces at once, and raises what is an exception."""

    async def model(conversation: Conversation) -> AsyncIterator[Piece]:
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    return model


class Clock:
    """Says what it is set to, in seconds."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Gated:
    """A model that says a piece for each `go()`, and tells what became of it.

    It says `piece` for ever, or each of `pieces` once; then it ends.
    """

    def __init__(self, piece: str = "word ", pieces: Iterable[str] | None = None) -> None:
        self.pieces = itertools.repeat(piece) if pieces is None else pieces
        self.asked = asyncio.Event()
        self.closed = asyncio.Event()
        self.said = 0
        self._gate = asyncio.Semaphore(0)

    def go(self, times: int = 1) -> None:
        for _ in range(times):
            self._gate.release()

    async def __call__(self, conversation: Conversation) -> AsyncIterator[str]:
        self.asked.set()
        try:
            for piece in self.pieces:
                await self._gate.acquire()
                self.said += 1
                yield piece
        finally:
            self.closed.set()


def base(server: TestServer) -> str:
    """Return its URL, to which paths are added."""
    return f"http://{server.host}:{server.port}"


def events(body: bytes) -> list[dict[str, Any]]:
    """Return the payloads of a stream of one-line events, comments left out."""
    blocks = body.replace(b": ping\n", b"").decode("ascii").split("\n\n")
    assert blocks.pop() == "", "the stream ends in a blank line"
    return [
        json.loads(line.removeprefix("data: "))
        for block in blocks
        for line in block.split("\n")
        if line.startswith("data: ")
    ]


def logged(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == message]


def leave_out(why: str) -> NoReturn:
    """Skip a test, but not in CI, which has what it needs."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(f"LEFT OUT: {why}")


def tool(name: str, package: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        leave_out(f"there is no {name} (Debian: apt-get install {package})")
    return path


async def eventually(check: Callable[[], Any], timeout_s: float = 10) -> Any:
    """Return the first true value of `check`, asked again and again."""
    async with asyncio.timeout(timeout_s):
        while not (value := check()):
            await asyncio.sleep(0.005)
    return value


class RawClient:
    """A TCP connection, for exact bytes. Closed at the end of its test at the latest."""

    opened: ClassVar[list[RawClient]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, server: TestServer) -> RawClient:
        client = cls(*await asyncio.open_connection(server.host, server.port))
        cls.opened.append(client)
        return client

    async def __aenter__(self) -> RawClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
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
        f"POST {path} HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n"
    ).encode() + body


# A text with all of Markdown that the page knows.
EVERYTHING = """\
# A heading

A paragraph with *emphasis*, **strong *and both***, `code`, ~~no~~, [a link](https://example.com/a_b "title"), a
https://example.com/path, <https://example.com/auto>, ![an image](https://example.com/i.png) and an &amp;.\\
A line of its own.

Setext
------
Intro:
- one
- two
  - nested `code`
  - more

    a paragraph of it

3. three
4. four

> A quote,
> with a list:
>
> 1. first
> 2. second

```python
def f(x):

    return x * 2
```

    indented

| left | right |
|:-----|------:|
| a    | **1** |
| b\\|c | 2     |
| d |

[label]: https://example.com/label
The end, [label].

---

Last
"""
