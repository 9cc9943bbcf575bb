"""Calls between servers: lost, late, repeated, about nothing; and what is asked of a home from elsewhere."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
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
    held,
    open_house,
    pause,
    question,
    read_at_the_door,
    read_chars,
    read_pieces,
    spoken,
    stop,
    stored,
    waiting,
)
from serving import StartServer
from support import Gated, Rows, Tenant, events, eventually, logged

from app.replies.bells import Call, bell
from app.replies.elsewhere import ELSEWHERE
from app.replies.remotes import Remotes
from app.replies.reply import Ended, Reply
from app.replies.tasks import Tasks
from app.server import BELLS
from app.storage.db import DatabaseAway
from app.storage.store import STORE

SAVED = "; what it said so far is saved."


@pytest.fixture
async def house(start_server: StartServer) -> House:
    return await open_house(start_server, True, Gated(pieces=PIECES))


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("lost", ["read", "said"])
async def test_reader_elsewhere_whose_calls_are_lost_misses_nothing(
    house: House, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    calls = Calls(house.door if lost == "read" else house.home, monkeypatch)
    calls.lost = {lost}
    asker, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(asker, house.model, 2)
    reader = await come_back(house.door, tenant, reply_id, 0)
    await reader.read_head()
    await eventually(lambda: calls.kinds.count(lost) > 1)
    calls.lost = set()
    assert await read_chars(reader, len(seen)) == seen
    house.model.go(len(PIECES))
    assert seen + spoken(events(b"".join(await reader.read_chunks()))) == TEXT


@pytest.mark.usefixtures("often")
async def test_reader_elsewhere_whose_leaving_is_not_heard_of_has_left_after_the_silence(
    house: House, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.replies.remotes.MIRROR_SILENCE_S", 0.5)
    calls = Calls(house.door, monkeypatch)
    calls.lost = {"left"}
    reply_id, reader, _ = await read_at_the_door(house, tenant)
    reader.reset()
    # On a busy machine home may take the door for silent before.
    await eventually(lambda: "left" in calls.kinds)
    await eventually(lambda: house.is_unread(reply_id))
    assert calls.kinds.count("left") == 1


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("kind", "status"), [("stop", "stopped"), ("yield", "disconnected")])
@pytest.mark.parametrize("lost", ["the call", "the answer"])
async def test_call_that_wants_an_answer_is_made_again_until_there_is_one(
    house: House,
    rows: Rows,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    status: str,
    lost: str,
) -> None:
    reply_id, seen = await pause(house, tenant)
    monkeypatch.setattr("app.replies.elsewhere.CALLS", 1000)
    calls = Calls(house.door if lost == "the call" else house.home, monkeypatch)
    calls.lost = {kind, "done"}
    client = (
        await stop(house.door, tenant, reply_id)
        if kind == "stop"
        else await question(house.door, tenant, chat_of(rows, reply_id))
    )
    await eventually(lambda: len(calls.kinds) > (1 if lost == "the call" else 0))
    calls.lost = set()
    assert (await client.read_head())[0] == b"HTTP/1.1 200 OK"
    assert stored(rows, reply_id) == (status, seen)


@pytest.mark.usefixtures("often")
async def test_last_word_that_home_could_not_store_is_told_elsewhere_all_the_same(
    start_server: StartServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES), checkpoint_s=0)
    _, reader, _ = await read_at_the_door(house, tenant)
    store, tries = house.home.app[STORE], []
    turn_checkpoint = store.turn_checkpoint

    async def fail_once(**params: Any) -> Any:
        tries.append(params)
        if len(tries) == 1:
            raise DatabaseAway(sent=False)
        return await turn_checkpoint(**params)

    monkeypatch.setattr(store, "turn_checkpoint", fail_once)
    # And then the model thinks for long.
    house.model.go()
    assert await read_chars(reader, 1) == PIECES[2]
    assert len(tries) > 1


async def test_server_is_told_of_an_end_that_comes_while_it_is_told_of_the_last_words() -> None:
    reply = Reply("reply", "chat", datetime.now(UTC))
    told: list[tuple[bool, list[tuple[str, str]]]] = []

    class Home:
        has_grown = True

        def __init__(self) -> None:
            self.reply = reply

        async def try_store(self, turns: Any, bells: list[tuple[str, str]]) -> None:
            told.append((isinstance(reply.state, Ended), bells))
            if len(told) == 1:
                reply.close("complete")
                reply.end(Ended("complete"))

    home: Any = Home()
    turns: Any = SimpleNamespace(find=lambda reply_id: home)
    bells: Any = SimpleNamespace(server_id=1)
    remotes = Remotes(turns, home, bells, Tasks())
    remotes.take(Call("read", "reply", 2))
    telling = asyncio.create_task(remotes.keep_told())
    await eventually(lambda: len(told) == 2)
    said = [bell(2, Call("said", "reply", 1))]
    assert told == [(False, said), (True, said)]
    await eventually(lambda: not remotes.has_readers("reply"))
    telling.cancel()


@pytest.mark.usefixtures("often")
async def test_calls_that_come_late_or_twice_or_for_nothing_do_no_harm(
    house: House, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    first_id, _ = await pause(house, tenant)
    assert (await answer(await stop(house.door, tenant, first_id)))[1]["status"] == "stopped"
    reply_id, reader, seen = await read_at_the_door(house, tenant)
    store = house.door.app[STORE]
    home_id, door_id = house.home.app[BELLS].server_id, house.door.app[BELLS].server_id
    # Of one that has long ended, and of one that there never was.
    bells = [
        bell(home_id, Call(kind, each, door_id))
        for kind in ("read", "left", "stop", "yield", "said")
        for each in (first_id, "00000000-0000-0000-0000-000000000000")
    ]
    # Of a server that reads nothing here; of one that reads already, and wants a reply to yield that is read.
    bells += [bell(home_id, Call(kind, reply_id, SILENT)) for kind in ("left", "yield", "said")]
    bells += [bell(home_id, Call(kind, reply_id, door_id)) for kind in ("read", "read", "yield")]
    bells += [(bells[0][0], payload) for payload in ("", "{}", "[1]", '["read", null, []]')]
    await store.server_call(channels=[each[0] for each in bells], payloads=[each[1] for each in bells])
    await eventually(lambda: len(logged(caplog, "Call failed")) >= 3)
    house.model.go(len(PIECES))
    read = events(b"".join(await reader.read_chunks()))
    assert (seen + spoken(read), read[-1]["done"]) == (TEXT, True)
    assert stored(rows, reply_id) == ("complete", TEXT)
    assert stored(rows, first_id)[0] == "stopped"
    await eventually(lambda: house.turns.find(reply_id) is None)


@pytest.mark.usefixtures("often")
async def test_reader_elsewhere_misses_nothing_when_servers_lose_the_connections_that_they_hear_by(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    _, reader, seen = await read_at_the_door(house, tenant)
    ears = "from pg_stat_activity where application_name = 'llm-app bell'"
    for _ in range(2):
        deaf = rows(f"select pid, pg_terminate_backend(pid) {ears}")
        assert len(deaf) >= 2
        house.model.go()
        seen += await read_chars(reader, 1)
        gone = {pid for pid, _ in deaf}
        await eventually(lambda gone=gone: len({pid for (pid,) in rows(f"select pid {ears}")} - gone) >= 2)
    house.model.go(len(PIECES))
    assert seen + spoken(events(b"".join(await reader.read_chunks()))) == TEXT


@pytest.mark.usefixtures("often")
async def test_stop_that_home_does_not_hear_is_503_and_may_be_repeated(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    client, reply_id = await ask(house.home, tenant)
    rows("update messages set server_id = %s where id = %s", SILENT, reply_id)
    status, body = await answer(await stop(house.door, tenant, reply_id))
    message = "The server that has the reply did not answer; try again."
    assert (status, body["error"], body["message"]) == (503, "Not stopped", message)
    rows("update messages set server_id = %s where id = %s", house.home.app[BELLS].server_id, reply_id)
    status, body = await answer(await stop(house.door, tenant, reply_id))
    assert (status, body["status"]) == (200, "stopped")
    assert [event["error"] for event in events(b"".join(await client.read_chunks()))] == ["Stopped"]


@pytest.mark.usefixtures("often")
async def test_question_in_a_chat_whose_home_does_not_hear_is_409(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, _ = await pause(house, tenant)
    rows("update messages set server_id = %s where id = %s", SILENT, reply_id)
    status, body = await answer(await question(house.door, tenant, chat_of(rows, reply_id)))
    assert (status, body["message_id"]) == (409, reply_id)
    assert stored(rows, reply_id)[0] == "streaming"


async def test_word_that_was_said_before_is_no_answer_to_a_question(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, seen = await pause(house, tenant)
    with held(rows, "messages", reply_id):
        client = await question(house.door, tenant, chat_of(rows, reply_id))
        # Home has heard, and ends the reply; it has not answered yet.
        await waiting(rows, 1)
        house.door.app[ELSEWHERE].take(Call("said", reply_id, house.home.app[BELLS].server_id))
        # Long enough to be taken for one.
        await asyncio.sleep(0.05)
    status, _ = await client.read_head()
    assert status == b"HTTP/1.1 200 OK"
    assert stored(rows, reply_id) == ("disconnected", seen)


async def test_questions_and_stops_at_one_server_are_all_answered(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    asker, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(asker, house.model, 1)
    chat_id = chat_of(rows, reply_id)
    refused = [await question(house.door, tenant, chat_id) for _ in range(5)]
    for client in refused:
        status, body = await answer(client)
        assert (status, body["message_id"]) == (409, reply_id)
    with held(rows, "messages", reply_id):
        stoppers = [await stop(house.door, tenant, reply_id) for _ in range(5)]
        await waiting(rows, 1)
    for stopper in stoppers:
        assert (await answer(stopper))[1]["status"] == "stopped"
    assert stored(rows, reply_id) == ("stopped", seen)
