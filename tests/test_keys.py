"""Idempotency-Key: one key, one turn, for whoever asks again, wherever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from house import (
    PIECES,
    TEXT,
    House,
    answer,
    ask,
    chat_of,
    come_back,
    disconnect,
    open_house,
    pause,
    question,
    read_pieces,
    spoken,
)
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, post, says

from app.models import Conversation, Model, ModelError
from app.storage.store import STORE

KEY = "Idempotency-Key: one\r\n"


@pytest.fixture
async def house(start_server: StartServer, elsewhere: bool) -> House:
    return await open_house(start_server, elsewhere, Gated(pieces=PIECES))


async def ask_for_the_whole(house: House, tenant: Tenant) -> RawClient:
    client = await RawClient.connect(house.door)
    client.send(post("/chat", b'{"message": "Hi"}', tenant, headers=KEY))
    return client


async def test_same_key_and_question_attaches_to_the_same_turn_from_its_start(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    client, reply_id = await ask(house.home, tenant, KEY)
    await read_pieces(client, house.model, 3)
    await disconnect(house, client, reply_id)
    house.model.go(len(PIECES))
    client, again_id = await ask(house.door, tenant, KEY)
    assert again_id == reply_id
    assert spoken(events(b"".join(await client.read_chunks()))) == TEXT
    # And once more, when it has long ended.
    client, again_id = await ask(house.door, tenant, KEY)
    assert again_id == reply_id
    assert spoken(events(b"".join(await client.read_chunks()))) == TEXT
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(2,)]


async def test_post_chat_with_the_key_of_a_paused_stream_waits_for_the_whole_reply(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    client, reply_id = await ask(house.home, tenant, KEY)
    await read_pieces(client, house.model, 2)
    await disconnect(house, client, reply_id)
    reply = house.turn(reply_id).reply
    client = await ask_for_the_whole(house, tenant)
    # It reads, so that the model goes on.
    await eventually(lambda: reply.readers)
    assert not reply.is_held
    house.model.go(len(PIECES))
    status, body = await answer(client)
    assert (status, body["message_id"], body["reply"]) == (200, reply_id, TEXT)
    assert body["chat_id"] == chat_of(rows, reply_id)
    # The same, byte for byte, when it has long ended.
    assert await answer(await ask_for_the_whole(house, tenant)) == (200, body)


async def test_post_chat_with_the_key_of_a_stream_that_was_stopped_is_502_and_says_so(
    house: House, tenant: Tenant
) -> None:
    client, reply_id = await ask(house.home, tenant, KEY)
    await read_pieces(client, house.model, 2)
    whole = await ask_for_the_whole(house, tenant)
    # The asker, and the one who waits: a server, if it is another.
    await eventually(lambda: len(house.turn(reply_id).reply.readers) == 2)
    house.turn(reply_id).end("stopped")
    status, body = await answer(whole)
    message = "The reply was stopped; what it said so far is saved."
    assert (status, body["error"], body["message"]) == (502, "Reply failed", message)


async def test_same_key_of_a_reply_that_ended_without_a_word_is_told_how_it_ended(
    start_server: StartServer, tenant: Tenant
) -> None:
    server = await start_server(model=says(RuntimeError("no")))
    for _ in range(2):
        client, _ = await ask(server, tenant, KEY)
        assert [event.get("error") for event in events(b"".join(await client.read_chunks()))] == ["Stream failed"]


async def test_same_key_with_another_question_is_409(house: House, tenant: Tenant) -> None:
    _, reply_id = await ask(house.home, tenant, KEY)
    client = await RawClient.connect(house.door)
    client.send(post("/chat/stream", b'{"message": "Another"}', tenant, headers=KEY))
    status, body = await answer(client)
    assert (status, body["error"], body["message_id"]) == (409, "Key reused", reply_id)


async def test_same_key_of_another_user_is_another_turn(house: House, rows: Rows, tenant: Tenant) -> None:
    _, first = await ask(house.home, tenant, KEY)
    _, second = await ask(house.home, rows.tenant(tenant.org_id), KEY)
    assert first != second


async def test_question_that_meets_a_running_reply_leaves_its_key_free(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    client, reply_id = await ask(house.home, tenant)
    await read_pieces(client, house.model, 1)
    chat_id = chat_of(rows, reply_id)
    keys = "select reply_id::text from turn_keys where org_id = %s"
    status, body = await answer(await question(house.door, tenant, chat_id, KEY))
    assert (status, body["error"], body["message_id"]) == (409, "Reply running", reply_id)
    assert rows(keys, tenant.org_id) == []
    house.model.go(len(PIECES))
    await client.read_chunks()
    # Asked anew, and not what came of the first try.
    _, head = await (await question(house.door, tenant, chat_id, KEY)).read_head()
    assert rows(keys, tenant.org_id) == [(head[b"x-message-id"].decode(),)]


async def test_question_with_a_key_ends_the_reply_that_nobody_reads_and_keeps_its_key(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, _ = await pause(house, tenant)
    chat_id = chat_of(rows, reply_id)
    _, head = await (await question(house.door, tenant, chat_id, KEY)).read_head()
    new_id = head[b"x-message-id"].decode()
    assert new_id != reply_id
    assert rows("select reply_id::text from turn_keys where org_id = %s", tenant.org_id) == [(new_id,)]
    # The same again is the same turn, though its reply runs and is read.
    _, head = await (await question(house.door, tenant, chat_id, KEY)).read_head()
    assert head[b"x-message-id"].decode() == new_id


async def test_100_with_one_key_at_once_give_one_turn(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    servers = [await start_server(model=says(*PIECES)) for _ in range(2)]

    async def ask_at(i: int) -> str:
        client = await RawClient.connect(servers[i % 2])
        client.send(post("/chat", b'{"message": "Hi"}', tenant, headers=KEY))
        status, body = await answer(client)
        assert (status, body["reply"]) == (200, TEXT)
        return json.dumps(body)

    assert len(set(await asyncio.gather(*(ask_at(i) for i in range(100))))) == 1
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(2,)]


@pytest.mark.parametrize("limits", [{"stream_limit": 1}, {"user_stream_limit": 1}, {"user_turns_per_minute": 1}])
async def test_same_key_is_admitted_where_no_new_turn_is(
    start_server: StartServer, rows: Rows, tenant: Tenant, limits: dict[str, int]
) -> None:
    model = Gated(pieces=PIECES)
    server = await start_server(model=model, **limits)
    client, reply_id = await ask(server, tenant, KEY)
    for headers, body in (("Idempotency-Key: two\r\n", b'{"message": "Hi"}'), ("", b'{"message": "Hi"}')):
        refused = await RawClient.connect(server)
        refused.send(post("/chat/stream", body, tenant, headers=headers))
        assert (await answer(refused))[0] in (429, 503)
    reused = await RawClient.connect(server)
    reused.send(post("/chat/stream", b'{"message": "Another"}', tenant, headers=KEY))
    assert (await answer(reused))[0] == 409
    again, again_id = await ask(server, tenant, KEY)
    assert again_id == reply_id
    model.go(len(PIECES) + 1)
    for reader in (client, again):
        assert spoken(events(b"".join(await reader.read_chunks()))) == TEXT
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(2,)]


async def test_same_key_counts_once_as_a_question(start_server: StartServer, tenant: Tenant) -> None:
    server = await start_server(model=says(*PIECES), user_turns_per_minute=2)
    for _ in range(5):
        client, _ = await ask(server, tenant, KEY)
        await client.read_chunks()
    # The first two of them would be all otherwise.
    for key, status in (("two", b"200 OK"), ("three", b"429 Too Many Requests")):
        client = await RawClient.connect(server)
        client.send(post("/chat", b'{"message": "Hi"}', tenant, headers=f"Idempotency-Key: {key}\r\n"))
        assert (await client.read_head())[0] == b"HTTP/1.1 " + status


async def test_key_is_forgotten_after_a_day_and_its_turn_is_not(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.server.SWEEP_S", 0.02)
    server = await start_server(model=says(*PIECES))
    for key in ("old", "new"):
        client, _ = await ask(server, tenant, headers=f"Idempotency-Key: {key}\r\n")
        await client.read_chunks()
    rows("update turn_keys set created_at = now() - interval '24 hours 1 second' where key = 'old'")
    left = "select key from turn_keys where org_id = %s"
    await eventually(lambda: rows(left, tenant.org_id) == [("new",)])
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(4,)]


async def test_key_that_is_taken_back_while_it_is_looked_up_asks_anew(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(model=says("Hello"))
    client, _ = await ask(server, tenant, KEY)
    await client.read_chunks()
    store = server.app[STORE]
    turn_by_key = store.turn_by_key

    async def find_late(**params: str) -> object:
        rows("delete from turn_keys where org_id = %s", tenant.org_id)
        return await turn_by_key(**params)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "turn_by_key", find_late)
    client, reply_id = await ask(server, tenant, KEY)
    assert spoken(events(b"".join(await client.read_chunks()))) == "Hello"
    assert rows("select reply_id::text from turn_keys where org_id = %s", tenant.org_id) == [(reply_id,)]


async def test_key_that_is_taken_and_freed_again_and_again_is_503(
    start_server: StartServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(model=says("Hello"))
    client, _ = await ask(server, tenant, KEY)
    await client.read_chunks()

    async def find_none(**params: str) -> None:
        return None

    monkeypatch.setattr(server.app[STORE], "turn_by_key", find_none)
    client = await RawClient.connect(server)
    client.send(post("/chat/stream", b'{"message": "Hi"}', tenant, headers=KEY))
    status, body = await answer(client)
    assert (status, body["message"]) == (503, "The question was not stored; ask again.")


def busy_once() -> Model:
    """Return a model that is busy when it is asked for the first time."""
    failures: list[Exception] = [ModelError("529", "busy")]

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        while failures:
            raise failures.pop()
        for piece in PIECES:
            yield piece

    return model  # type: ignore[return-value]


async def test_key_of_a_turn_whose_provider_was_busy_asks_the_same_question_anew(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    servers = [await start_server(model=model) for model in [busy_once()] * 2]

    async def post_at(i: int, message: bytes = b"Hi") -> tuple[int, Any]:
        client = await RawClient.connect(servers[i % 2])
        client.send(post("/chat", b'{"message": "%s"}' % message, tenant, headers=KEY))
        return await answer(client)

    status, body = await post_at(0)
    assert (status, body["error"]) == (503, "Model busy")
    status, body = await post_at(1, b"Another")
    assert (status, body["error"]) == (409, "Key reused")
    # By whichever of them the key is freed, it is one turn.
    answers = await asyncio.gather(*(post_at(i) for i in range(20)))
    assert {(status, body["reply"]) for status, body in answers} == {(200, TEXT)}
    [reply_id] = {body["message_id"] for _, body in answers}
    assert rows("select reply_id::text from turn_keys where org_id = %s", tenant.org_id) == [(reply_id,)]
    # How the first one ended does not change.
    kept = rows("select content, status from messages where org_id = %s and role = 'assistant'", tenant.org_id)
    assert sorted(kept) == [("", "failed"), (TEXT, "complete")]


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
async def test_bad_key_is_400(house: House, tenant: Tenant, key: str) -> None:
    client = await RawClient.connect(house.home)
    client.send(post("/chat/stream", b'{"message": "Hi"}', tenant, headers=f"Idempotency-Key: {key}\r\n"))
    status, body = await answer(client)
    assert (status, body["error"]) == (400, "Bad key")


async def test_client_of_post_chat_who_left_finds_the_reply_by_its_key(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    asker = await RawClient.connect(house.home)
    asker.send(post("/chat", b'{"message": "Hi"}', tenant, headers=KEY))
    await house.model.asked.wait()
    [(reply_id,)] = rows("select reply_id::text from turn_keys where org_id = %s", tenant.org_id)
    await disconnect(house, asker, reply_id)
    # Nobody reads, and it goes on all the same.
    house.model.go(len(PIECES) - 1)
    await eventually(lambda: house.model.said == len(PIECES) - 1)
    client = await ask_for_the_whole(house, tenant)
    await eventually(lambda: house.turn(reply_id).reply.readers)
    house.model.go(2)
    assert (await answer(client))[1]["reply"] == TEXT


@pytest.mark.parametrize("key", ["", KEY])
async def test_reader_who_leaves_a_reply_that_another_waits_for_ends_it_for_nobody(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant, key: str
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES))
    asker = await RawClient.connect(house.home)
    asker.send(post("/chat", b'{"message": "Hi"}', tenant, headers=key))
    await house.model.asked.wait()
    [(reply_id,)] = rows("select id::text from messages where org_id = %s and role = 'assistant'", tenant.org_id)
    reader = await come_back(house.door, tenant, reply_id, 0)
    reply = house.turn(reply_id).reply
    await eventually(lambda: len(reply.readers) == 2)
    reader.reset()
    await eventually(lambda: len(reply.readers) == 1)
    house.model.go(len(PIECES))
    status, body = await answer(asker)
    assert (status, body["reply"]) == (200, TEXT)
