"""What happens at one moment with the end of a reply: the first end stays, and all are told of that one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from house import (
    PIECES,
    TEXT,
    House,
    answer,
    ask,
    come_back,
    held,
    open_house,
    pause,
    read_pieces,
    read_rest,
    spoken,
    stop,
    stored,
    waiting,
    waits_noted,
)
from serving import StartServer
from support import Gated, Rows, Tenant, events, eventually, logged

from app.replies.reply import Closing
from app.replies.turns import TURNS
from app.storage.db import DatabaseAway
from app.storage.store import STORE

SAVED = "; what it said so far is saved."
DISCONNECTED = {"error": "Stream failed", "message": "Nobody was reading the reply any more" + SAVED}
STOPPED = {"error": "Stopped", "message": "The reply was stopped" + SAVED}


@pytest.fixture
async def house(start_server: StartServer, elsewhere: bool) -> House:
    return await open_house(start_server, elsewhere, Gated(pieces=PIECES))


@pytest.mark.parametrize("offset", ["the start", "the end"])
async def test_reader_who_comes_back_while_the_end_is_stored_is_given_it(
    house: House, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, offset: str
) -> None:
    monkeypatch.setattr("app.replies.mirrors.ANSWER_S", 0.5)
    client, reply_id = await ask(house.home, tenant)
    with held(rows, "messages", reply_id):
        house.model.go(len(PIECES))
        await waiting(rows, 1)
        # It has been told all of it by now, and loses the connection.
        seen = await read_pieces(client, house.model, len(PIECES))
        assert seen == TEXT
        assert stored(rows, reply_id) == ("streaming", "")
        reply = house.turn(reply_id).reply
        client.reset()
        await eventually(lambda: not reply.readers)
        reader = await come_back(house.door, tenant, reply_id, 0 if offset == "the start" else len(TEXT))
        # The row has not what it has, which is no reason to refuse it.
        status, _ = await reader.read_head()
        assert status == b"HTTP/1.1 200 OK"
    read = events(b"".join(await reader.read_chunks()))
    assert spoken(read) == ("" if offset == "the end" else TEXT)
    assert (read[-1]["done"], read[-1]["fullText"]) == (True, TEXT)
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_reader_who_comes_back_as_the_window_ends_is_told_the_end(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES), resume_window_s=3600)
    reply_id, seen = await pause(house, tenant)
    turn = house.turn(reply_id)
    with held(rows, "messages", reply_id):
        assert turn._window is not None
        turn._window.cancel()
        turn.end("disconnected")
        await waiting(rows, 1)
        reader = await come_back(house.door, tenant, reply_id, 0)
        await eventually(lambda: turn.reply.readers)
        house.model.go(len(PIECES))
    _, read = await read_rest(reader)
    assert (spoken(read), read[-1]) == (seen, DISCONNECTED)
    assert stored(rows, reply_id) == ("disconnected", seen)


@pytest.mark.parametrize("end", ["complete", "disconnected"])
async def test_stop_that_comes_while_another_end_is_stored_is_answered_with_that_end(
    house: House, rows: Rows, tenant: Tenant, end: str
) -> None:
    _, reply_id = await ask(house.home, tenant)
    turn = house.turn(reply_id)
    with held(rows, "messages", reply_id), waits_noted() as waits:
        if end == "complete":
            house.model.go(len(PIECES))
        else:
            turn.end(end)
        await eventually(lambda: turn.reply.state == Closing(end))  # type: ignore[arg-type]
        stopper = await stop(house.door, tenant, reply_id)
        await eventually(lambda: waits == [turn])
    assert await answer(stopper) == (200, {"message_id": reply_id, "status": end})
    assert stored(rows, reply_id) == (end, TEXT if end == "complete" else "")


async def test_end_of_the_model_that_comes_while_a_stop_is_stored_changes_nothing(
    house: House, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    with held(rows, "messages", reply_id):
        stopper = await stop(house.door, tenant, reply_id)
        await waiting(rows, 1)
        house.model.go(len(PIECES))
        await house.model.closed.wait()
    assert await answer(stopper) == (200, {"message_id": reply_id, "status": "stopped"})
    assert events(b"".join(await client.read_chunks())) == [STOPPED]
    assert stored(rows, reply_id) == ("stopped", seen)
    assert logged(caplog, "Stream completed") == []


async def test_stops_that_come_at_once_at_all_servers_are_answered_alike(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, seen = await pause(house, tenant)
    servers = [house.home, house.door] * 3
    stoppers = [await stop(server, tenant, reply_id) for server in servers]
    for stopper in stoppers:
        assert await answer(stopper) == (200, {"message_id": reply_id, "status": "stopped"})
    assert stored(rows, reply_id) == ("stopped", seen)


async def test_reader_who_comes_back_as_a_paused_reply_is_stopped_is_told_so(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, seen = await pause(house, tenant)
    with held(rows, "messages", reply_id):
        stopper = await stop(house.door, tenant, reply_id)
        await waiting(rows, 1)
        reader = await come_back(house.home, tenant, reply_id, len(seen))
        await eventually(lambda: house.turn(reply_id).reply.readers)
        house.model.go(len(PIECES))
    assert await answer(stopper) == (200, {"message_id": reply_id, "status": "stopped"})
    _, read = await read_rest(reader)
    assert read[1:] == [STOPPED]
    assert stored(rows, reply_id) == ("stopped", seen)


async def test_checkpoint_that_is_late_does_not_undo_the_end(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES))
    client, reply_id = await ask(house.home, tenant)
    await read_pieces(client, house.model, 2)
    reply = house.turn(reply_id).reply
    with held(rows, "messages", reply_id):
        # The checkpoint of a reply that nobody reads any longer.
        client.reset()
        await waiting(rows, 1)
        reader = await come_back(house.home, tenant, reply_id, 0)
        await eventually(lambda: reply.readers)
        house.model.go(len(PIECES))
        # And its end.
        await waiting(rows, 2)
    _, read = await read_rest(reader)
    assert (spoken(read), read[-1]["done"]) == (TEXT, True)
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_end_whose_answer_is_lost_is_told_as_it_was_stored(
    start_server: StartServer,
    elsewhere: bool,
    rows: Rows,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("app.server.GUARD_S", 0.02)
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES))
    store = house.home.app[STORE]
    turn_close, lost = store.turn_close, asyncio.Event()

    async def close_and_lose(**params: Any) -> Any:
        closed = await turn_close(**params)
        if not lost.is_set():
            lost.set()
            raise DatabaseAway(sent=True)
        return closed

    monkeypatch.setattr(store, "turn_close", close_and_lose)
    client, reply_id = await ask(house.home, tenant)
    house.model.go(len(PIECES))
    read = events(b"".join(await client.read_chunks()))
    assert (spoken(read), read[-1]["error"]) == (TEXT, "Cut short")
    assert lost.is_set()
    for server in (house.home, house.door):
        _, read = await read_rest(await come_back(server, tenant, reply_id, len(TEXT)))
        assert [event["done"] for event in read] == [False, True]
        assert (await answer(await stop(server, tenant, reply_id)))[1]["status"] == "complete"
    assert stored(rows, reply_id) == ("complete", TEXT)
    await eventually(lambda: house.turns.find(reply_id) is None)
    assert len(logged(caplog, "Stream completed")) == 1


async def test_paused_reply_ends_at_once_when_its_server_stops(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES))
    reply_id, seen = await pause(house, tenant)
    await house.turns.drain(3600)
    assert stored(rows, reply_id) == ("disconnected", seen)


async def test_reply_whose_reader_leaves_while_its_server_stops_ends_at_once(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES))
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    drain = asyncio.create_task(house.turns.drain(3600))
    await eventually(lambda: house.turns.stopping)
    client.reset()
    await drain
    assert stored(rows, reply_id) == ("disconnected", seen)


@pytest.mark.parametrize("in_time", [True, False])
async def test_reply_that_is_to_finish_has_the_grace_of_a_stop_though_nobody_reads(
    start_server: StartServer, rows: Rows, tenant: Tenant, in_time: bool
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES), unread="finish")
    reply_id, seen = await pause(house, tenant)
    drain = asyncio.create_task(house.turns.drain(3600 if in_time else 0.01))
    await eventually(lambda: house.turns.stopping)
    if in_time:
        house.model.go(len(PIECES))
    await drain
    assert stored(rows, reply_id) == (("complete", TEXT) if in_time else ("interrupted", seen))


async def test_turns_that_end_while_a_stop_saves_others_do_not_disturb_it(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(model=Gated())
    asked = [await ask(server, tenant) for _ in range(3)]
    store, saves, may_save = server.app[STORE], [], asyncio.Event()
    turn_close = store.turn_close

    async def close_late(**params: Any) -> Any:
        saves.append(params["status"])
        await may_save.wait()
        return await turn_close(**params)

    monkeypatch.setattr(store, "turn_close", close_late)
    turns = server.app[TURNS]
    stopped = turns.find(asked[0][1])
    assert stopped is not None
    stopped.end("stopped")
    drain = asyncio.create_task(turns.drain(0))
    await eventually(lambda: len(saves) == 3)
    # A second signal ends nobody otherwise.
    await turns.drain(0)
    may_save.set()
    await drain
    interrupted = {"error": "Stream failed", "message": "The server is stopping" + SAVED}
    for (client, _), last in zip(asked, (STOPPED, interrupted, interrupted), strict=True):
        assert events(b"".join(await client.read_chunks())) == [last]
    statuses = [stored(rows, reply_id)[0] for _, reply_id in asked]
    assert statuses == ["stopped", "interrupted", "interrupted"]
