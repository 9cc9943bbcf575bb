"""Resume: a reader who comes back, to the same server or to another one on the same database; and Stop."""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid

import pytest
from house import (
    PIECES,
    TEXT,
    House,
    answer,
    ask,
    call,
    come_back,
    disconnect,
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
from support import Gated, RawClient, Rows, Tenant, events, eventually, logged, says

SAVED = "; what it said so far is saved."


@pytest.fixture
async def house(start_server: StartServer, elsewhere: bool) -> House:
    return await open_house(start_server, elsewhere, Gated(pieces=PIECES))


async def test_reader_who_comes_back_goes_on_at_the_very_next_character(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 4)
    await disconnect(house, client, reply_id)
    assert stored(rows, reply_id) == ("streaming", seen)
    house.model.go(len(PIECES))
    client = await come_back(house.door, tenant, reply_id, len(seen))
    status, read = await read_rest(client)
    assert status == b"HTTP/1.1 200 OK"
    assert seen + spoken(read) == TEXT
    done = read[-1]
    assert (done["done"], done["fullText"], done["message_id"]) == (True, TEXT, reply_id)
    assert (done["chars"], done["sha256"]) == (len(TEXT), hashlib.sha256(TEXT.encode()).hexdigest())
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_nothing_is_asked_of_the_model_while_nobody_reads(house: House, rows: Rows, tenant: Tenant) -> None:
    reply_id, seen = await pause(house, tenant)
    assert stored(rows, reply_id) == ("streaming", seen)
    house.model.go(5)
    # The one that it was waiting for when the client left, and no other.
    reply = house.turn(reply_id).reply
    await eventually(lambda: reply.text == "".join(PIECES[:3]))
    for _ in range(10):
        await asyncio.sleep(0)
    assert (house.model.said, reply.is_held) == (3, True)
    assert not house.model.closed.is_set()
    assert stored(rows, reply_id)[0] == "streaming"


async def test_reply_that_is_to_finish_goes_on_to_its_end_while_nobody_reads(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    # No window ends it.
    house = await open_house(
        start_server, elsewhere, Gated(pieces=PIECES), unread="finish", resume_window_s=0, checkpoint_s=0
    )
    reply_id, seen = await pause(house, tenant)
    assert stored(rows, reply_id) == ("streaming", seen)
    house.model.go(len(PIECES))
    await eventually(lambda: stored(rows, reply_id) == ("complete", TEXT))
    _, read = await read_rest(await come_back(house.door, tenant, reply_id, len(seen)))
    assert (seen + spoken(read), read[-1]["done"]) == (TEXT, True)


async def test_offset_within_a_word_gives_the_rest_of_the_word(house: House, rows: Rows, tenant: Tenant) -> None:
    client, reply_id = await ask(house.home, tenant)
    await read_pieces(client, house.model, 3)
    await disconnect(house, client, reply_id)
    house.model.go(len(PIECES))
    _, read = await read_rest(await come_back(house.door, tenant, reply_id, 2))
    assert spoken(read) == TEXT[2:]


async def test_event_ids_of_a_resumed_stream_count_on(house: House, rows: Rows, tenant: Tenant) -> None:
    client, reply_id = await ask(house.home, tenant)
    await read_pieces(client, house.model, 1)
    await disconnect(house, client, reply_id)
    house.model.go(len(PIECES))
    client = await RawClient.connect(house.door)
    client.send(
        f"GET /chat/stream?orgId={tenant.org_id}&userId={tenant.user_id}&message=ignored HTTP/1.1\r\n"
        f"Host: localhost\r\nLast-Event-ID: {reply_id}:3\r\n\r\n".encode()
    )
    _, head = await client.read_head()
    assert head[b"x-message-id"].decode() == reply_id
    body = b"".join(await client.read_chunks()).decode()
    ids = re.findall(r"^id: (.*)$", body, re.MULTILINE)
    assert ids[:3] == [f"{reply_id}:3", f"{reply_id}:4", f"{reply_id}:7"]
    assert ids[-1] == f"{reply_id}:{len(TEXT)}:end"
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(2,)]


async def test_reader_who_leaves_again_and_again_misses_nothing(house: House, tenant: Tenant) -> None:
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 1)
    for _ in range(3):
        await disconnect(house, client, reply_id)
        assert house.turn(reply_id).reply.is_held
        client = await come_back(house.door, tenant, reply_id, len(seen))
        house.model.go()
        await client.read_head()
        seen += await read_chars(client, 1)
    await disconnect(house, client, reply_id)
    house.model.go(len(PIECES))
    _, read = await read_rest(await come_back(house.door, tenant, reply_id, len(seen)))
    assert seen + spoken(read) == TEXT


