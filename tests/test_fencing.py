"""Replies whose server may be taken for dead: what it cannot show to be its own it does not say, nor end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from aiohttp.test_utils import TestServer
from house import (
    PIECES,
    TEXT,
    House,
    answer,
    ask,
    chat_of,
    come_back,
    hears,
    lost,
    open_house,
    pause,
    read_chars,
    read_pieces,
    read_rest,
    spoken,
    stop,
    stored,
)
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, logged, post, says

from app.replies import lease
from app.replies.lease import GIVE_UP_AFTER, LEASE_S
from app.server import GUARD, SERVER_ID
from app.storage.db import DatabaseAway
from app.storage.store import STORE

# The number of a server that does not hold its lock.
LATE = 4711

SAVED = "; what it said so far is saved."
INTERRUPTED = {"error": "Stream failed", "message": "The server is stopping" + SAVED}


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let this machine have slept for as long as a lease lasts, whenever it is called."""
    real_now_s, slept = lease.now_s, 0.0

    def now_s() -> float:
        return real_now_s() + slept

    def sleep() -> None:
        nonlocal slept
        slept += LEASE_S

    for room in ("lease", "guard"):
        monkeypatch.setattr(f"app.replies.{room}.now_s", now_s)
    monkeypatch.setattr("app.server.GUARD_S", 0.02)
    return sleep


