"""A reply that is read at another server than its home: its row feeds it there, while its home is called."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from house import (
    PIECES,
    SILENT,
    TEXT,
    Calls,
    House,
    answer,
    ask,
    chat_of,
    come_back,
    cut_off,
    first_event,
    open_house,
    pause,
    read_at_the_door,
    read_chars,
    read_pieces,
    read_rest,
    spoken,
    stop,
    stored,
)
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually

from app.server import BELLS, drain
from app.storage.store import STORE

SAVED = "; what it said so far is saved."


@pytest.fixture
async def house(start_server: StartServer) -> House:
    return await open_house(start_server, True, Gated(pieces=PIECES))


async def test_reader_of_a_reply_whose_home_is_silent_is_pinged(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES), heartbeat_s=0.1)
    reply_id, seen = await pause(house, tenant)
    rows("update messages set server_id = %s where id = %s", SILENT, reply_id)
    reader = await come_back(house.door, tenant, reply_id, len(seen))
    status, head = await reader.read_head()
    assert (status, head[b"content-type"]) == (b"HTTP/1.1 200 OK", b"text/event-stream")
    assert (head[b"x-message-id"], head[b"x-chat-id"]) == (reply_id.encode(), chat_of(rows, reply_id).encode())
    assert await reader.read_chunk() == first_event(reply_id, len(seen))
    assert [await reader.read_chunk() for _ in range(3)] == [b": ping\n"] * 3


@pytest.mark.parametrize("grows", [False, True])
async def test_offset_beyond_the_row_of_a_reply_whose_home_is_silent_is_believed_until_the_end(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    monkeypatch.setattr("app.replies.mirrors.ANSWER_S", 0.1)
    monkeypatch.setattr("app.replies.mirrors.CALL_AGAIN_S", 0.05)
    house = await open_house(start_server, True, Gated(pieces=PIECES), heartbeat_s=0.1)
    reply_id, seen = await pause(house, tenant)
    rows("update messages set server_id = %s where id = %s", SILENT, reply_id)
    reader = await come_back(house.door, tenant, reply_id, len(seen) + 3)
    status, _ = await reader.read_head()
    assert status == b"HTTP/1.1 200 OK"
    await reader.read_chunk()
    assert await reader.read_chunk() == b": ping\n"
    text = "".join(PIECES[:4]) if grows else seen
    rows(
        "update messages set content = %s, status = 'interrupted', finished_at = now() where id = %s",
        text,
        reply_id,
    )
    read = events(b"".join(await reader.read_chunks()))
    assert spoken(read) == text[len(seen) + 3 :]
    assert read[-1] == (
        {"error": "Stream failed", "message": "The server is stopping" + SAVED}
        if grows
        else {
            "error": "Bad offset",
            "message": f"offset is {len(seen) + 3}, expected at most {len(seen)}, what the reply has.",
        }
    )
    if not grows:
        # And so it is for whoever asks again.
        status, body = await answer(await come_back(house.door, tenant, reply_id, len(seen) + 3))
        assert (status, body["error"]) == (409, "Bad offset")


async def test_reader_who_has_more_than_is_known_where_others_read_already_is_not_refused(
    house: House, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(asker, house.model, 2)
    other = await come_back(house.door, tenant, reply_id, 0)
    await other.read_head()
    assert await read_chars(other, len(seen)) == seen
    calls = Calls(house.home, monkeypatch)
    calls.lost = {"said"}
    seen += await read_pieces(asker, house.model, 1)
    await eventually(lambda: "said" in calls.kinds)
    # Not told there yet, and not to be asked for by itself for a while.
    calls.lost = set()
    reader = await come_back(house.door, tenant, reply_id, len(seen))
    status, _ = await reader.read_head()
    assert status == b"HTTP/1.1 200 OK"
    house.model.go(len(PIECES))
    assert seen + spoken(events(b"".join(await reader.read_chunks()))) == TEXT


@pytest.mark.usefixtures("often")
async def test_server_that_calls_no_longer_is_taken_for_gone_and_is_heard_again(
    house: House, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.replies.remotes.MIRROR_SILENCE_S", 0.5)
    calls = Calls(house.door, monkeypatch)
    reply_id, reader, seen = await read_at_the_door(house, tenant)
    calls.lost = {"read", "left"}
    await eventually(lambda: house.is_unread(reply_id))
    assert house.turn(reply_id).reply.is_held
    assert stored(rows, reply_id) == ("streaming", seen)
    calls.lost = set()
    await eventually(lambda: house.turn(reply_id).reply.readers)
    house.model.go(len(PIECES))
    read = events(b"".join(await reader.read_chunks()))
    assert (seen + spoken(read), read[-1]["done"]) == (TEXT, True)


@pytest.mark.usefixtures("often")
async def test_server_that_calls_on_is_not_taken_for_gone(
    house: House, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.replies.remotes.MIRROR_SILENCE_S", 1.5)
    calls = Calls(house.door, monkeypatch)
    reply_id, _, _ = await read_at_the_door(house, tenant)
    [remote] = house.turn(reply_id).reply.readers
    loop = asyncio.get_running_loop()
    until_s = loop.time() + 1.7
    await eventually(lambda: loop.time() > until_s)
    assert calls.kinds.count("read") > 2
    assert house.turn(reply_id).reply.readers == [remote]


async def test_reader_at_a_server_that_drains_is_told_and_home_that_nobody_reads_it(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, reader, seen = await read_at_the_door(house, tenant)
    await drain(house.door.app)
    message = "This server is stopping. The reply may go on: come back for the rest."
    assert events(b"".join(await reader.read_chunks())) == [{"error": "Cut short", "message": message}]
    await eventually(lambda: house.is_unread(reply_id))
    status, _ = await answer(await come_back(house.door, tenant, reply_id, len(seen)))
    assert status == 503
    house.model.go(len(PIECES))
    _, read = await read_rest(await come_back(house.home, tenant, reply_id, len(seen)))
    assert seen + spoken(read) == TEXT


@pytest.mark.parametrize("beyond", [0, 1])
async def test_reader_at_a_server_that_drains_is_told_though_home_is_silent(
    house: House, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, beyond: int
) -> None:
    monkeypatch.setattr("app.replies.mirrors.ANSWER_S", 0.2)
    reply_id, seen = await pause(house, tenant)
    rows("update messages set server_id = %s where id = %s", SILENT, reply_id)
    calls = Calls(house.door, monkeypatch)
    reader = await come_back(house.door, tenant, reply_id, len(seen) + beyond)
    await eventually(lambda: calls.kinds)
    await drain(house.door.app)
    status, read = await read_rest(reader)
    assert status == b"HTTP/1.1 200 OK"
    assert [event.get("error") for event in read] == [None, "Cut short"]


@pytest.mark.usefixtures("often")
async def test_reply_that_its_own_server_does_not_have_is_503(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES), db_timeout_s=0.3)
    reply_id, _ = await pause(house, tenant)
    # As one that is opened, and of which the server has not heard.
    door_id = house.door.app[BELLS].server_id
    rows("update messages set server_id = %s where id = %s", door_id, reply_id)
    status, body = await answer(await come_back(house.door, tenant, reply_id, 0))
    assert (status, body["error"]) == (503, "Database unavailable")
    status, body = await answer(await stop(house.door, tenant, reply_id))
    assert (status, body["error"]) == (503, "Not stopped")


async def test_home_of_a_reply_whose_readers_server_stops_is_told_before_that_is_gone(
    start_server: StartServer, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES))
    reply_id, _, _ = await read_at_the_door(house, tenant)
    await house.door.close()
    # Long before its silence would tell.
    await eventually(lambda: house.is_unread(reply_id), timeout_s=2)


@pytest.mark.usefixtures("often")
async def test_reader_elsewhere_of_a_reply_whose_home_stops_is_told_its_end(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES), shutdown_grace_s=0)
    reply_id, reader, seen = await read_at_the_door(house, tenant)
    await house.home.close()
    read = events(b"".join(await reader.read_chunks()))
    assert read == [{"error": "Stream failed", "message": "The server is stopping" + SAVED}]
    assert stored(rows, reply_id) == ("interrupted", seen)


async def test_reader_elsewhere_costs_25_statements_a_second_and_two_of_them_no_more(
    start_server: StartServer, tenant: Tenant, statements: list[str]
) -> None:
    house = await open_house(start_server, True, Gated(), reply_limit_chars=10_000_000)
    _, reply_id = await ask(house.home, tenant)
    readers: list[RawClient] = []
    loop = asyncio.get_running_loop()

    async def talk() -> None:
        while True:
            house.model.go()
            await asyncio.sleep(0.001)

    talking = loop.create_task(talk())
    for _ in range(2):
        readers.append(await come_back(house.door, tenant, reply_id, 0))
        await readers[-1].read_head()
        statements.clear()
        began_s = loop.time()
        while loop.time() < began_s + 1:
            await readers[-1].read_chunk()
        seconds = loop.time() - began_s
        # Ten for what is said, ten to look at it, one to call; and those that were under way.
        assert len(statements) <= 22 * seconds + 3
        assert (
            {"turn_checkpoint", "reply_look"}
            <= set(statements)
            <= {"turn_checkpoint", "reply_look", "server_call"}
        )
    talking.cancel()


@pytest.mark.usefixtures("often")
async def test_reply_that_is_read_elsewhere_and_says_nothing_is_not_stored_again(
    house: House, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await read_at_the_door(house, tenant)
    store, stores = house.home.app[STORE], []
    turn_checkpoint = store.turn_checkpoint

    async def noted(**params: Any) -> Any:
        stores.append((params["contents"], [json.loads(payload)[0] for payload in params["payloads"]]))
        return await turn_checkpoint(**params)

    monkeypatch.setattr(store, "turn_checkpoint", noted)
    # Its server calls, and is answered.
    await eventually(lambda: len(stores) == 3)
    assert stores == [([], ["said"])] * 3


@pytest.mark.parametrize("whose", ["home", "door"])
async def test_reader_elsewhere_is_cut_short_where_the_database_is_away_and_misses_nothing(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    monkeypatch.setattr("app.replies.mirrors.CALL_AGAIN_S", 0.02)
    house = await open_house(start_server, True, Gated(pieces=PIECES))
    reply_id, reader, seen = await read_at_the_door(house, tenant)
    with cut_off(house.home if whose == "home" else house.door):
        if whose == "home":
            house.model.go()
            reply = house.turn(reply_id).reply
            await eventually(lambda: reply.text == "".join(PIECES[:3]))
        else:
            message = "The database did not answer. The reply may go on: come back for the rest."
            assert events(b"".join(await reader.read_chunks())) == [{"error": "Cut short", "message": message}]
            status, body = await answer(await come_back(house.door, tenant, reply_id, len(seen)))
            assert (status, body["error"]) == (503, "Database unavailable")
    if whose == "door":
        reader = await come_back(house.door, tenant, reply_id, len(seen))
        await reader.read_head()
    house.model.go(len(PIECES))
    read = events(b"".join(await reader.read_chunks()))
    assert (seen + spoken(read), read[-1]["done"]) == (TEXT, True)


@pytest.mark.usefixtures("often")
async def test_reader_elsewhere_of_a_question_that_is_taken_back_is_told(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, reader, _ = await read_at_the_door(house, tenant)
    rows("delete from messages where id = %s", reply_id)
    [last] = events(b"".join(await reader.read_chunks()))
    assert last["error"] == "Not stored"
    status, _ = await answer(await come_back(house.door, tenant, reply_id, 0))
    assert status == 404