async def test_reader_who_comes_back_within_the_window_is_not_ended_by_it(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES), resume_window_s=3600)
    reply_id, seen = await pause(house, tenant)
    turn = house.turn(reply_id)
    window = turn._window
    assert window is not None
    reader = await come_back(house.door, tenant, reply_id, len(seen))
    await eventually(lambda: turn.reply.readers)
    assert window.cancelled()
    house.model.go(len(PIECES))
    _, read = await read_rest(reader)
    assert seen + spoken(read) == TEXT
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_after_the_window_the_model_is_closed_and_the_rest_is_an_error(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES), resume_window_s=0.2)
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 3)
    client.reset()
    await house.model.closed.wait()
    await eventually(lambda: house.turns.running.total() == 0)
    assert stored(rows, reply_id) == ("disconnected", seen)
    status, read = await read_rest(await come_back(house.door, tenant, reply_id, 3))
    assert status == b"HTTP/1.1 200 OK"
    assert spoken(read) == seen[3:]
    assert read[-1] == {"error": "Stream failed", "message": "Nobody was reading the reply any more" + SAVED}
    status, _ = await (await come_back(house.door, tenant, reply_id, len(seen))).read_head()
    assert status == b"HTTP/1.1 204 No Content"


async def test_without_a_window_a_reply_ends_with_its_reader(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, False, Gated(), resume_window_s=0)
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 1)
    client.reset()
    await house.model.closed.wait()
    await eventually(lambda: stored(rows, reply_id) == ("disconnected", seen))


async def test_complete_reply_is_read_again_from_any_offset(house: House, tenant: Tenant) -> None:
    house.model.go(len(PIECES))
    client, reply_id = await ask(house.home, tenant)
    await client.read_chunks()
    for offset in (0, 5, len(TEXT)):
        status, read = await read_rest(await come_back(house.door, tenant, reply_id, offset))
        assert status == b"HTTP/1.1 200 OK"
        assert spoken(read) == TEXT[offset:]
        assert read[-1]["fullText"] == TEXT


async def test_event_source_that_has_all_is_told_to_stop(house: House, tenant: Tenant) -> None:
    house.model.go(len(PIECES))
    client, reply_id = await ask(house.home, tenant)
    await client.read_chunks()
    client = await RawClient.connect(house.door)
    client.send(
        f"GET /chat/stream?orgId={tenant.org_id}&userId={tenant.user_id}&message=Hi HTTP/1.1\r\n"
        f"Host: localhost\r\nLast-Event-ID: {reply_id}:{len(TEXT)}:end\r\n\r\n".encode()
    )
    status, _ = await client.read_head()
    assert status == b"HTTP/1.1 204 No Content"


@pytest.mark.parametrize("ended", [False, True])
async def test_offset_beyond_what_the_reply_has_is_409(house: House, tenant: Tenant, ended: bool) -> None:
    client, reply_id = await ask(house.home, tenant)
    if ended:
        house.model.go(len(PIECES))
        await client.read_chunks()
        length = len(TEXT)
    else:
        length = len(await read_pieces(client, house.model, 2))
    status, body = await answer(await come_back(house.door, tenant, reply_id, length + 1))
    message = f"offset is {length + 1}, expected at most {length}, what the reply has."
    assert (status, body["error"], body["message"]) == (409, "Bad offset", message)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("{reply}?offset=-1", 400), ("{reply}?offset=x", 400), ("{unknown}?offset=0", 404), ("nonsense", 400)],
)
async def test_what_cannot_be_resumed_is_refused(house: House, tenant: Tenant, path: str, expected: int) -> None:
    house.model.go(len(PIECES))
    client, reply_id = await ask(house.home, tenant)
    await client.read_chunks()
    path = path.format(reply=reply_id, unknown=uuid.uuid4())
    status, _ = await answer(await call(house.door, tenant, "GET", path))
    assert status == expected


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("ended", [False, True])
async def test_reply_of_another_user_does_not_exist(
    house: House, rows: Rows, tenant: Tenant, method: str, ended: bool
) -> None:
    client, reply_id = await ask(house.home, tenant)
    if ended:
        house.model.go(len(PIECES))
        await client.read_chunks()
    for other in (rows.tenant(), rows.tenant(tenant.org_id)):
        status, _ = await answer(await call(house.door, other, method, reply_id))
        assert status == 404
    assert stored(rows, reply_id)[0] == ("complete" if ended else "streaming")


