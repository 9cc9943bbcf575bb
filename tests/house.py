"""A reply, the server that has it, and the readers who come back to that or to another server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, post, says

from app.models import Model
from app.replies.turn import Turn
from app.replies.turns import TURNS
from app.server import BELLS
from app.statuses import FinalStatus
from app.storage.db import DATABASE, DatabaseAway
from app.storage.store import STORE

TEXT = "One two  three\n四 five 🙂 six seven eight nine ten."
PIECES = re.findall(r"\s*\S+", TEXT)


# A server whose lock nobody holds, and who hears no calls.
SILENT = 1


class House:
    """A server with a model, and where its readers come back to: to it, or to another one."""

    def __init__(self, home: TestServer, door: TestServer, model: Gated) -> None:
        self.home = home
        self.door = door
        self.model = model

    @property
    def turns(self) -> Any:
        return self.home.app[TURNS]

    def turn(self, reply_id: str) -> Turn:
        turn = self.turns.find(reply_id)
        assert turn is not None
        return turn  # type: ignore[no-any-return]

    def is_unread(self, reply_id: str) -> bool:
        """Whether its home knows that nobody reads a reply, and has stored what it has."""
        turn = self.turn(reply_id)
        return not turn.reply.readers and turn.stored_chars == turn.reply.length


async def open_house(start_server: StartServer, elsewhere: bool, model: Model, **settings: Any) -> House:
    # So that a client who has left is found soon: clients are looked at ten times within it.
    settings = {"write_timeout_s": 0.5} | settings
    home = await start_server(model=model, **settings)
    door = await start_server(model=says("not asked"), **settings) if elsewhere else home
    for server in (home, door):
        await hears(server)
    return House(home, door, model)


async def hears(server: TestServer) -> TestServer:
    """Wait until a server hears the calls of others."""
    await server.app[BELLS].listening.wait()
    return server


async def ask(server: TestServer, tenant: Tenant, headers: str = "", message: str = "Hi") -> tuple[RawClient, str]:
    client = await RawClient.connect(server)
    client.send(post("/chat/stream", json.dumps({"message": message}).encode(), tenant, headers=headers))
    _, head = await client.read_head()
    return client, head[b"x-message-id"].decode()


async def call(server: TestServer, tenant: Tenant, method: str, path: str) -> RawClient:
    client = await RawClient.connect(server)
    client.send(
        f"{method} /chat/stream/{path} HTTP/1.1\r\nHost: localhost\r\n"
        f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n\r\n".encode()
    )
    return client


async def question(server: TestServer, tenant: Tenant, chat_id: str, headers: str = "") -> RawClient:
    client = await RawClient.connect(server)
    body = json.dumps({"message": "And?", "chat_id": chat_id}).encode()
    client.send(post("/chat/stream", body, tenant, headers=headers))
    return client


async def come_back(server: TestServer, tenant: Tenant, reply_id: str, offset: int) -> RawClient:
    return await call(server, tenant, "GET", f"{reply_id}?offset={offset}")


async def stop(server: TestServer, tenant: Tenant, reply_id: str) -> RawClient:
    return await call(server, tenant, "DELETE", reply_id)


async def read_pieces(client: RawClient, model: Gated, count: int) -> str:
    """Let the model say so many pieces, and return what the client read of them."""
    text = ""
    for _ in range(count):
        model.go()
        text += "".join(event["token"] for event in events(await client.read_chunk()))
    return text


async def read_chars(client: RawClient, count: int) -> str:
    """Return what the client reads until that is so many code points, or more."""
    text = ""
    while len(text) < count:
        text += spoken(events(await client.read_chunk()))
    return text


async def read_rest(client: RawClient) -> tuple[bytes, list[dict[str, Any]]]:
    status, _ = await client.read_head()
    return status, events(b"".join(await client.read_chunks()))


def first_event(reply_id: str, offset: int) -> bytes:
    """Return what a stream with ids begins with."""
    return f'id: {reply_id}:{offset}\ndata: {{"token":"","done":false}}\n\n'.encode()


def spoken(read: list[dict[str, Any]]) -> str:
    return "".join(event.get("token", "") for event in read)


async def answer(client: RawClient) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an answer in JSON."""
    status, head = await client.read_head()
    return int(status.split()[1]), json.loads(await client.reader.readexactly(int(head[b"content-length"])))