class Lock:
    """The lock of a server, which cannot be taken while `is_lost`."""

    def __init__(self, server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_lost = False
        store = server.app[STORE]
        server_lock = store.server_lock

        async def lock(**params: Any) -> Any:
            if self.is_lost:
                raise DatabaseAway(sent=False)
            return await server_lock(**params)

        monkeypatch.setattr(store, "server_lock", lock)


@pytest.fixture
def guards_do_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.GUARD_S", 60.0)


def running_reply(rows: Rows, tenant: Tenant, server_id: int) -> str:
    chat_id, reply_id = str(uuid.uuid4()), str(uuid.uuid4())
    chat = "insert into chats (org_id, id, user_id, title, message_count) values (%s, %s, %s, 'A chat', 2)"
    rows(chat, tenant.org_id, chat_id, tenant.user_id)
    rows(
        "insert into messages (org_id, id, chat_id, position, role, content, status, server_id)"
        " values (%s, %s, %s, 2, 'assistant', 'One', 'streaming', %s)",
        tenant.org_id,
        reply_id,
        chat_id,
        server_id,
    )
    return reply_id


async def waits_for_a_lock(rows: Rows) -> None:
    waits = "select pid from pg_stat_activity where application_name = 'llm-app' and wait_event_type = 'Lock'"
    await eventually(lambda: rows(waits))


@pytest.mark.usefixtures("guards_do_not_look")
async def test_replies_of_a_server_that_has_its_lock_again_by_the_time_they_are_locked_are_not_closed(
    start_server: StartServer, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    store = (await start_server()).app[STORE]
    reply_id = running_reply(rows, tenant, LATE)
    with closing(psycopg2.connect(postgres_url)) as other, other.cursor() as cursor:
        cursor.execute("select from messages where id = %s for update", [reply_id])
        looked = asyncio.ensure_future(store.turn_interrupt(given_up=[LATE], silence_s=60.0))
        await waits_for_a_lock(rows)
        rows("select pg_advisory_lock(%s)", LATE)
    try:
        assert [row.closed for row in await looked if row.server_id == LATE] == [0]
    finally:
        rows("select pg_advisory_unlock(%s)", LATE)
    looked = await store.turn_interrupt(given_up=[LATE], silence_s=60.0)
    assert [row.closed for row in looked if row.server_id == LATE] == [1]


@pytest.mark.usefixtures("guards_do_not_look")
async def test_proof_waits_for_what_another_server_has_begun_to_close(
    start_server: StartServer, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    app = (await start_server()).app
    reply_ids = [running_reply(rows, tenant, app[SERVER_ID]) for _ in range(2)]
    ours = {"org_ids": [tenant.org_id] * 2, "reply_ids": reply_ids}
    assert {row.id for row in await app[STORE].turn_prove(**ours)} == set(reply_ids)
    with closing(psycopg2.connect(postgres_url)) as other, other.cursor() as cursor:
        cursor.execute(
            "update messages set status = 'interrupted', finished_at = now() where id = %s", [reply_ids[0]]
        )
        proof = asyncio.ensure_future(app[STORE].turn_prove(**ours))
        await waits_for_a_lock(rows)
        other.commit()
    assert [row.id for row in await proof] == [reply_ids[1]]


def interrupt(rows: Rows, reply_id: str) -> None:
    """Close a reply as other servers do that take its server for dead."""
    rows("update messages set status = 'interrupted', finished_at = now() where id = %s", reply_id)


@pytest.mark.parametrize("found_by", ["checkpoint", "close", "window"])
async def test_reply_that_others_have_closed_ends_as_they_closed_it(
    start_server: StartServer,
    elsewhere: bool,
    rows: Rows,
    tenant: Tenant,
    caplog: pytest.LogCaptureFixture,
    found_by: str,
) -> None:
    settings: dict[str, Any] = {"checkpoint_s": 0.02 if found_by == "checkpoint" else 0, "resume_window_s": 0.02}
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES), **settings)
    client, reply_id = await ask(house.home, tenant)
    reader = await come_back(house.home, tenant, reply_id, 0)
    await eventually(lambda: len(house.turn(reply_id).reply.readers) == 2)
    seen = await read_pieces(client, house.model, 2)
    if found_by == "checkpoint":
        await eventually(lambda: stored(rows, reply_id) == ("streaming", seen))
    left = stored(rows, reply_id)[1]
    interrupt(rows, reply_id)
    if found_by == "checkpoint":
        house.model.go()
    elif found_by == "close":
        house.model.go(len(PIECES))
    else:
        for each in (client, reader):
            each.reset()
    if found_by != "window":
        read = events(b"".join(await client.read_chunks()))
        seen += spoken(read)
        assert read[-1] == lost(len(seen), len(left))
        _, read = await read_rest(reader)
        assert read[-1] == lost(len(spoken(read)), len(left))
    await eventually(lambda: house.turns.running.total() == 0)
    await house.model.closed.wait()
    assert stored(rows, reply_id) == ("interrupted", left)
    for server in (house.home, house.door):
        ended = (200, {"message_id": reply_id, "status": "interrupted"})
        assert await answer(await stop(server, tenant, reply_id)) == ended
        status, _ = await (await come_back(server, tenant, reply_id, len(left))).read_head()
        assert status == b"HTTP/1.1 204 No Content"
    assert logged(caplog, "Stream completed") == []


async def test_stop_of_a_reply_that_others_have_closed_is_answered_as_they_closed_it(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES))
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    interrupt(rows, reply_id)
    for server in (house.door, house.home):
        ended = (200, {"message_id": reply_id, "status": "interrupted"})
        assert await answer(await stop(server, tenant, reply_id)) == ended
    assert events(b"".join(await client.read_chunks())) == [lost(len(seen), 0)]
    assert stored(rows, reply_id) == ("interrupted", "")


async def test_reader_elsewhere_of_a_reply_that_others_have_closed_is_told_though_home_does_not_know(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES), checkpoint_s=0, shutdown_grace_s=0)
    reply_id, seen = await pause(house, tenant)
    reader = await come_back(house.door, tenant, reply_id, 0)
    await reader.read_head()
    assert await read_chars(reader, len(seen)) == seen
    interrupt(rows, reply_id)
    read = events(b"".join(await reader.read_chunks()))
    assert read[-1] == INTERRUPTED
    assert stored(rows, reply_id) == ("interrupted", seen)