@pytest.mark.parametrize("paused", [False, True])
async def test_delete_stops_the_reply_from_any_server(
    house: House, rows: Rows, tenant: Tenant, paused: bool
) -> None:
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    if paused:
        await disconnect(house, client, reply_id)
    stopped = (200, {"message_id": reply_id, "status": "stopped"})
    assert await answer(await stop(house.door, tenant, reply_id)) == stopped
    assert stored(rows, reply_id) == ("stopped", seen)
    if not paused:
        last = events(b"".join(await client.read_chunks()))
        assert last == [{"error": "Stopped", "message": "The reply was stopped" + SAVED}]
    await house.model.closed.wait()
    assert house.turns.running.total() == 0
    # And so it stays, whoever asks.
    for server in (house.home, house.door):
        assert await answer(await stop(server, tenant, reply_id)) == stopped
        _, read = await read_rest(await come_back(server, tenant, reply_id, 0))
        assert (spoken(read), read[-1]["error"]) == (seen, "Stopped")
        status, _ = await (await come_back(server, tenant, reply_id, len(seen))).read_head()
        assert status == b"HTTP/1.1 204 No Content"
    assert stored(rows, reply_id) == ("stopped", seen)


async def test_delete_of_a_complete_reply_changes_nothing(house: House, rows: Rows, tenant: Tenant) -> None:
    house.model.go(len(PIECES))
    client, reply_id = await ask(house.home, tenant)
    await client.read_chunks()
    complete = (200, {"message_id": reply_id, "status": "complete"})
    assert await answer(await stop(house.door, tenant, reply_id)) == complete
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_pauses_and_resumes_leave_no_error_in_the_log(
    house: House, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    reply_id, seen = await pause(house, tenant)
    house.model.go(len(PIECES))
    await read_rest(await come_back(house.door, tenant, reply_id, len(seen)))
    await eventually(lambda: house.turns.running.total() == 0)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert len(logged(caplog, "Client disconnected during stream")) == 1
    assert len(logged(caplog, "Stream completed")) == 1


async def test_halves_of_one_character_in_two_pieces_are_that_character(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=["a \ud83d", "\ude42 b"]))
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 1)
    assert seen == "a "
    reader = await come_back(house.door, tenant, reply_id, 0)
    house.model.go()
    house.model.go()
    assert spoken(events(b"".join(await client.read_chunks()))) == "🙂 b"
    _, read = await read_rest(reader)
    assert (spoken(read), read[-1]["fullText"], read[-1]["chars"]) == ("a 🙂 b", "a 🙂 b", 5)
    assert stored(rows, reply_id) == ("complete", "a 🙂 b")


async def test_half_of_a_character_at_the_end_is_a_replacement_character(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=says("a", "\ud83d"))
    client, reply_id = await ask(server, tenant)
    read = events(b"".join(await client.read_chunks()))
    assert (spoken(read), read[-1]["fullText"]) == ("a\ufffd", "a\ufffd")
    assert stored(rows, reply_id) == ("complete", "a\ufffd")


async def test_reply_that_is_longer_than_its_limit_has_failed_and_is_saved_up_to_it(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=["12345", "67890", "1"]), reply_limit_chars=10)
    client, reply_id = await ask(house.home, tenant)
    assert await read_pieces(client, house.model, 2) == "1234567890"
    reader = await come_back(house.door, tenant, reply_id, 0)
    house.model.go()
    failed = {"error": "Stream failed", "message": "The model failed" + SAVED}
    assert events(b"".join(await client.read_chunks())) == [failed]
    _, read = await read_rest(reader)
    assert (spoken(read), read[-1]) == ("1234567890", failed)
    assert stored(rows, reply_id) == ("failed", "1234567890")
    assert house.turns.running.total() == 0
    await house.model.closed.wait()
