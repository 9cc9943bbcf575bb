"""A reply at another server than its home: what is told of it before its home has answered."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from house import PIECES, TEXT, ask, come_back, open_house, read_pieces, spoken, stop
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, post

from app.replies.turns import TURNS
from app.server import BELLS
from app.storage.db import DatabaseAway
from app.storage.store import STORE

KEY = "Idempotency-Key: one\r\n"


async def two_servers(start_server: StartServer, **settings: Any) -> tuple[Any, Any]:
    servers = [await start_server(**settings) for _ in range(2)]
    for server in servers:
        await server.app[BELLS].listening.wait()
    return servers[0], servers[1]


async def lose_open(server: Any, monkeypatch: pytest.MonkeyPatch, rows: Rows, tenant: Tenant) -> str:
    """Ask with a key: the turn is opened, and its server is not told. Return the id of the reply."""
    store = server.app[STORE]
    turn_open, turn_undo, may_undo = store.turn_open, store.turn_undo, asyncio.Event()

    async def open_and_lose(**params: Any) -> Any:
        await turn_open(**params)
        raise DatabaseAway(sent=True)

    async def undo_later(**params: Any) -> bool:
        await may_undo.wait()
        return bool(await turn_undo(**params))

    monkeypatch.setattr(store, "turn_open", open_and_lose)
    monkeypatch.setattr(store, "turn_undo", undo_later)
    asyncio.get_running_loop().call_later(0.5, may_undo.set)
    client = await RawClient.connect(server)
    client.send(post("/chat/stream", b'{"message": "Hi"}', tenant, headers=KEY))
    assert (await client.read_head())[0].split()[1] == b"503"
    monkeypatch.setattr(store, "turn_open", turn_open)
    [(reply_id,)] = rows("select id from messages where org_id = %s and role = 'assistant'", tenant.org_id)
    return str(reply_id)


async def test_key_of_a_turn_that_is_about_to_be_taken_back_is_503_until_it_is(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, door = await two_servers(start_server)
    await lose_open(home, monkeypatch, rows, tenant)
    client = await RawClient.connect(door)
    client.send(post("/chat/stream", b'{"message": "Hi"}', tenant, headers=KEY))
    assert (await client.read_head())[0].split()[1] == b"503"
    await eventually(lambda: rows.messages(tenant.org_id) == [])
    client, _ = await ask(door, tenant, KEY)
    assert events(b"".join(await client.read_chunks()))[-1]["done"]


async def test_home_that_knows_no_such_reply_is_not_called_again_and_again_at_once(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, door = await two_servers(start_server)
    reply_id = await lose_open(home, monkeypatch, rows, tenant)
    store, calls = door.app[STORE], 0
    server_call = store.server_call

    async def count(**params: Any) -> None:
        nonlocal calls
        calls += 1
        await server_call(**params)

    monkeypatch.setattr(store, "server_call", count)
    began_s = time.monotonic()
    client = await stop(door, tenant, reply_id)
    assert (await client.read_head())[0].split()[1] == b"404"
    assert calls <= 1 + (time.monotonic() - began_s) / 0.05


async def test_reader_who_comes_where_others_read_may_have_more_than_they_have(
    start_server: StartServer, tenant: Tenant
) -> None:
    model = Gated(pieces=PIECES)
    house = await open_house(start_server, True, model)
    asker, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(asker, model, 1)
    other = await come_back(house.door, tenant, reply_id, len(seen))
    await other.read_head()
    seen += await read_pieces(asker, model, 1)
    # Its mirror has been answered.
    assert await other.read_chunk()
    assert spoken(events(await other.read_chunk())) == PIECES[1]
    seen += await read_pieces(asker, model, 3)
    client = await come_back(house.door, tenant, reply_id, len(seen))
    model.go(len(PIECES))
    status, _ = await client.read_head()
    assert status == b"HTTP/1.1 200 OK"
    assert seen + spoken(events(b"".join(await client.read_chunks()))) == TEXT


async def test_offset_that_no_reader_can_have_is_409_where_others_read_too(
    start_server: StartServer, tenant: Tenant
) -> None:
    model = Gated(pieces=PIECES)
    house = await open_house(start_server, True, model)
    asker, reply_id = await ask(house.home, tenant)
    await read_pieces(asker, model, 1)
    other = await come_back(house.door, tenant, reply_id, 0)
    await other.read_head()
    client = await come_back(house.door, tenant, reply_id, 1000)
    status, head = await client.read_head()
    assert status == b"HTTP/1.1 409 Conflict"
    answer = json.loads(await client.reader.readexactly(int(head[b"content-length"])))
    assert answer["message"] == f"offset is 1000, expected at most {len(PIECES[0])}, what the reply has."


async def test_what_a_lost_bell_told_is_told_again(
    start_server: StartServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Gated(pieces=PIECES)
    house = await open_house(start_server, True, model, checkpoint_s=0)
    asker, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(asker, model, 1)
    other = await come_back(house.door, tenant, reply_id, len(seen))
    await other.read_head()
    assert await other.read_chunk()
    store = house.home.app[STORE]
    turn_checkpoint, lost = store.turn_checkpoint, asyncio.Event()

    async def lose(**params: Any) -> Any:
        lost.set()
        raise DatabaseAway(sent=True)

    monkeypatch.setattr(store, "turn_checkpoint", lose)
    await read_pieces(asker, model, 1)
    await lost.wait()
    monkeypatch.setattr(store, "turn_checkpoint", turn_checkpoint)
    # With no word more.
    async with asyncio.timeout(5):
        assert spoken(events(await other.read_chunk())) == PIECES[1]
    assert house.home.app[TURNS].find(reply_id) is not None
