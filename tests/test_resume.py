"""Resume: a reader who comes back, to the same server or to another one on the same database."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import uuid
from typing import Any

import pytest
from house import (
    PIECES,
    TEXT,
    House,
    ask,
    call,
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
from support import Gated, RawClient, Rows, Tenant, events, eventually, logged, post, says

from app.api.resume import BELLS
from app.logs import CAME_S
from app.replies.bells import Call
from app.replies.turns import GIVE_UP_AFTER, TURNS
from app.storage.db import DATABASE


@pytest.fixture
async def house(start_server: StartServer, elsewhere: bool) -> House:
    return await open_house(start_server, elsewhere, Gated(pieces=PIECES))


async def test_reader_who_comes_back_goes_on_at_the_very_next_character(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 4)
    await disconnect(house, rows, client, reply_id)
    assert stored(rows, reply_id) == ("disconnected", seen)
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
    reply_id, seen = await pause(house, rows, tenant)
    house.model.go(5)
    # The one that it was waiting for when the client left, and no other.
    await eventually(lambda: house.model.said == 3)
    turn = house.turns.find(reply_id)
    assert turn.paused
    assert turn.text == seen
    assert not house.model.closed.is_set()


async def test_offset_within_a_word_gives_the_rest_of_the_word(house: House, rows: Rows, tenant: Tenant) -> None:
    client, reply_id = await ask(house.home, tenant)
    await read_pieces(client, house.model, 3)
    await disconnect(house, rows, client, reply_id)
    house.model.go(len(PIECES))
    _, read = await read_rest(await come_back(house.door, tenant, reply_id, 2))
    assert spoken(read) == TEXT[2:]


async def test_event_ids_of_a_resumed_stream_count_on(house: House, rows: Rows, tenant: Tenant) -> None:
    client, reply_id = await ask(house.home, tenant)
    await read_pieces(client, house.model, 1)
    await disconnect(house, rows, client, reply_id)
    house.model.go(len(PIECES))
    client = await RawClient.connect(house.door)
    client.send(
        f"GET /chat/stream?orgId={tenant.org_id}&userId={tenant.user_id}&message=ignored HTTP/1.1\r\n"
        f"Host: test\r\nLast-Event-ID: {reply_id}:3\r\n\r\n".encode()
    )
    _, head = await client.read_head()
    assert head[b"x-message-id"].decode() == reply_id
    body = b"".join(await client.read_chunks()).decode()
    ids = re.findall(r"^id: (.*)$", body, re.MULTILINE)
    assert ids[:3] == [f"{reply_id}:3", f"{reply_id}:4", f"{reply_id}:7"]
    assert ids[-1] == f"{reply_id}:{len(TEXT)}:end"
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(2,)]


async def test_second_reader_takes_over_and_the_first_is_told(house: House, rows: Rows, tenant: Tenant) -> None:
    first, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(first, house.model, 2)
    second = await come_back(house.door, tenant, reply_id, len(seen))
    last = events(b"".join(await first.read_chunks()))
    assert [event.get("error") for event in last] == ["Replaced"]
    house.model.go(len(PIECES))
    _, read = await read_rest(second)
    assert seen + spoken(read) == TEXT
    assert stored(rows, reply_id) == ("complete", TEXT)


@pytest.mark.parametrize("second_at", ["its home", "the first reader's server", "a third server"])
async def test_second_reader_takes_over_from_one_at_another_server_for_good(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, second_at: str
) -> None:
    monkeypatch.setattr("app.api.resume.CALL_AGAIN_S", 0.05)
    house = await open_house(start_server, True, Gated(pieces=PIECES))
    third = await start_server()
    await third.app[BELLS].listening.wait()
    asker, reply_id = await ask(house.home, tenant)
    await read_pieces(asker, house.model, 1)
    first = await come_back(house.door, tenant, reply_id, 0)
    await first.read_head()
    await first.read_chunk()
    servers = {"its home": house.home, "the first reader's server": house.door, "a third server": third}
    second = await come_back(servers[second_at], tenant, reply_id, 0)
    last = events(b"".join(await first.read_chunks()))
    assert [event.get("error") for event in last if "token" not in event] == ["Replaced"]
    house.model.go(len(PIECES))
    _, read = await read_rest(second)
    assert (spoken(read), read[-1]["done"]) == (TEXT, True)
    assert stored(rows, reply_id) == ("complete", TEXT)


@pytest.mark.parametrize("second_at", ["its home", "a third server"])
async def test_reader_who_came_earlier_and_is_heard_later_replaces_nobody(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, second_at: str
) -> None:
    monkeypatch.setattr("app.replies.turns.GUARD_S", 3600)
    model = Gated(pieces=PIECES)
    house = await open_house(start_server, True, model)
    third = await start_server()
    await third.app[BELLS].listening.wait()
    for server in (house.home, house.door, third):
        # Here all have one clock; what they know of the database's may differ by more than these requests do.
        server.app[TURNS]._clock_ahead_s = 0.0
    asker, reply_id = await ask(house.home, tenant)
    await disconnect(house, rows, asker, reply_id)
    bells = house.door.app[BELLS]
    ring, calls, may_call = bells.ring, asyncio.Event(), asyncio.Event()

    async def ring_late(*call: Any) -> None:
        calls.set()
        await may_call.wait()
        await ring(*call)

    monkeypatch.setattr(bells, "ring", ring_late)
    first = await come_back(house.door, tenant, reply_id, 0)
    await calls.wait()
    second = await come_back(house.home if second_at == "its home" else third, tenant, reply_id, 0)
    await second.read_head()
    seen = await read_pieces(second, model, 2)
    may_call.set()
    _, read = await read_rest(first)
    assert [event.get("error") for event in read] == ["Replaced"]
    model.go(len(PIECES))
    read = events(b"".join(await second.read_chunks()))
    assert (seen + spoken(read), read[-1]["done"]) == (TEXT, True)
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_readers_are_ordered_by_the_databases_clock(start_server: StartServer, rows: Rows) -> None:
    def database_now_s() -> float:
        [(now_s,)] = rows("select extract(epoch from clock_timestamp())::float8")
        return float(now_s)

    turns = (await start_server()).app[TURNS]
    before_s = database_now_s()
    request: Any = {CAME_S: asyncio.get_running_loop().time()}
    first, second = turns.new_reader_id(request), turns.new_reader_id(request)
    assert before_s - 1 < first.came_at_s < database_now_s() + 1
    assert first != second


async def test_reader_who_stays_to_the_end_of_a_reply_is_not_told_of_another(
    start_server: StartServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Gated(pieces=PIECES)
    house = await open_house(start_server, True, model)
    _, reply_id = await ask(house.home, tenant)
    reader = await come_back(house.door, tenant, reply_id, 0)
    await reader.read_head()
    [follower] = house.door.app[BELLS]._followers.values()
    ring, kinds, may_ring = house.home.app[BELLS].ring, [], asyncio.Event()

    async def ring_late(server_id: int, kind: str, *rest: Any) -> None:
        kinds.append(kind)
        await may_ring.wait()
        await ring(server_id, kind, *rest)

    monkeypatch.setattr(house.home.app[BELLS], "ring", ring_late)
    model.go(len(PIECES))
    await eventually(lambda: kinds)
    # Its server's call crosses the news that the reply has ended.
    house.turns.take_call(Call("read", reply_id, follower.id, house.door.app[BELLS].server_id))
    may_ring.set()
    await reader.read_chunks()
    assert kinds == ["said"]


async def test_reader_who_leaves_again_pauses_it_again(house: House, rows: Rows, tenant: Tenant) -> None:
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 1)
    for _ in range(3):
        await disconnect(house, rows, client, reply_id)
        client = await come_back(house.door, tenant, reply_id, len(seen))
        house.model.go()
        await client.read_head()
        token = ""
        while not token:
            token = "".join(e["token"] for e in events(await client.read_chunk()))
        seen += token
    await disconnect(house, rows, client, reply_id)
    house.model.go(len(PIECES))
    _, read = await read_rest(await come_back(house.door, tenant, reply_id, len(seen)))
    assert seen + spoken(read) == TEXT


async def test_after_the_window_the_model_is_closed_and_the_rest_is_an_error(
    start_server: StartServer, elsewhere: bool, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES), resume_window_s=0.2)
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 3)
    await disconnect(house, rows, client, reply_id)
    await house.model.closed.wait()
    await eventually(lambda: house.turns.running == 0)
    status, read = await read_rest(await come_back(house.door, tenant, reply_id, 3))
    assert status == b"HTTP/1.1 200 OK"
    assert spoken(read) == seen[3:]
    assert read[-1]["error"] == "Stream failed"
    status, _ = await (await come_back(house.door, tenant, reply_id, len(seen))).read_head()
    assert status == b"HTTP/1.1 204 No Content"


async def test_paused_reply_of_a_dead_server_is_no_longer_waited_for(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.replies.turns.GUARD_S", 3600)
    house = await open_house(start_server, True, Gated(pieces=PIECES), resume_window_s=3600)
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 3)
    await disconnect(house, rows, client, reply_id)
    # Nobody holds the lock of this server, nor hears its calls.
    rows("update messages set server_id = 1 where id = %s", reply_id)
    client = await come_back(house.door, tenant, reply_id, 3)
    guard = house.door.app[TURNS].guard
    for _ in range(GIVE_UP_AFTER):
        await guard()
        assert rows("select resumable_until > now() from messages where id = %s", reply_id) == [(True,)]
    await guard()
    _, read = await read_rest(client)
    assert (spoken(read), read[-1]["error"]) == (seen[3:], "Stream failed")
    assert stored(rows, reply_id) == ("disconnected", seen)


@pytest.mark.parametrize("paused", [False, True])
async def test_reader_at_a_server_that_stops_is_told_that_the_reply_may_go_on(
    start_server: StartServer, rows: Rows, tenant: Tenant, paused: bool
) -> None:
    house = await open_house(start_server, True, Gated(pieces=PIECES))
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    if paused:
        await disconnect(house, rows, client, reply_id)
        # Its server does not answer.
        rows("update messages set server_id = server_id + 1 where id = %s", reply_id)
    reader = await come_back(house.door, tenant, reply_id, 0)
    await eventually(lambda: house.door.app[BELLS]._followers)
    await house.door.app[TURNS].drain(0)
    _, read = await read_rest(reader)
    assert seen.startswith(spoken(read))
    assert (read[-1]["error"], read[-1]["message"]) == (
        "Cut short",
        "This server is stopping. The reply may go on: come back for the rest.",
    )
    # And its server that nobody reads it.
    await eventually(lambda: house.turns.find(reply_id).paused)


async def test_without_a_window_a_reply_ends_with_its_reader(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    server = await start_server(model=model, resume_window_s=0)
    client, reply_id = await ask(server, tenant)
    await read_pieces(client, model, 1)
    await disconnect(House(server, server, model), rows, client, reply_id)
    await model.closed.wait()
    assert rows("select resumable_until from messages where id = %s", reply_id) == [(None,)]


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
        f"Host: test\r\nLast-Event-ID: {reply_id}:{len(TEXT)}:end\r\n\r\n".encode()
    )
    status, _ = await client.read_head()
    assert status == b"HTTP/1.1 204 No Content"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("{reply}?offset=1000", 409),
        ("{reply}?offset=-1", 400),
        ("{reply}?offset=x", 400),
        ("{unknown}?offset=0", 404),
        ("nonsense", 400),
    ],
)
async def test_what_cannot_be_resumed_is_refused(house: House, tenant: Tenant, path: str, expected: int) -> None:
    house.model.go(len(PIECES))
    client, reply_id = await ask(house.home, tenant)
    await client.read_chunks()
    path = path.format(reply=reply_id, unknown=uuid.uuid4())
    client = await call(house.door, tenant, "GET", path)
    status, _ = await client.read_head()
    assert int(status.split()[1]) == expected


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
        stranger = await call(house.door, other, method, reply_id)
        status, _ = await stranger.read_head()
        assert status == b"HTTP/1.1 404 Not Found"
    assert stored(rows, reply_id)[0] == ("complete" if ended else "streaming")


@pytest.mark.parametrize("paused", [False, True])
async def test_delete_stops_the_reply_from_any_server(
    house: House, rows: Rows, tenant: Tenant, paused: bool
) -> None:
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    if paused:
        await disconnect(house, rows, client, reply_id)
    # Twice: it is idempotent.
    for _ in range(2):
        stopper = await stop(house.door, tenant, reply_id)
        status, head = await stopper.read_head()
        assert status == b"HTTP/1.1 200 OK"
        body = json.loads(await stopper.reader.readexactly(int(head[b"content-length"])))
        assert body == {"message_id": reply_id, "status": "stopped"}
    if not paused:
        last = events(b"".join(await client.read_chunks()))
        assert [event.get("error") for event in last] == ["Stopped"]
    await house.model.closed.wait()
    assert stored(rows, reply_id) == ("stopped", seen)


async def test_delete_of_a_complete_reply_changes_nothing(house: House, rows: Rows, tenant: Tenant) -> None:
    house.model.go(len(PIECES))
    client, reply_id = await ask(house.home, tenant)
    await client.read_chunks()
    stopper = await stop(house.door, tenant, reply_id)
    _, head = await stopper.read_head()
    body = json.loads(await stopper.reader.readexactly(int(head[b"content-length"])))
    assert body["status"] == "complete"
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_turn_that_nobody_resumes_is_two_statements(
    house: House, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    database = house.home.app[DATABASE]
    run = database.run

    async def counted(statement: Any, params: Any) -> Any:
        ran.append(statement.name)
        return await run(statement, params)

    monkeypatch.setattr(database, "run", counted)
    client, reply_id = await ask(house.home, tenant)
    await read_pieces(client, house.model, 2)
    await disconnect(house, rows, client, reply_id)
    assert [name for name in ran if name not in ("server_lock", "turn_interrupt")] == ["turn_open", "turn_close"]


async def test_question_while_a_reply_runs_is_409_with_its_id(house: House, rows: Rows, tenant: Tenant) -> None:
    client, reply_id = await ask(house.home, tenant)
    await read_pieces(client, house.model, 1)
    [(chat_id,)] = rows("select chat_id from messages where id = %s", reply_id)
    second = await RawClient.connect(house.door)
    body = json.dumps({"message": "And?", "chat_id": str(chat_id)}).encode()
    second.send(post("/chat/stream", body, tenant))
    status, head = await second.read_head()
    assert status == b"HTTP/1.1 409 Conflict"
    answer = json.loads(await second.reader.readexactly(int(head[b"content-length"])))
    assert (answer["error"], answer["message_id"]) == ("Reply running", reply_id)
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(2,)]


async def test_question_while_a_reply_is_paused_ends_it(house: House, rows: Rows, tenant: Tenant) -> None:
    reply_id, seen = await pause(house, rows, tenant)
    [(chat_id,)] = rows("select chat_id from messages where id = %s", reply_id)
    second = await RawClient.connect(house.door)
    body = json.dumps({"message": "And?", "chat_id": str(chat_id)}).encode()
    second.send(post("/chat/stream", body, tenant))
    status, _ = await second.read_head()
    assert status == b"HTTP/1.1 200 OK"
    status, _ = await (await come_back(house.door, tenant, reply_id, len(seen))).read_head()
    assert status == b"HTTP/1.1 204 No Content"
    assert stored(rows, reply_id) == ("disconnected", seen)


async def test_many_questions_in_one_chat_at_once_leave_one_reply_running(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    servers = [await start_server(model=model) for _ in range(2)]
    client, reply_id = await ask(servers[0], tenant)
    [(chat_id,)] = rows("select chat_id from messages where id = %s", reply_id)
    await (await stop(servers[0], tenant, reply_id)).read_head()
    await client.read_chunks()

    async def question(i: int) -> bytes:
        client = await RawClient.connect(servers[i % 2])
        client.send(post("/chat/stream", json.dumps({"message": "Q", "chat_id": str(chat_id)}).encode(), tenant))
        return (await client.read_head())[0]

    answers = await asyncio.gather(*(question(i) for i in range(20)))
    assert sorted(answers) == [b"HTTP/1.1 200 OK"] + [b"HTTP/1.1 409 Conflict"] * 19
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(4,)]


async def test_same_key_and_question_attaches_to_the_same_turn_from_its_start(
    house: House, rows: Rows, tenant: Tenant
) -> None:
    key = "Idempotency-Key: one\r\n"
    client, reply_id = await ask(house.home, tenant, key)
    await read_pieces(client, house.model, 3)
    await disconnect(house, rows, client, reply_id)
    house.model.go(len(PIECES))
    client, again_id = await ask(house.door, tenant, key)
    assert again_id == reply_id
    assert spoken(events(b"".join(await client.read_chunks()))) == TEXT
    # And once more, when it has long ended.
    client, again_id = await ask(house.door, tenant, key)
    assert again_id == reply_id
    assert spoken(events(b"".join(await client.read_chunks()))) == TEXT
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(2,)]


async def test_same_key_of_a_reply_that_ended_without_a_word_is_told_how_it_ended(
    start_server: StartServer, tenant: Tenant
) -> None:
    server = await start_server(model=says(RuntimeError("no")))
    for _ in range(2):
        client, _ = await ask(server, tenant, headers="Idempotency-Key: one\r\n")
        assert [event.get("error") for event in events(b"".join(await client.read_chunks()))] == ["Stream failed"]


async def test_same_key_with_another_question_is_409(house: House, tenant: Tenant) -> None:
    key = "Idempotency-Key: one\r\n"
    await ask(house.home, tenant, key)
    client = await RawClient.connect(house.door)
    client.send(post("/chat/stream", b'{"message": "Another"}', tenant, headers=key))
    status, _ = await client.read_head()
    assert status == b"HTTP/1.1 409 Conflict"


async def test_same_key_of_another_user_is_another_turn(house: House, rows: Rows, tenant: Tenant) -> None:
    key = "Idempotency-Key: one\r\n"
    _, first = await ask(house.home, tenant, key)
    _, second = await ask(house.home, rows.tenant(tenant.org_id), key)
    assert first != second


async def test_100_with_one_key_at_once_give_one_turn(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    servers = [await start_server(model=says(*PIECES)) for _ in range(2)]

    async def question(i: int) -> dict[str, Any]:
        client = await RawClient.connect(servers[i % 2])
        client.send(post("/chat", b'{"message": "Hi"}', tenant, headers="Idempotency-Key: one\r\n"))
        status, head = await client.read_head()
        assert status == b"HTTP/1.1 200 OK"
        answer: dict[str, Any] = json.loads(await client.reader.readexactly(int(head[b"content-length"])))
        return answer

    answers = await asyncio.gather(*(question(i) for i in range(100)))
    assert len({json.dumps(answer) for answer in answers}) == 1
    assert answers[0]["reply"] == TEXT
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(2,)]


async def test_key_is_forgotten_after_a_day_and_its_turn_is_not(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.replies.turns.SWEEP_S", 0.02)
    server = await start_server(model=says(*PIECES))
    for key in ("old", "new"):
        client, _ = await ask(server, tenant, headers=f"Idempotency-Key: {key}\r\n")
        await client.read_chunks()
    rows("update turn_keys set created_at = now() - interval '24 hours 1 second' where key = 'old'")
    left = "select key from turn_keys where org_id = %s"
    await eventually(lambda: rows(left, tenant.org_id) == [("new",)])
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(4,)]


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
async def test_bad_key_is_400(house: House, tenant: Tenant, key: str) -> None:
    client = await RawClient.connect(house.home)
    request = post("/chat/stream", b'{"message": "Hi"}', tenant, headers=f"Idempotency-Key: {key}\r\n")
    client.send(request)
    status, _ = await client.read_head()
    assert status == b"HTTP/1.1 400 Bad Request"


async def test_client_of_post_chat_who_left_finds_the_reply_by_its_key(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    model = Gated(pieces=PIECES)
    server = await start_server(model=model)
    request = post("/chat", b'{"message": "Hi"}', tenant, headers="Idempotency-Key: one\r\n")
    async with await RawClient.connect(server) as client:
        client.send(request)
        await model.asked.wait()
        client.reset()
    model.go(len(PIECES))
    client = await RawClient.connect(server)
    client.send(request)
    _, head = await client.read_head()
    assert json.loads(await client.reader.readexactly(int(head[b"content-length"])))["reply"] == TEXT


async def test_pauses_and_resumes_leave_no_error_in_the_log(
    house: House, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    reply_id, seen = await pause(house, rows, tenant)
    house.model.go(len(PIECES))
    await read_rest(await come_back(house.door, tenant, reply_id, len(seen)))
    await eventually(lambda: house.turns.running == 0)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert len(logged(caplog, "Client disconnected during stream")) == 1
    assert len(logged(caplog, "Stream completed")) == 1


async def test_stop_that_the_other_server_does_not_hear_is_503(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    home = await start_server(model=model)
    door = await start_server(db_timeout_s=0.3)
    client, reply_id = await ask(home, tenant)
    rows("update messages set server_id = server_id + 1 where id = %s", reply_id)
    status, _ = await (await stop(door, tenant, reply_id)).read_head()
    assert status == b"HTTP/1.1 503 Service Unavailable"
    rows("update messages set server_id = server_id - 1 where id = %s", reply_id)
    status, _ = await (await stop(door, tenant, reply_id)).read_head()
    assert status == b"HTTP/1.1 200 OK"
    await client.read_chunks()