async def test_server_that_has_not_shown_that_it_lives_says_no_word_until_it_has(
    start_server: StartServer,
    elsewhere: bool,
    rows: Rows,
    tenant: Tenant,
    sleep: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES))
    lock = Lock(house.home, monkeypatch)
    client, reply_id = await ask(house.home, tenant)
    reader = await come_back(house.door, tenant, reply_id, 0)
    reply = house.turn(reply_id).reply
    await eventually(lambda: len(reply.readers) == 2)
    seen = await read_pieces(client, house.model, 2)
    # Once, and again.
    for said in (3, 5):
        lock.is_lost = True
        sleep()
        house.model.go(2)
        await eventually(lambda said=said: house.model.said == said)
        for _ in range(10):
            await asyncio.sleep(0)
        # It is kept, and no other is asked for.
        assert (house.model.said, reply.text) == (said, seen)
        lock.is_lost = False
        seen += await read_chars(client, len(PIECES[said - 1]))
        seen += await read_chars(client, len(PIECES[said]))
        assert seen == "".join(PIECES[: said + 1])
    house.model.go(len(PIECES))
    assert seen + spoken(events(b"".join(await client.read_chunks()))) == TEXT
    _, read = await read_rest(reader)
    assert (spoken(read), read[-1]["fullText"]) == (TEXT, TEXT)
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_server_that_wakes_and_finds_a_reply_closed_says_no_further_word_of_it(
    start_server: StartServer,
    elsewhere: bool,
    rows: Rows,
    tenant: Tenant,
    sleep: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES), checkpoint_s=0)
    lock = Lock(house.home, monkeypatch)
    client, reply_id = await ask(house.home, tenant)
    other, other_id = await ask(house.home, tenant)
    await read_pieces(client, house.model, 1)
    lock.is_lost = True
    sleep()
    interrupt(rows, reply_id)
    house.model.go(2)
    await eventually(lambda: house.model.said == 3)
    lock.is_lost = False
    assert events(b"".join(await client.read_chunks())) == [lost(len(PIECES[0]), 0)]
    assert stored(rows, reply_id) == ("interrupted", "")
    assert (await answer(await stop(house.door, tenant, reply_id)))[1]["status"] == "interrupted"
    # What others left alone goes on.
    house.model.go(len(PIECES))
    read = events(b"".join(await other.read_chunks()))
    assert (spoken(read), read[-1]["done"]) == (TEXT, True)
    assert stored(rows, other_id) == ("complete", TEXT)


@pytest.mark.parametrize("then", ["closed", "deleted"])
async def test_who_comes_back_to_a_server_that_wakes_is_told_what_others_have_made_of_the_reply(
    start_server: StartServer,
    rows: Rows,
    tenant: Tenant,
    sleep: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    then: str,
) -> None:
    house = await open_house(start_server, False, Gated(pieces=PIECES), checkpoint_s=0)
    lock = Lock(house.home, monkeypatch)
    client, reply_id = await ask(house.home, tenant)
    await read_pieces(client, house.model, 2)
    lock.is_lost = True
    sleep()
    interrupt(rows, reply_id)
    if then == "deleted":
        rows("delete from chats where id = %s", chat_of(rows, reply_id))
    status, _ = await (await come_back(house.home, tenant, reply_id, 0)).read_head()
    # It has ended, and there is no text of it.
    assert status == {"closed": b"HTTP/1.1 204 No Content", "deleted": b"HTTP/1.1 404 Not Found"}[then]


async def test_reply_is_stopped_while_its_server_has_not_shown_that_it_lives(
    start_server: StartServer,
    elsewhere: bool,
    rows: Rows,
    tenant: Tenant,
    sleep: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES))
    lock = Lock(house.home, monkeypatch)
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    lock.is_lost = True
    sleep()
    house.model.go()
    await eventually(lambda: house.model.said == 3)
    stopped = (200, {"message_id": reply_id, "status": "stopped"})
    assert await answer(await stop(house.door, tenant, reply_id)) == stopped
    # The word that was kept is not said any more.
    assert [event.get("error") for event in events(b"".join(await client.read_chunks()))] == ["Stopped"]
    assert stored(rows, reply_id) == ("stopped", seen)


