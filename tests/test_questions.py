"""A question in a chat that has turns: one whose reply is read is in its way, one that nobody reads makes way.

And the model is given exactly the turns that are stored before its own.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence

import pytest
from aiohttp.test_utils import TestServer
from house import (
    PIECES,
    House,
    answer,
    ask,
    chat_of,
    come_back,
    disconnect,
    hears,
    held,
    open_house,
    pause,
    question,
    read_pieces,
    read_rest,
    spoken,
    stop,
    stored,
    waiting,
    waits_noted,
)
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, post, says

from app.models import Conversation, Message

KEY = "Idempotency-Key: one\r\n"


@pytest.fixture
async def house(start_server: StartServer, elsewhere: bool) -> House:
    return await open_house(start_server, elsewhere, Gated(pieces=PIECES))


class Echo:
    """A model that says how many messages it was given, and notes them."""

    def __init__(self) -> None:
        self.given: list[Sequence[Message]] = []

    async def __call__(self, conversation: Conversation) -> AsyncIterator[str]:
        self.given.append(conversation.messages)
        yield str(len(conversation.messages))


def positions(rows: Rows, chat_id: str) -> list[tuple[int, str, str, str]]:
    return rows(
        "select position, role, content, status from messages where chat_id = %s order by position", chat_id
    )


def alternate(count: int) -> list[tuple[int, str]]:
    """Return the positions and the roles of a chat of so many messages."""
    return [(i + 1, ("user", "assistant")[i % 2]) for i in range(count)]


def add_turn(rows: Rows, tenant: Tenant, chat_id: str) -> None:
    """Add a whole turn to a chat of one turn, as another server does."""
    rows(
        "insert into messages (org_id, id, chat_id, position, role, content, status, finished_at, server_id)"
        " select %s, gen_random_uuid(), %s, position, role, content, 'complete', now(), server_id"
        " from (values (3, 'user', 'Two?', null::bigint), (4, 'assistant', 'Two.', 1))"
        " as turn (position, role, content, server_id)",
        tenant.org_id,
        chat_id,
    )
    rows("update chats set message_count = 4 where id = %s", chat_id)


@pytest.mark.parametrize("read_at", ["home", "the asking server", "a third server"])
async def test_question_in_a_chat_whose_reply_is_read_is_409_with_its_id(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant, read_at: str
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES))
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 1)
    if read_at != "home":
        at = house.door if read_at == "the asking server" else await hears(await start_server())
        reader = await come_back(at, tenant, reply_id, len(seen))
        await eventually(lambda: len(house.turn(reply_id).reply.readers) == 2)
        client.reset()
        await eventually(lambda: len(house.turn(reply_id).reply.readers) == 1)
        client = reader
        await client.read_head()
    chat_id = chat_of(rows, reply_id)
    second = await question(house.door, tenant, chat_id)
    status, head = await second.read_head()
    body = json.loads(await second.reader.readexactly(int(head[b"content-length"])))
    assert (status, head[b"retry-after"]) == (b"HTTP/1.1 409 Conflict", b"1")
    assert (body["error"], body["message_id"]) == ("Reply running", reply_id)
    assert body["message"] == "The chat has a reply that still runs; read it, stop it, or wait for its end."
    assert [row[:2] for row in positions(rows, chat_id)] == alternate(2)
    # And the reply goes on.
    house.model.go(len(PIECES))
    read = events(b"".join(await client.read_chunks()))
    assert (seen + spoken(read), read[-1]["done"]) == ("".join(PIECES), True)


@pytest.mark.parametrize("unread", ["pause", "finish"])
async def test_question_in_a_chat_whose_reply_nobody_reads_ends_that_reply(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant, unread: str
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES), unread=unread)
    reply_id, seen = await pause(house, tenant)
    chat_id = chat_of(rows, reply_id)
    running = house.turns.running
    second = await question(house.door, tenant, chat_id)
    status, head = await second.read_head()
    assert status == b"HTTP/1.1 200 OK"
    # Its model and its place are free by then.
    assert running.total() == (0 if elsewhere else 1)
    await house.model.closed.wait()
    assert stored(rows, reply_id) == ("disconnected", seen)
    new_id = head[b"x-message-id"].decode()
    if not elsewhere:
        house.model.go(len(PIECES))
    read = events(b"".join(await second.read_chunks()))
    said = "not asked" if elsewhere else "".join(PIECES)
    assert (spoken(read), read[-1]["done"]) == (said, True)
    assert stored(rows, new_id) == ("complete", said)
    # And so the first one stays, whoever asks.
    for server in (house.home, house.door):
        ended = (200, {"message_id": reply_id, "status": "disconnected"})
        assert await answer(await stop(server, tenant, reply_id)) == ended
        _, read = await read_rest(await come_back(server, tenant, reply_id, 0))
        assert (spoken(read), read[-1]["error"]) == (seen, "Stream failed")
        status, _ = await (await come_back(server, tenant, reply_id, len(seen))).read_head()
        assert status == b"HTTP/1.1 204 No Content"
    assert stored(rows, reply_id) == ("disconnected", seen)


async def test_question_of_post_chat_ends_the_reply_that_nobody_reads_too(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, seen = await pause(house, tenant)
    client = await RawClient.connect(house.door)
    body = json.dumps({"message": "And?", "chat_id": chat_of(rows, reply_id)}).encode()
    client.send(post("/chat", body, tenant))
    await house.model.closed.wait()
    house.model.go(len(PIECES))
    status, answered = await answer(client)
    assert (status, answered["reply"] in ("not asked", "".join(PIECES))) == (200, True)
    assert stored(rows, reply_id) == ("disconnected", seen)


async def test_questions_of_one_user_in_many_chats_end_only_the_reply_of_their_own(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    first_id, _ = await pause(house, tenant)
    second, second_id = await ask(house.home, tenant)
    await disconnect(house, second, second_id)
    await (await question(house.door, tenant, chat_of(rows, first_id))).read_head()
    assert stored(rows, first_id)[0] == "disconnected"
    assert stored(rows, second_id)[0] == "streaming"
    assert house.turn(second_id).reply.is_held


async def test_question_while_the_reply_before_it_is_being_stored_waits_and_is_given_it(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    home, echo = Gated(pieces=PIECES), Echo()

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        async for piece in (home if len(conversation.messages) == 1 else echo)(conversation):
            yield piece

    house = await open_house(start_server, elsewhere, model)
    door = await hears(await start_server(model=model)) if elsewhere else house.home
    _, reply_id = await ask(house.home, tenant, message="One?")
    with held(rows, "messages", reply_id), waits_noted() as waits:
        home.go(len(PIECES))
        await waiting(rows, 1)
        client = await question(door, tenant, chat_of(rows, reply_id))
        await eventually(lambda: waits == [house.turn(reply_id)])
    _, read = await read_rest(client)
    assert (spoken(read), read[-1]["done"]) == ("3", True)
    given = [Message("user", "One?"), Message("assistant", "".join(PIECES)), Message("user", "And?")]
    assert echo.given == [given]
    assert stored(rows, reply_id) == ("complete", "".join(PIECES))


async def test_turn_that_comes_first_while_a_question_waits_is_given_to_its_model(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    model = Echo()
    server = await start_server(model=model)
    client, reply_id = await ask(server, tenant, message="One?")
    await client.read_chunks()
    chat_id = chat_of(rows, reply_id)
    with held(rows, "chats", chat_id):
        client = await question(server, tenant, chat_id)
        await waiting(rows, 1)
        add_turn(rows, tenant, chat_id)
    status, read = await read_rest(client)
    assert (status, spoken(read)) == (b"HTTP/1.1 200 OK", "5")
    assert model.given[1] == [
        Message("user", "One?"),
        Message("assistant", "1"),
        Message("user", "Two?"),
        Message("assistant", "Two."),
        Message("user", "And?"),
    ]
    assert positions(rows, chat_id) == [
        (1, "user", "One?", "complete"),
        (2, "assistant", "1", "complete"),
        (3, "user", "Two?", "complete"),
        (4, "assistant", "Two.", "complete"),
        (5, "user", "And?", "complete"),
        (6, "assistant", "5", "complete"),
    ]
    assert rows("select message_count from chats where id = %s", chat_id) == [(6,)]


async def test_turn_that_comes_first_before_a_question_has_looked_is_the_older_one(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=Echo())
    client, reply_id = await ask(server, tenant, message="One?")
    await client.read_chunks()
    chat_id = chat_of(rows, reply_id)
    # It has come, and sees nothing yet: so it is not overtaken by what is done meanwhile.
    with rows.locked("chats"):
        client = await question(server, tenant, chat_id)
        await eventually(lambda: rows.waiting() == 1)
        add_turn(rows, tenant, chat_id)
        rows("update messages set created_at = clock_timestamp() where chat_id = %s and position > 2", chat_id)
    await read_rest(client)
    times = [at for (at,) in rows("select created_at from messages where chat_id = %s order by position", chat_id)]
    assert (times, len(times)) == (sorted(times), 6)


async def test_turn_that_is_taken_back_while_a_question_waits_is_not_given_to_its_model(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    model = Echo()
    server = await start_server(model=model)
    client, reply_id = await ask(server, tenant, message="One?")
    await client.read_chunks()
    chat_id = chat_of(rows, reply_id)
    add_turn(rows, tenant, chat_id)
    with held(rows, "chats", chat_id):
        client = await question(server, tenant, chat_id)
        await waiting(rows, 1)
        rows("delete from messages where chat_id = %s and position > 2", chat_id)
        rows("update chats set message_count = 2 where id = %s", chat_id)
    assert spoken((await read_rest(client))[1]) == "3"
    assert model.given[1] == [Message("user", "One?"), Message("assistant", "1"), Message("user", "And?")]
    assert [row[:2] for row in positions(rows, chat_id)] == alternate(4)


async def test_turn_with_a_key_that_is_overtaken_keeps_its_key(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    model = Echo()
    server = await start_server(model=model)
    client, reply_id = await ask(server, tenant)
    await client.read_chunks()
    chat_id = chat_of(rows, reply_id)
    with held(rows, "chats", chat_id):
        clients = [await question(server, tenant, chat_id, KEY) for _ in range(2)]
        await waiting(rows, 2)
        add_turn(rows, tenant, chat_id)
    heads = [(await client.read_head())[1] for client in clients]
    assert len({head[b"x-message-id"] for head in heads}) == 1
    for client in clients:
        assert spoken(events(b"".join(await client.read_chunks()))) == "5"
    assert [row[:2] for row in positions(rows, chat_id)] == [
        (i + 1, ("user", "assistant")[i % 2]) for i in range(6)
    ]


async def test_question_that_waits_for_another_whose_reply_then_runs_is_409(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=Gated())
    _, reply_id = await ask(server, tenant)
    chat_id = chat_of(rows, reply_id)
    await (await stop(server, tenant, reply_id)).read_head()
    with held(rows, "chats", chat_id):
        clients = [await question(server, tenant, chat_id) for _ in range(2)]
        await waiting(rows, 2)
    answers = [(await client.read_head())[0] for client in clients]
    assert sorted(answers) == [b"HTTP/1.1 200 OK", b"HTTP/1.1 409 Conflict"]
    assert [row[:2] for row in positions(rows, chat_id)] == [
        (i + 1, ("user", "assistant")[i % 2]) for i in range(4)
    ]


async def test_question_whose_chat_is_taken_back_while_it_waits_is_404(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=says("Hello"))
    client, reply_id = await ask(server, tenant)
    await client.read_chunks()
    chat_id = chat_of(rows, reply_id)
    with held(rows, "chats", chat_id):
        client = await question(server, tenant, chat_id)
        await waiting(rows, 1)
        rows("delete from messages where chat_id = %s", chat_id)
        rows("delete from chats where id = %s", chat_id)
    status, body = await answer(client)
    assert (status, body["message"]) == (404, "There is no such chat.")


async def test_many_questions_in_one_chat_at_once_leave_one_reply_running(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    servers: list[TestServer] = [await hears(await start_server(model=model)) for _ in range(2)]
    client, reply_id = await ask(servers[0], tenant)
    chat_id = chat_of(rows, reply_id)
    await (await stop(servers[0], tenant, reply_id)).read_head()
    await client.read_chunks()

    async def ask_at(i: int) -> bytes:
        return (await (await question(servers[i % 2], tenant, chat_id)).read_head())[0]

    answers = await asyncio.gather(*(ask_at(i) for i in range(20)))
    assert sorted(answers) == [b"HTTP/1.1 200 OK"] + [b"HTTP/1.1 409 Conflict"] * 19
    assert [row[:2] for row in positions(rows, chat_id)] == [
        (i + 1, ("user", "assistant")[i % 2]) for i in range(4)
    ]


async def test_many_questions_at_once_in_a_chat_whose_reply_nobody_reads_leave_one_reply_running(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    reply_id, seen = await pause(house, tenant)
    chat_id = chat_of(rows, reply_id)

    async def ask_at(server: TestServer) -> bytes:
        return (await (await question(server, tenant, chat_id)).read_head())[0]

    answers = await asyncio.gather(*(ask_at(server) for _ in range(5) for server in (house.home, house.door)))
    # The one at the other server may have ended before the others ask.
    assert set(answers) <= {b"HTTP/1.1 200 OK", b"HTTP/1.1 409 Conflict"}
    assert b"HTTP/1.1 200 OK" in answers
    assert stored(rows, reply_id) == ("disconnected", seen)
    turns = [row[:2] for row in positions(rows, chat_id)]
    assert turns == alternate(len(turns))


async def test_question_in_a_chat_of_another_user_ends_nothing(house: House, rows: Rows, tenant: Tenant) -> None:
    reply_id, _ = await pause(house, tenant)
    for other in (rows.tenant(), rows.tenant(tenant.org_id)):
        for chat_id in (chat_of(rows, reply_id), str(uuid.uuid4())):
            status, body = await answer(await question(house.door, other, chat_id))
            assert (status, body["message"]) == (404, "There is no such chat.")
    assert stored(rows, reply_id)[0] == "streaming"
    assert house.turn(reply_id).reply.is_held
