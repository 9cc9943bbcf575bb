"""Any number of readers of one reply, at any servers: none disturbs another, and the last one out is noticed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from house import (
    PIECES,
    TEXT,
    House,
    answer,
    ask,
    come_back,
    disconnect,
    hears,
    held,
    open_house,
    pause,
    read_chars,
    read_pieces,
    read_rest,
    spoken,
    stop,
    stored,
    waiting,
)
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, logged, post

from app.models import Conversation

# More than the buffers of a connection hold.
LARGE = "x" * 12_000_000


class Household(House):
    """A house with a third server."""

    third: TestServer

    @property
    def servers(self) -> dict[str, TestServer]:
        return {"home": self.home, "door": self.door, "third": self.third}


@pytest.fixture
async def house(start_server: StartServer) -> Household:
    house = await open_house(start_server, True, Gated(pieces=PIECES))
    household = Household(house.home, house.door, house.model)
    household.third = await hears(await start_server(write_timeout_s=0.5))
    return household


async def read_from_the_start(server: TestServer, tenant: Tenant, reply_id: str, seen: str) -> RawClient:
    """Come back with nothing, and read what was said so far."""
    reader = await come_back(server, tenant, reply_id, 0)
    await reader.read_head()
    assert await read_chars(reader, len(seen)) == seen
    return reader


async def test_any_number_of_readers_at_any_servers_read_the_same_running_reply(
    house: Household, rows: Rows, tenant: Tenant
) -> None:
    asker, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(asker, house.model, 2)
    readers = [
        await read_from_the_start(house.servers[at], tenant, reply_id, seen)
        for at in ("home", "home", "door", "door", "third")
    ]
    # Its asker, the two at home, and two other servers.
    await eventually(lambda: len(house.turn(reply_id).reply.readers) == 5)
    house.model.go(len(PIECES))
    assert seen + spoken(events(b"".join(await asker.read_chunks()))) == TEXT
    bodies = [await reader.read_chunks() for reader in readers]
    for body in bodies:
        assert seen + spoken(events(b"".join(body))) == TEXT
    # The last event is the same for all, byte for byte.
    assert len({body[-1].split(b"\n\n")[-2] for body in bodies}) == 1
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_reader_who_leaves_disturbs_no_other(
    house: Household, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    asker, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(asker, house.model, 2)
    places = ("home", "home", "door", "door", "third")
    readers = [await read_from_the_start(house.servers[at], tenant, reply_id, seen) for at in places]
    await eventually(lambda: len(house.turn(reply_id).reply.readers) == 5)
    # The asker, one of two at home, one of two at another server, and all of a third.
    for leaver in (asker, readers[0], readers[2], readers[4]):
        leaver.reset()
    await eventually(lambda: len(logged(caplog, "Client disconnected during stream")) == 4)
    # A reader at home, and another server.
    await eventually(lambda: len(house.turn(reply_id).reply.readers) == 2)
    house.model.go(len(PIECES))
    for reader in (readers[1], readers[3]):
        read = events(b"".join(await reader.read_chunks()))
        assert (seen + spoken(read), read[-1]["done"]) == (TEXT, True)
    assert stored(rows, reply_id) == ("complete", TEXT)


@pytest.mark.parametrize("last", ["home", "door", "third"])
async def test_reply_is_unread_only_when_the_last_reader_has_left_wherever_that_was(
    house: Household, rows: Rows, tenant: Tenant, last: str
) -> None:
    asker, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(asker, house.model, 1)
    turn = house.turn(reply_id)
    readers = {at: await read_from_the_start(house.servers[at], tenant, reply_id, seen) for at in house.servers}
    await eventually(lambda: len(turn.reply.readers) == 4)
    for at, reader in readers.items():
        if at != last:
            reader.reset()
    asker.reset()
    await eventually(lambda: len(turn.reply.readers) == 1)
    assert not turn.reply.is_held
    assert turn._window is None
    house.model.go()
    seen += await read_chars(readers[last], len(PIECES[1]))
    assert seen == "".join(PIECES[:2])
    readers[last].reset()
    await eventually(lambda: house.is_unread(reply_id))
    assert turn.reply.is_held
    assert turn._window is not None
    assert stored(rows, reply_id) == ("streaming", seen)


async def test_reader_who_comes_back_before_the_last_one_has_left_keeps_the_model_going(
    house: Household, tenant: Tenant
) -> None:
    asker, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(asker, house.model, 1)
    readers = [await read_from_the_start(house.door, tenant, reply_id, seen)]
    asker.reset()
    # From one server to the next, each before the one before has gone.
    for at in ("third", "door", "home", "third"):
        readers.append(await read_from_the_start(house.servers[at], tenant, reply_id, seen))
        readers.pop(0).reset()
        house.model.go()
        seen += await read_chars(readers[0], 1)
    assert seen == "".join(PIECES[:5])


async def test_readers_who_come_and_go_at_random_at_all_servers_miss_nothing_and_hear_nothing_twice(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    words = [f"{i} ①🙂 " if i % 7 else f"{i}\n\n" for i in range(150)]

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        for word in words:
            yield word
            await asyncio.sleep(0.005)

    servers = [await hears(await start_server(model=model, write_timeout_s=0.5)) for _ in range(3)]
    _, reply_id = await ask(servers[0], tenant)
    rng = random.Random(7)

    async def read() -> tuple[str, dict[str, Any]]:
        text = ""
        while True:
            reader = await come_back(rng.choice(servers), tenant, reply_id, len(text))
            status, _ = await reader.read_head()
            assert status == b"HTTP/1.1 200 OK"
            for _ in range(rng.randrange(2, 60)):
                for event in events(await reader.read_chunk()):
                    if event.get("done") is not False:
                        return text, event
                    text += event["token"]
            if rng.random() < 0.5:
                reader.reset()
            else:
                reader.writer.close()

    whole = "".join(words)
    async with asyncio.timeout(30):
        for text, last in await asyncio.gather(*(read() for _ in range(30))):
            assert (text, last["fullText"]) == (whole, whole)
    assert stored(rows, reply_id) == ("complete", whole)


async def test_reader_who_leaves_at_the_end_changes_nothing(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    # Without a window: whoever leaves a running reply last ends it.
    house = await open_house(start_server, False, Gated(pieces=PIECES), resume_window_s=0)
    client, reply_id = await ask(house.home, tenant)
    reply = house.turn(reply_id).reply
    with held(rows, "messages", reply_id):
        house.model.go(len(PIECES))
        await waiting(rows, 1)
        # Its end is being stored.
        client.reset()
        await eventually(lambda: not reply.readers)
    await eventually(lambda: stored(rows, reply_id) == ("complete", TEXT))


@pytest.mark.parametrize("slow_at", ["home", "door"])
async def test_reader_who_is_slow_holds_up_no_other_and_misses_nothing(
    start_server: StartServer, tenant: Tenant, slow_at: str
) -> None:
    model = Gated(pieces=[LARGE, *PIECES])
    house = await open_house(
        start_server, True, model, write_timeout_s=30, reply_limit_chars=2 * len(LARGE), db_timeout_s=30
    )
    asker, reply_id = await ask(house.home, tenant)
    slow = await come_back(house.home if slow_at == "home" else house.door, tenant, reply_id, 0)
    await eventually(lambda: len(house.turn(reply_id).reply.readers) == 2)
    model.go()
    # The slow one reads nothing meanwhile.
    assert await read_chars(asker, len(LARGE)) == LARGE
    model.go(len(PIECES))
    assert await read_chars(asker, len(TEXT)) == TEXT
    [last] = events(b"".join(await asker.read_chunks()))
    assert last["done"]
    _, read = await read_rest(slow)
    assert spoken(read) == LARGE + TEXT
    assert read[-1]["sha256"] == last["sha256"]


async def test_client_who_does_not_read_the_last_event_is_let_go(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    gate = asyncio.Event()

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        yield LARGE
        await gate.wait()

    limits = {"write_timeout_s": 0.5, "reply_limit_chars": len(LARGE)}
    house = await open_house(start_server, False, model, **limits)
    client, reply_id = await ask(house.home, tenant)
    await eventually(lambda: house.turn(reply_id).reply.length)
    await disconnect(house, client, reply_id)
    await come_back(house.home, tenant, reply_id, 0)
    await eventually(lambda: house.turn(reply_id).reply.readers)
    gate.set()
    await eventually(lambda: house.turns.running.total() == 0)
    connections = house.home.runner.server.connections  # type: ignore[union-attr]
    await eventually(lambda: not [c for c in connections if c.transport and c.transport.get_write_buffer_size()])


@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_stream_too_many_of_one_user_is_429_until_one_leaves(
    start_server: StartServer, rows: Rows, tenant: Tenant, path: str
) -> None:
    server = await start_server(model=Gated(), user_reader_limit=2, write_timeout_s=0.5)
    clients = [(await ask(server, tenant))[0] for _ in range(2)]
    client = await RawClient.connect(server)
    client.send(post(path, b'{"message": "Hi"}', tenant))
    status, body = await answer(client)
    message = "You have 2 streams open, expected at most 2 at once."
    assert (status, body["error"], body["message"]) == (429, "Too many streams", message)
    # Nothing was stored for it, and nobody else is in its way.
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(4,)]
    await ask(server, rows.tenant(tenant.org_id))
    clients.pop().reset()

    async def is_admitted() -> bool:
        client = await RawClient.connect(server)
        client.send(post("/chat/stream", b'{"message": "Hi"}', tenant))
        status, _ = await client.read_head()
        return status == b"HTTP/1.1 200 OK"

    async with asyncio.timeout(10):
        while not await is_admitted():
            pass


async def test_limit_counts_readers_of_one_reply_at_each_server_for_itself(
    start_server: StartServer, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES), user_reader_limit=1)
    reply_id, seen = await pause(house, tenant)
    for server in (house.home, house.door):
        reader = await come_back(server, tenant, reply_id, len(seen))
        status, _ = await reader.read_head()
        assert status == b"HTTP/1.1 200 OK"
        status, _ = await answer(await come_back(server, tenant, reply_id, 0))
        assert status == 429
    # To stop it needs no stream, nor to have one.
    assert (await answer(await stop(house.door, tenant, reply_id)))[0] == 200