async def test_question_at_a_server_that_has_not_shown_that_it_lives_is_answered_once_it_has(
    start_server: StartServer,
    rows: Rows,
    tenant: Tenant,
    sleep: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = await open_house(start_server, False, says(*PIECES))
    lock = Lock(house.home, monkeypatch)
    lock.is_lost = True
    sleep()
    client, reply_id = await ask(house.home, tenant)
    whole = await RawClient.connect(house.home)
    whole.send(post("/chat", b'{"message": "Hi"}', tenant))
    await eventually(lambda: house.turns.running.total() == 2)
    assert house.turn(reply_id).reply.text == ""
    lock.is_lost = False
    assert spoken(events(b"".join(await client.read_chunks()))) == TEXT
    assert (await answer(whole))[1]["reply"] == TEXT


async def look(server: TestServer, times: int) -> None:
    for _ in range(times):
        await server.app[GUARD].look()


@pytest.fixture
async def quiet(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> House:
    """Two servers that show that they live, and look for others, only when a test says so."""
    monkeypatch.setattr("app.server.GUARD_S", 3600)
    monkeypatch.setattr("app.replies.lease.LEASE_S", 3600)
    monkeypatch.setattr("app.replies.mirrors.CALL_AGAIN_S", 0.05)
    return await open_house(start_server, True, Gated(pieces=PIECES), resume_window_s=3600)


async def test_reply_of_a_dead_server_that_nobody_reads_is_interrupted_and_its_text_stays(
    quiet: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, seen = await pause(quiet, tenant)
    # Nobody holds the lock of this server, nor hears its calls.
    rows("update messages set server_id = 1 where id = %s", reply_id)
    reader = await come_back(quiet.door, tenant, reply_id, 3)
    await look(quiet.door, GIVE_UP_AFTER)
    assert stored(rows, reply_id) == ("streaming", seen)
    await look(quiet.door, 1)
    _, read = await read_rest(reader)
    assert (spoken(read), read[-1]) == (seen[3:], INTERRUPTED)
    assert stored(rows, reply_id) == ("interrupted", seen)
    # Its server, which lives after all, ends it so too.
    status, body = await answer(await stop(quiet.home, tenant, reply_id))
    assert (status, body["status"]) == (200, "interrupted")


async def test_server_that_takes_its_lock_again_in_time_is_looked_for_anew(
    quiet: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, seen = await pause(quiet, tenant)
    rows("update messages set server_id = 1 where id = %s", reply_id)
    await look(quiet.door, GIVE_UP_AFTER)
    rows("select pg_advisory_lock(1)")
    await look(quiet.door, 1)
    rows("select pg_advisory_unlock(1)")
    await look(quiet.door, GIVE_UP_AFTER)
    assert stored(rows, reply_id) == ("streaming", seen)
    await look(quiet.door, 1)
    assert stored(rows, reply_id) == ("interrupted", seen)


async def test_servers_that_look_at_once_count_each_for_itself_and_close_a_reply_once(
    start_server: StartServer, quiet: House, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    third = await hears(await start_server())
    reply_id, seen = await pause(quiet, tenant)
    rows("update messages set server_id = 1 where id = %s", reply_id)
    for _ in range(GIVE_UP_AFTER):
        await look(quiet.door, 1)
        await look(third, 1)
    assert stored(rows, reply_id) == ("streaming", seen)
    await look(third, 1)
    await look(quiet.door, 1)
    assert stored(rows, reply_id) == ("interrupted", seen)
    [record] = logged(caplog, "Closed replies that a dead server left open")
    assert record.replies == 1  # type: ignore[attr-defined]
