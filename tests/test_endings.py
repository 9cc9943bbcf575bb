"""What is stored of a reply while it runs and in its end, and what is said of it while that cannot be stored."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
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
    cut_off,
    lost,
    open_house,
    pause,
    question,
    read_chars,
    read_pieces,
    read_rest,
    spoken,
    stop,
    stored,
)
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, logged, post, says

from app.models import Conversation
from app.replies.reply import Closing
from app.storage.db import DatabaseAway
from app.storage.store import STORE

SAVED = "; what it said so far is saved."
CUT_SHORT = {
    "error": "Cut short",
    "message": "The database did not answer. The reply may go on: come back for the rest.",
}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is owed is tried again soon, and a home that does not answer is given up soon."""
    monkeypatch.setattr("app.server.GUARD_S", 0.02)
    monkeypatch.setattr("app.replies.elsewhere.ANSWER_S", 0.05)


@contextmanager
def refusing(rows: Rows, text: str) -> Iterator[None]:
    """Let PostgreSQL refuse a text."""
    rows(f"alter table messages add constraint refused check (content not like '%%{text}%%') not valid")
    try:
        yield
    finally:
        rows("alter table messages drop constraint refused")


def keep_from_closing(house: House, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let no reply be closed at home until the event is set."""
    store, back = house.home.app[STORE], asyncio.Event()
    turn_close = store.turn_close

    async def close(**params: Any) -> Any:
        if not back.is_set():
            raise DatabaseAway(sent=False)
        return await turn_close(**params)

    monkeypatch.setattr(store, "turn_close", close)
    return back


@pytest.mark.usefixtures("soon")
async def test_end_that_cannot_be_stored_yet_is_told_once_it_is(
    start_server: StartServer,
    elsewhere: bool,
    rows: Rows,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES), resume_window_s=0)
    back = keep_from_closing(house, monkeypatch)
    client, reply_id = await ask(house.home, tenant)
    house.model.go(len(PIECES))
    read = events(b"".join(await client.read_chunks()))
    assert (spoken(read), read[-1]) == (TEXT, CUT_SHORT)
    # What a client has seen all of has no other end than this, but nobody is told it before it is stored.
    assert stored(rows, reply_id)[0] == "streaming"
    assert house.turn(reply_id).reply.state == Closing("complete")
    # Its place is free all the same.
    assert house.turns.running.total() == 0
    status, body = await answer(await stop(house.door, tenant, reply_id))
    error = "Not stopped" if elsewhere else "Database unavailable"
    assert (status, body["error"]) == (503, error)
    # Whoever comes back is given what there is, and told to come back again.
    status, read = await read_rest(await come_back(house.home, tenant, reply_id, 3))
    assert (status, spoken(read), read[-1]) == (b"HTTP/1.1 200 OK", TEXT[3:], CUT_SHORT)
    assert logged(caplog, "Stream completed") == []

    back.set()
    _, read = await read_rest(await come_back(house.door, tenant, reply_id, len(TEXT)))
    assert [(event.get("done"), event.get("fullText")) for event in read[1:]] == [(True, TEXT)]
    assert stored(rows, reply_id) == ("complete", TEXT)
    assert (await answer(await stop(house.door, tenant, reply_id)))[1]["status"] == "complete"
    await eventually(lambda: house.turns.find(reply_id) is None)
    assert len(logged(caplog, "Stream completed")) == 1


@pytest.mark.usefixtures("soon")
async def test_reader_who_waits_for_an_end_that_cannot_be_stored_is_not_kept_waiting(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES))
    client, reply_id = await ask(house.home, tenant)
    with cut_off(house.home):
        house.model.go(len(PIECES))
        read = events(b"".join(await client.read_chunks()))
        assert (spoken(read), read[-1]) == (TEXT, CUT_SHORT)
        reader = await come_back(house.home, tenant, reply_id, 0)
        status, body = await answer(await stop(house.home, tenant, reply_id))
        assert (status, body["error"]) == (503, "Database unavailable")
        _, read = await read_rest(reader)
        assert (spoken(read), read[-1]) == (TEXT, CUT_SHORT)
    await eventually(lambda: stored(rows, reply_id) == ("complete", TEXT))


@pytest.mark.usefixtures("soon")
async def test_post_chat_whose_end_cannot_be_stored_yet_is_503_and_its_key_finds_the_reply(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await open_house(start_server, elsewhere, says(*PIECES))
    back = keep_from_closing(house, monkeypatch)
    request = post("/chat", b'{"message": "Hi"}', tenant, headers="Idempotency-Key: one\r\n")
    client = await RawClient.connect(house.home)
    client.send(request)
    status, head = await client.read_head()
    assert (status, head[b"retry-after"]) == (b"HTTP/1.1 503 Service Unavailable", b"1")
    assert [row[::2] for row in rows.messages(tenant.org_id)] == [("user", "complete"), ("assistant", "streaming")]
    back.set()
    client = await RawClient.connect(house.door)
    client.send(request)
    status, body = await answer(client)
    assert (status, body["reply"]) == (200, TEXT)
    assert [row[::2] for row in rows.messages(tenant.org_id)] == [("user", "complete"), ("assistant", "complete")]


@pytest.mark.usefixtures("soon")
async def test_client_who_leaves_while_the_end_cannot_be_stored_changes_nothing(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES), resume_window_s=0)
    back = keep_from_closing(house, monkeypatch)
    client, reply_id = await ask(house.home, tenant)
    reply = house.turn(reply_id).reply
    house.model.go(len(PIECES))
    await eventually(lambda: reply.state == Closing("complete"))
    client.reset()
    await eventually(lambda: not reply.readers)
    # Nor does a stop, nor the stop of the server.
    await (await stop(house.home, tenant, reply_id)).read_head()
    await house.turns.drain(0)
    assert reply.state == Closing("complete")
    back.set()
    await eventually(lambda: stored(rows, reply_id) == ("complete", TEXT))


@pytest.mark.usefixtures("soon")
async def test_question_in_a_chat_whose_reply_is_owed_is_answered_once_that_is_stored(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await open_house(start_server, elsewhere, says(*PIECES))
    back = keep_from_closing(house, monkeypatch)
    client, reply_id = await ask(house.home, tenant)
    await client.read_chunks()
    chat_id = chat_of(rows, reply_id)
    status, body = await answer(await question(house.door, tenant, chat_id))
    assert (status, body["message_id"]) == (409, reply_id)
    back.set()
    await eventually(lambda: stored(rows, reply_id) == ("complete", TEXT))
    status, _ = await (await question(house.door, tenant, chat_id)).read_head()
    assert status == b"HTTP/1.1 200 OK"


async def test_text_that_postgresql_refuses_ends_its_reply_as_failed_and_frees_its_chat(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, elsewhere, says("so far ", "refused"))
    with refusing(rows, "refused"):
        client, reply_id = await ask(house.home, tenant)
        read = events(b"".join(await client.read_chunks()))
        # It has more than could be stored.
        assert read[-1] == lost(14, 0)
        assert stored(rows, reply_id) == ("failed", "")
        assert house.turns.running.total() == 0
        assert (await answer(await stop(house.door, tenant, reply_id)))[1]["status"] == "failed"
    status, _ = await (await question(house.door, tenant, chat_of(rows, reply_id))).read_head()
    assert status == b"HTTP/1.1 200 OK"


async def test_text_that_postgresql_refuses_keeps_no_other_from_being_stored(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    bad = Gated(pieces=["refused", "", "more"])
    good = Gated(pieces=PIECES)

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        async for piece in (bad if conversation.messages[-1].content == "Bad" else good)(conversation):
            yield piece

    house = await open_house(start_server, True, model, checkpoint_s=0.05)
    bad_client, bad_id = await ask(house.home, tenant, message="Bad")
    good_client, good_id = await ask(house.home, tenant, message="Good")
    # Read elsewhere, both are checkpointed all the time.
    readers = [await come_back(house.door, tenant, reply_id, 0) for reply_id in (bad_id, good_id)]
    for reply_id in (bad_id, good_id):
        await eventually(lambda reply_id=reply_id: len(house.turn(reply_id).reply.readers) == 2)
    with refusing(rows, "refused"):
        bad.go()
        await eventually(lambda: bad.said == 1)
        seen = await read_pieces(good_client, good, 3)
        await eventually(lambda: stored(rows, good_id) == ("streaming", seen))
        await readers[1].read_head()
        assert await read_chars(readers[1], len(seen)) == seen
        read = events(b"".join(await bad_client.read_chunks()))
        assert read[-1]["error"] == "Bad offset"
        assert stored(rows, bad_id) == ("failed", "")
    good.go(len(PIECES))
    for reader in (good_client, readers[1]):
        assert events(b"".join(await reader.read_chunks()))[-1]["fullText"] == TEXT


async def test_running_replies_that_have_grown_are_stored_once_and_the_others_not_again(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_grow = asyncio.Event()

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        yield "word "
        if conversation.messages[-1].content == "Grow":
            await may_grow.wait()
            yield "more"
        await asyncio.Event().wait()

    server = await start_server(model=model, checkpoint_s=0.05)
    store, stores = server.app[STORE], []
    turn_checkpoint = store.turn_checkpoint

    async def noted(**params: Any) -> Any:
        stores.append(set(params["reply_ids"]))
        return await turn_checkpoint(**params)

    monkeypatch.setattr(store, "turn_checkpoint", noted)
    reply_ids = [(await ask(server, tenant, message=message))[1] for message in ("Grow", "Grow", "Stay")]
    await eventually(lambda: [stored(rows, each) for each in reply_ids] == [("streaming", "word ")] * 3)
    stores.clear()
    may_grow.set()
    await eventually(lambda: [stored(rows, each) for each in reply_ids[:2]] == [("streaming", "word more")] * 2)
    # Rounds later.
    _, late_id = await ask(server, tenant, message="Stay")
    await eventually(lambda: stored(rows, late_id) == ("streaming", "word "))
    assert Counter(each for store in stores for each in store) == Counter([*reply_ids[:2], late_id])


@pytest.mark.parametrize("checkpoint_s", [5.0, 0.0])
async def test_short_turn_costs_two_statements(
    start_server: StartServer, tenant: Tenant, statements: list[str], checkpoint_s: float
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES), checkpoint_s=checkpoint_s)
    statements.clear()
    client, _ = await ask(house.home, tenant)
    house.model.go(len(PIECES))
    await client.read_chunks()
    assert statements == ["turn_open", "turn_close"]


async def test_turn_whose_reader_leaves_for_good_costs_three_statements(
    start_server: StartServer, rows: Rows, tenant: Tenant, statements: list[str]
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES), resume_window_s=0.05)
    statements.clear()
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    client.reset()
    await eventually(lambda: stored(rows, reply_id) == ("disconnected", seen))
    assert statements == ["turn_open", "turn_checkpoint", "turn_close"]


@pytest.mark.parametrize("unread", ["pause", "finish"])
async def test_text_of_a_reply_whose_reader_leaves_is_stored_though_the_database_was_away(
    start_server: StartServer, rows: Rows, tenant: Tenant, unread: str
) -> None:
    house = await open_house(
        start_server, False, Gated(pieces=PIECES), unread=unread, checkpoint_s=0.05, shutdown_grace_s=0
    )
    client, reply_id = await ask(house.home, tenant)
    with cut_off(house.home):
        seen = await read_pieces(client, house.model, 2)
        client.reset()
        await eventually(lambda: not house.turn(reply_id).reply.readers)
        assert stored(rows, reply_id) == ("streaming", "")
    await eventually(lambda: stored(rows, reply_id) == ("streaming", seen))


async def test_reply_that_was_deleted_while_it_ran_ends_without_a_trace(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES))
    reply_id, _ = await pause(house, tenant)
    rows("delete from messages where id = %s", reply_id)
    for server in (house.home, house.door):
        assert (await answer(await stop(server, tenant, reply_id)))[0] == 404
        assert house.turns.running.total() == 0
        assert (await answer(await come_back(server, tenant, reply_id, 0)))[0] == 404


async def test_checkpoint_that_is_carried_out_late_takes_nothing_back(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=Gated(), checkpoint_s=0)
    _, reply_id = await ask(server, tenant)

    async def checkpoint(content: str) -> list[str]:
        row = await server.app[STORE].turn_checkpoint(
            org_ids=[tenant.org_id],
            reply_ids=[reply_id],
            contents=[content],
            inputs=[1],
            outputs=[1],
            channels=[],
            payloads=[],
        )
        return list(row.saved)

    assert await checkpoint("One two") == [reply_id]
    # Again, because its answer was lost.
    assert await checkpoint("One two") == [reply_id]
    assert await checkpoint("One") == []
    assert stored(rows, reply_id) == ("streaming", "One two")