def stored(rows: Rows, reply_id: str) -> tuple[str, str]:
    [(status, content)] = rows("select status, content from messages where id = %s", reply_id)
    return status, content


def chat_of(rows: Rows, reply_id: str) -> str:
    [(chat_id,)] = rows("select chat_id::text from messages where id = %s", reply_id)
    return str(chat_id)


@contextmanager
def held(rows: Rows, table: str, row_id: str) -> Iterator[None]:
    """Keep others from changing a row."""
    rows("begin")
    rows(f"select from {table} where id = %s for update", row_id)
    try:
        yield
    finally:
        rows("commit")


async def waiting(rows: Rows, count: int) -> None:
    """Wait until so many others wait for a row."""
    query = "select count(*) from pg_locks where not granted and locktype in ('transactionid', 'tuple')"
    await eventually(lambda: rows(query) == [(count,)])


async def disconnect(house: House, client: RawClient, reply_id: str) -> None:
    client.reset()
    await eventually(lambda: house.is_unread(reply_id))


def lost(offset: int, length: int) -> dict[str, str]:
    """Return the last event of a client who has more than was kept of a reply."""
    message = f"offset is {offset}, expected at most {length}, what the reply has."
    return {"error": "Bad offset", "message": message}


async def pause(house: House, tenant: Tenant) -> tuple[str, str]:
    """Ask, read two pieces and leave; return the reply's id and what was read."""
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    await disconnect(house, client, reply_id)
    return reply_id, seen


@contextmanager
def cut_off(server: TestServer) -> Iterator[None]:
    """Let a server's statements find the database away; its bells are still heard."""

    async def away(*_: object) -> None:
        raise DatabaseAway(sent=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.app[DATABASE], "run", away)
        yield


@contextmanager
def waits_noted() -> Iterator[list[Turn]]:
    """Note whose end is waited for."""
    noted: list[Turn] = []
    closed = Turn.closed

    async def note(turn: Turn) -> FinalStatus | None:
        noted.append(turn)
        return await closed(turn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Turn, "closed", note)
        yield noted


class Calls:
    """The calls that a server makes: noted, and lost if a test says so."""

    def __init__(self, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinds: list[str] = []
        self.lost: set[str] = set()
        store = server.app[STORE]
        for name in ("server_call", "turn_checkpoint"):
            monkeypatch.setattr(store, name, self._lossy(getattr(store, name)))

    def _lossy(self, statement: Any) -> Any:
        async def run(*, channels: Sequence[str], payloads: Sequence[str], **params: Any) -> Any:
            kinds = [json.loads(payload)[0] for payload in payloads]
            self.kinds += kinds
            kept = [i for i, kind in enumerate(kinds) if kind not in self.lost]
            return await statement(
                channels=[channels[i] for i in kept], payloads=[payloads[i] for i in kept], **params
            )

        return run


async def read_at_the_door(house: House, tenant: Tenant) -> tuple[str, RawClient, str]:
    """Ask at home, and let only a reader at the door read on; return the reply, the reader and what they have."""
    asker, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(asker, house.model, 2)
    reader = await come_back(house.door, tenant, reply_id, len(seen))
    await reader.read_head()
    # The id to come back with.
    assert await reader.read_chunk() == first_event(reply_id, len(seen))
    reply = house.turn(reply_id).reply
    await eventually(lambda: len(reply.readers) == 2)
    asker.reset()
    await eventually(lambda: len(reply.readers) == 1)
    return reply_id, reader, seen
