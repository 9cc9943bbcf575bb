"""What happens at one moment with something else: each in the order in which it once went wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from house import (
    PIECES,
    TEXT,
    ask,
    come_back,
    disconnect,
    open_house,
    pause,
    read_pieces,
    read_rest,
    spoken,
    stop,
    stored,
)
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, post, says

from app.api.resume import BELLS
from app.models import Conversation
from app.replies.turns import TURNS
from app.storage.db import DatabaseAway
from app.storage.store import STORE

# More than the buffers of a connection hold.
LARGE = "x" * 12_000_000


@contextmanager
def held(rows: Rows, reply_id: str) -> Iterator[None]:
    """Keep others from changing a reply."""
    rows("begin")
    rows("select from messages where id = %s for update", reply_id)
    try:
        yield
    finally:
        rows("commit")


async def waiting(rows: Rows, count: int) -> None:
    """Wait until so many others wait for a row."""
    query = "select count(*) from pg_locks where not granted and locktype in ('transactionid', 'tuple')"
    await eventually(lambda: rows(query) == [(count,)])


async def answer(client: RawClient) -> tuple[int, dict[str, Any]]:
    status, head = await client.read_head()
    return int(status.split()[1]), json.loads(await client.reader.readexactly(int(head[b"content-length"])))


def ending(rows: Rows, reply_id: str) -> tuple[str, bool]:
    """Return the status of a reply, and whether it looks as if it could be resumed."""
    [row] = rows("select status, resumable_until is not null from messages where id = %s", reply_id)
    return row[0], row[1]


async def test_window_that_ends_while_a_reader_comes_back_leaves_the_reply_closed(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES), resume_window_s=0.3)
    reply_id, seen = await pause(house, rows, tenant)
    turn = house.turns.find(reply_id)
    with held(rows, reply_id):
        await come_back(house.home, tenant, reply_id, len(seen))
        await eventually(lambda: turn.interrupted_by == "disconnected")
    await eventually(lambda: house.turns.running == 0)
    await eventually(lambda: ending(rows, reply_id) == ("disconnected", False))
    assert stored(rows, reply_id)[1] == seen


async def test_resume_whose_answer_was_lost_leaves_the_reply_closed(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES), resume_window_s=0.3)
    reply_id, seen = await pause(house, rows, tenant)
    turn_resume = house.home.app[STORE].turn_resume

    async def resume_and_lose(**params: Any) -> bool:
        assert await turn_resume(**params)
        raise DatabaseAway(sent=True)

    monkeypatch.setattr(house.home.app[STORE], "turn_resume", resume_and_lose)
    assert (await answer(await come_back(house.home, tenant, reply_id, 0)))[0] == 503
    await eventually(lambda: house.turns.running == 0)
    assert ending(rows, reply_id) == ("disconnected", False)
    assert stored(rows, reply_id)[1] == seen


async def test_client_who_leaves_at_the_end_leaves_the_reply_complete(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES))
    client, reply_id = await ask(house.home, tenant)
    turn = house.turns.find(reply_id)
    turn_close, may_close, tries = house.home.app[STORE].turn_close, asyncio.Event(), []

    async def fail_once(**params: Any) -> bool:
        tries.append(params["status"])
        if len(tries) == 1:
            await may_close.wait()
            raise DatabaseAway(sent=False)
        return bool(await turn_close(**params))

    monkeypatch.setattr("app.replies.saves.FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(house.home.app[STORE], "turn_close", fail_once)
    house.model.go(len(PIECES))
    await eventually(lambda: tries)
    client.reset()
    await eventually(lambda: turn.reader is None)
    may_close.set()
    await eventually(lambda: stored(rows, reply_id) == ("complete", TEXT))
    assert tries == ["complete", "complete"]


async def test_reader_who_comes_back_while_a_paused_reply_is_closed_is_given_the_end(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    gate = asyncio.Event()

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        yield "all"
        await gate.wait()

    house = await open_house(start_server, elsewhere, model)
    client, reply_id = await ask(house.home, tenant)
    turn = house.turns.find(reply_id)
    await eventually(lambda: turn.length)
    await disconnect(house, rows, client, reply_id)
    resume, tries = house.turns.resume, []

    async def count(turn: Any) -> bool:
        tries.append(turn)
        return bool(await resume(turn))

    monkeypatch.setattr(house.turns, "resume", count)
    with held(rows, reply_id):
        gate.set()
        await waiting(rows, 1)
        reader = await come_back(house.door, tenant, reply_id, 1)
        await eventually(lambda: tries or house.door.app[BELLS]._followers)
    _, read = await read_rest(reader)
    assert (spoken(read), read[-1]["done"]) == ("ll", True)
    assert len(tries) < 2
    assert stored(rows, reply_id) == ("complete", "all")


async def test_stop_that_meets_a_resume_stops_the_reply(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES))
    reply_id, seen = await pause(house, rows, tenant)
    with held(rows, reply_id):
        await come_back(house.home, tenant, reply_id, len(seen))
        await waiting(rows, 1)
        stopper = await stop(house.door, tenant, reply_id)
        await waiting(rows, 2)
    assert await answer(stopper) == (200, {"message_id": reply_id, "status": "stopped"})
    assert stored(rows, reply_id) == ("stopped", seen)


async def test_question_that_meets_a_resume_is_answered_without_a_deadlock(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES))
    reply_id, seen = await pause(house, rows, tenant)
    [(chat_id,)] = rows("select chat_id::text from messages where id = %s", reply_id)
    # Far longer than this test may take: a deadlock would not be found out, and this time out.
    rows("alter system set deadlock_timeout = '10min'")
    rows("select pg_reload_conf()")
    try:
        with held(rows, reply_id):
            await come_back(house.home, tenant, reply_id, len(seen))
            await waiting(rows, 1)
            question = await RawClient.connect(house.door)
            body = json.dumps({"message": "And?", "chat_id": chat_id}).encode()
            question.send(post("/chat/stream", body, tenant))
            await waiting(rows, 2)
        status, _ = await question.read_head()
    finally:
        rows("alter system reset deadlock_timeout")
        rows("select pg_reload_conf()")
    assert status == b"HTTP/1.1 409 Conflict"


@pytest.mark.parametrize("key", ["", "Idempotency-Key: one\r\n"])
async def test_reader_who_leaves_a_whole_reply_ends_it_for_nobody(
    start_server: StartServer, rows: Rows, tenant: Tenant, key: str
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES))
    asker = await RawClient.connect(house.home)
    asker.send(post("/chat", b'{"message": "Hi"}', tenant, headers=key))
    await house.model.asked.wait()
    [(reply_id,)] = rows("select id::text from messages where org_id = %s and role = 'assistant'", tenant.org_id)
    reader = await come_back(house.home, tenant, reply_id, 0)
    await reader.read_head()
    # The id to come back with.
    await reader.read_chunk()
    assert await read_pieces(reader, house.model, 2) == "".join(PIECES[:2])
    reader.reset()
    turn = house.turns.find(reply_id)
    await eventually(lambda: turn.reader is None)
    house.model.go(len(PIECES))
    status, body = await answer(asker)
    assert (status, body["reply"]) == (200, TEXT)


async def test_turns_that_end_while_a_stop_saves_others_do_not_disturb_it(
    start_server: StartServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.replies.turns.LAST_WORDS_S", 0.05)
    server = await start_server(model=Gated())
    clients = [(await ask(server, tenant))[0] for _ in range(3)]
    store, saves, may_save = server.app[STORE], [], asyncio.Event()  # type: ignore[index]
    turn_close = store.turn_close

    async def close_late(**params: Any) -> bool:
        saves.append(params["reply_id"])
        await may_save.wait()
        return bool(await turn_close(**params))

    monkeypatch.setattr(store, "turn_close", close_late)
    drain = asyncio.create_task(server.app[TURNS].drain(0))  # type: ignore[index]
    # Each by its turn, and by the stop that has waited long enough for it.
    await eventually(lambda: len(saves) == 6)
    may_save.set()
    await drain
    for client in clients:
        [last] = events(b"".join(await client.read_chunks()))
        assert last["message"] == "The server is stopping; what it said so far is saved."


async def test_key_that_is_taken_back_while_it_is_looked_up_is_503(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(model=says("Hello"))
    key = "Idempotency-Key: one\r\n"
    client, _ = await ask(server, tenant, key)
    await client.read_chunks()
    store = server.app[STORE]  # type: ignore[index]
    turn_by_key = store.turn_by_key

    async def find_late(**params: Any) -> Any:
        rows("delete from turn_keys where org_id = %s", tenant.org_id)
        return await turn_by_key(**params)

    monkeypatch.setattr(store, "turn_by_key", find_late)
    client = await RawClient.connect(server)
    client.send(post("/chat/stream", b'{"message": "Hi"}', tenant, headers=key))
    status, body = await answer(client)
    assert (status, body["message"]) == (503, "The question was not stored; ask again.")


async def test_reader_whose_server_stops_before_the_replys_has_answered_is_503(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES))
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    rows("update messages set server_id = server_id + 1 where id = %s", reply_id)
    reader = await come_back(house.door, tenant, reply_id, len(seen))
    await eventually(lambda: house.door.app[BELLS]._followers)
    await house.door.app[TURNS].drain(0)
    status, body = await answer(reader)
    assert (status, body["error"]) == (503, "Stopping")
    rows("update messages set server_id = server_id - 1 where id = %s", reply_id)


async def test_slow_reader_at_another_server_is_still_there(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.resume.CALL_AGAIN_S", 0.05)
    monkeypatch.setattr("app.replies.turns.CALL_TIMEOUT_S", 0.5)
    house = await open_house(start_server, True, Gated(pieces=[LARGE, "end"]))
    client, reply_id = await ask(house.home, tenant)
    house.model.go()
    turn = house.turns.find(reply_id)
    await eventually(lambda: turn.length)
    client.reset()
    await eventually(lambda: stored(rows, reply_id)[0] == "disconnected")
    reader = await come_back(house.door, tenant, reply_id, 0)
    await eventually(lambda: turn.remote)
    remote, began_s = turn.remote, turn.remote.called_at_s
    # It reads nothing for a while, in which its server calls on.
    await eventually(lambda: remote.called_at_s > began_s + 1)
    assert turn.remote is remote
    house.model.go()
    await reader.read_head()
    read = events(b"".join(await reader.read_chunks()))
    assert (len(spoken(read)), read[-1]["done"]) == (len(LARGE) + 3, True)


@pytest.mark.parametrize("how", ["the reply ends", "replaced"])
async def test_client_who_does_not_read_the_last_event_is_let_go(
    start_server: StartServer, rows: Rows, tenant: Tenant, how: str
) -> None:
    gate = asyncio.Event()

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        yield LARGE
        await gate.wait()

    house = await open_house(start_server, False, model, write_timeout_s=0.5)
    client, reply_id = await ask(house.home, tenant)
    turn = house.turns.find(reply_id)
    await eventually(lambda: turn.length)
    client.reset()
    await eventually(lambda: stored(rows, reply_id)[0] == "disconnected")
    await come_back(house.home, tenant, reply_id, 0)
    await eventually(lambda: turn.reader)
    if how == "replaced":
        await come_back(house.home, tenant, reply_id, len(LARGE))
    gate.set()
    await eventually(lambda: not house.turns.followers and house.turns.running == 0)
    connections = house.home.runner.server.connections
    await eventually(lambda: not [c for c in connections if c.transport and c.transport.get_write_buffer_size()])
