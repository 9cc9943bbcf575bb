"""A user's chats: in order of their last activity, found by title, renamed, deleted, exported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp.test_utils import TestClient, TestServer
from house import (
    SILENT,
    answer,
    ask,
    chat_of,
    come_back,
    first_event,
    held,
    open_house,
    question,
    read_pieces,
    read_rest,
    waiting,
)
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, says

from app.models import ModelError, Stop, Usage
from app.storage.db import DatabaseAway
from app.storage.store import STORE

STOPPED = {"error": "Stopped", "message": "The reply was stopped; what it said so far is saved."}


async def chats(client: TestClient, tenant: Tenant, **params: str) -> dict[str, Any]:
    async with client.get("/chats", params=params, headers=tenant.headers) as response:
        assert response.status == 200
        page: dict[str, Any] = await response.json()
        return page


async def say(client: TestClient, tenant: Tenant, message: str, chat_id: str | None = None) -> str:
    body = {"message": message, "chat_id": chat_id}
    async with client.post("/chat", json=body, headers=tenant.headers) as response:
        assert response.status == 200
        return str((await response.json())["chat_id"])


def ids(page: dict[str, Any]) -> list[str]:
    return [chat["chat_id"] for chat in page["chats"]]


def add_chats(rows: Rows, tenant: Tenant, titles: Sequence[str]) -> list[str]:
    """Store chats, each of them active a second after the one before."""
    stored = rows(
        "insert into chats (org_id, id, user_id, title, message_count, created_at, updated_at)"
        " select %s, gen_random_uuid(), %s, title, 0, now(), now() - interval '1 hour' + n * interval '1 second'"
        " from unnest(%s::text[]) with ordinality as given (title, n) returning id::text",
        *(tenant.org_id, tenant.user_id, list(titles)),
    )
    return [chat_id for (chat_id,) in stored]


# ---- GET /chats


async def test_chat_that_goes_on_is_the_first_again(client: TestClient, rows: Rows, tenant: Tenant) -> None:
    one, two, three = [await say(client, tenant, "Hi") for _ in range(3)]
    assert ids(await chats(client, tenant)) == [three, two, one]
    await say(client, tenant, "And?", one)
    page = await chats(client, tenant)
    assert ids(page) == [one, three, two]
    assert page["chats"][0]["updated_at"] > page["chats"][0]["created_at"]
    opened = "select max(created_at) from messages where chat_id = %s"
    assert rows("select updated_at from chats where id = %s", one) == rows(opened, one)


async def test_chat_that_moves_up_between_two_pages_changes_nothing_of_the_others(
    client: TestClient, rows: Rows, tenant: Tenant
) -> None:
    *rest, four, five, six = add_chats(rows, tenant, "abcdef")
    first = await chats(client, tenant, limit="2")
    assert ids(first) == [six, five]
    # The one that the next page begins behind, one of the next page, and a new one.
    await say(client, tenant, "Hi", five)
    await say(client, tenant, "Hi", four)
    await say(client, tenant, "Hi")
    second = await chats(client, tenant, limit="2", before=first["next"])
    third = await chats(client, tenant, limit="2", before=second["next"])
    assert ids(second) + ids(third) == rest[::-1]
    assert third["next"] is None


async def test_chats_of_one_moment_are_each_on_one_page(client: TestClient, rows: Rows, tenant: Tenant) -> None:
    made = add_chats(rows, tenant, "abcde")
    rows("update chats set updated_at = '2026-01-02 03:04:05.678901+00' where org_id = %s", tenant.org_id)
    listed, before = [], {}
    while True:
        page = await chats(client, tenant, limit="2", **before)
        listed += ids(page)
        if page["next"] is None:
            break
        before = {"before": page["next"]}
    assert listed == sorted(made, reverse=True)


async def test_chats_of_servers_of_the_version_before_have_their_place(
    client: TestClient, rows: Rows, tenant: Tenant
) -> None:
    old, middle = add_chats(rows, tenant, ["old", "middle"])
    # Not active since there is this column.
    rows("update chats set updated_at = null, created_at = now() - interval '2 hours' where id = %s", old)
    new = str(uuid4())
    rows(
        "insert into chats (org_id, id, user_id, title, message_count) values (%s, %s, %s, 'new', 0)",
        *(tenant.org_id, new, tenant.user_id),
    )
    page = await chats(client, tenant)
    assert ids(page) == [new, middle, old]
    assert page["chats"][2]["updated_at"] == page["chats"][2]["created_at"]
    first = await chats(client, tenant, limit="2")
    assert ids(await chats(client, tenant, before=first["next"])) == [old]


SEARCHES = {
    "tea": ["Green TEA", "steam"],
    "ÄPFEL": ["Rote äpfel"],
    "%": ["100% sure"],
    "_": ["snake_case"],
    "\\": ["C:\\temp"],
    "0% s": ["100% sure"],
    "none of them": [],
    "x" * 200: [],
}


async def test_search_finds_what_is_in_a_title(client: TestClient, rows: Rows, tenant: Tenant) -> None:
    add_chats(rows, tenant, ["C:\\temp", "snake_case", "100% sure", "Rote äpfel", "steam", "Green TEA"])
    for words, found in SEARCHES.items():
        titles: list[str] = []
        before: dict[str, str] = {}
        while True:
            page = await chats(client, tenant, limit="1", q=words, **before)
            titles += [chat["title"] for chat in page["chats"]]
            if page["next"] is None:
                break
            before = {"before": page["next"]}
        assert titles == found, words


BAD_QUERIES = [
    ("q", "", "q is blank, expected some text."),
    ("q", "x" * 201, "q has 201 characters, expected at most 200."),
    ("q", "a\0b", "q holds NUL or a lone surrogate, expected Unicode text."),
    ("before", "x", "before is 'x', expected `next` of a page of chats."),
    ("before", str(UUID(int=1)), f"before is '{UUID(int=1)}', expected `next` of a page of chats."),
    ("before", f"{'9' * 17}_{UUID(int=1)}", "before is '99999999999999999_00000000-0000-0000-0000-"),
    ("before", f"\u0663_{UUID(int=1)}", "before is '\u0663_"),
]


async def test_bad_query_of_the_list_is_400(client: TestClient, tenant: Tenant) -> None:
    for name, value, message in BAD_QUERIES:
        async with client.get("/chats", params={name: value}, headers=tenant.headers) as response:
            said = await response.json()
        assert (response.status, said["error"]) == (400, f"Bad {name}")
        assert said["message"].startswith(message)


# ---- PATCH /chats/{chat_id}


async def test_renamed_chat_has_its_title_and_stays_where_it_is(
    client: TestClient, rows: Rows, tenant: Tenant
) -> None:
    one, two = add_chats(rows, tenant, ["One", "Two"])
    before = (await chats(client, tenant))["chats"]
    title = "🙂" * 199 + "é"
    async with client.patch(f"/chats/{one}", json={"title": f" {title}\n"}, headers=tenant.headers) as response:
        renamed = await response.json()
    assert (response.status, renamed) == (200, before[1] | {"title": title})
    assert (await chats(client, tenant))["chats"] == [before[0], renamed]
    assert ids(await chats(client, tenant)) == [two, one]


BAD_TITLES: list[tuple[dict[str, Any], str]] = [
    ({}, "title is missing or null, expected a string."),
    ({"title": 7}, "title is a number, expected a string."),
    ({"title": " \n"}, "title is blank, expected some text."),
    ({"title": "x" * 201}, "title has 201 characters, expected at most 200."),
    ({"title": "a\0"}, "title holds NUL or a lone surrogate, expected Unicode text."),
    ({"title": "\ud800"}, "title holds NUL or a lone surrogate, expected Unicode text."),
]


async def test_bad_title_is_400_and_changes_nothing(client: TestClient, rows: Rows, tenant: Tenant) -> None:
    [chat_id] = add_chats(rows, tenant, ["One"])
    for body, message in BAD_TITLES:
        async with client.patch(f"/chats/{chat_id}", json=body, headers=tenant.headers) as response:
            said = await response.json()
        assert (response.status, said["error"], said["message"]) == (400, "Bad title", message)
    assert rows("select title from chats where id = %s", chat_id) == [("One",)]


# ---- DELETE /chats/{chat_id}


async def delete(server: TestServer, tenant: Tenant, chat_id: str) -> RawClient:
    client = await RawClient.connect(server)
    client.send(
        f"DELETE /chats/{chat_id} HTTP/1.1\r\nHost: localhost\r\n"
        f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n\r\n".encode()
    )
    return client


async def status_of(client: RawClient) -> int:
    return int((await client.read_head())[0].split()[1])


def left(rows: Rows, chat_id: str) -> tuple[int, int]:
    """Return how many rows there are of a chat, and of its messages."""
    [(chat,)] = rows("select count(*) from chats where id = %s", chat_id)
    [(messages,)] = rows("select count(*) from messages where chat_id = %s", chat_id)
    return chat, messages


async def test_deleted_chat_is_gone_and_what_it_cost_is_not(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client: TestClient = await aiohttp_client(await start_server(model=says("Hello", Usage(7, 9))))
    kept, chat_id = await say(client, tenant, "Hi"), await say(client, tenant, "Hi")
    [(reply_id,)] = rows("select id::text from messages where chat_id = %s and role = 'assistant'", chat_id)
    async with client.get("/usage", headers=tenant.headers) as response:
        before = await response.json()
    assert before["month"] == {"turns": 2, "input": 14, "output": 18}
    for _ in range(2):
        async with client.delete(f"/chats/{chat_id}", headers=tenant.headers) as response:
            assert (response.status, await response.read()) == (204, b"")
    assert left(rows, chat_id) == (0, 0)
    assert ids(await chats(client, tenant)) == [kept]
    for path in (f"/chats/{chat_id}/messages", f"/chats/{chat_id}/export", f"/chat/stream/{reply_id}"):
        async with client.get(path, headers=tenant.headers) as response:
            assert response.status == 404
    async with client.patch(f"/chats/{chat_id}", json={"title": "Hi"}, headers=tenant.headers) as response:
        assert response.status == 404
    async with client.get("/usage", headers=tenant.headers) as response:
        assert await response.json() == before


async def test_chat_that_was_put_back_from_a_backup_is_deleted_again(
    client: TestClient, rows: Rows, tenant: Tenant
) -> None:
    chat_id = await say(client, tenant, "Hi")
    rows("create temp table kept_chats as select * from chats where id = %s", chat_id)
    rows("create temp table kept_messages as select * from messages where chat_id = %s", chat_id)
    costs = []
    for _ in range(2):
        async with client.delete(f"/chats/{chat_id}", headers=tenant.headers) as response:
            assert response.status == 204
        assert left(rows, chat_id) == (0, 0)
        costs.append(rows("select * from deleted_replies where org_id = %s", tenant.org_id))
        rows("insert into chats select * from kept_chats")
        rows("insert into messages select * from kept_messages")
    assert costs[0] == costs[1]
    assert len(costs[0]) == 1
    rows("drop table kept_chats, kept_messages")


@pytest.mark.usefixtures("often")
async def test_reply_that_runs_in_a_deleted_chat_is_stopped_for_all_its_readers(
    start_server: StartServer, rows: Rows, tenant: Tenant, elsewhere: bool
) -> None:
    house = await open_house(start_server, elsewhere, Gated(), checkpoint_s=0)
    reader, reply_id = await ask(house.home, tenant)
    chat_id = chat_of(rows, reply_id)
    seen = await read_pieces(reader, house.model, 2)
    other = await come_back(house.door, tenant, reply_id, len(seen))
    await other.read_head()
    assert await other.read_chunk() == first_event(reply_id, len(seen))
    reply = house.turn(reply_id).reply
    await eventually(lambda: len(reply.readers) == 2)
    assert await status_of(await delete(house.door, tenant, chat_id)) == 204
    assert left(rows, chat_id) == (0, 0)
    assert events(b"".join(await reader.read_chunks()))[-1] == STOPPED
    assert events(b"".join(await other.read_chunks()))[-1] == STOPPED
    cost = rows("select id::text, input_tokens, output_tokens from deleted_replies where id = %s", reply_id)
    assert cost == [(reply_id, 1, 5)]


@pytest.mark.usefixtures("often")
async def test_chat_whose_reply_cannot_be_stopped_is_not_deleted(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated())
    _, reply_id = await ask(house.home, tenant)
    rows("update messages set server_id = %s where id = %s", SILENT, reply_id)
    chat_id = chat_of(rows, reply_id)
    status, said = await answer(await delete(house.door, tenant, chat_id))
    assert (status, said["error"]) == (503, "Not stopped")
    assert left(rows, chat_id) == (1, 2)


async def test_question_that_comes_before_the_chat_is_deleted_is_stopped(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=Gated())
    [chat_id] = add_chats(rows, tenant, ["One"])
    with held(rows, "chats", chat_id):
        asking = await question(server, tenant, chat_id)
        await waiting(rows, 1)
        deleting = await delete(server, tenant, chat_id)
        await waiting(rows, 2)
    assert await status_of(deleting) == 204
    assert (await read_rest(asking))[1] == [STOPPED]
    assert left(rows, chat_id) == (0, 0)


async def test_question_that_comes_after_the_chat_is_deleted_is_404(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=Gated())
    [chat_id] = add_chats(rows, tenant, ["One"])
    with held(rows, "chats", chat_id):
        deleting = await delete(server, tenant, chat_id)
        await waiting(rows, 1)
        asking = await question(server, tenant, chat_id)
        await waiting(rows, 2)
    assert (await status_of(deleting), await status_of(asking)) == (204, 404)
    assert left(rows, chat_id) == (0, 0)


async def test_chat_in_which_questions_are_asked_again_and_again_is_not_deleted(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.chats.DELETE_TRIES", 1)
    server = await start_server(model=Gated())
    [chat_id] = add_chats(rows, tenant, ["One"])
    with held(rows, "chats", chat_id):
        await question(server, tenant, chat_id)
        await waiting(rows, 1)
        deleting = await delete(server, tenant, chat_id)
        await waiting(rows, 2)
    status, said = await answer(deleting)
    assert (status, said["error"]) == (503, "Not stopped")
    assert left(rows, chat_id) == (1, 2)


# ---- GET /chats/{chat_id}/export


def export_request(tenant: Tenant, chat_id: str, version: str = "1.1") -> bytes:
    return (
        f"GET /chats/{chat_id}/export HTTP/{version}\r\nHost: localhost\r\n"
        f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n\r\n"
    ).encode()


def add_messages(rows: Rows, chat_id: str, count: int, content: str = "Hi") -> None:
    """Put so many messages into a chat, of which the text begins with the position."""
    rows(
        "insert into messages (org_id, id, chat_id, position, role, content, status, finished_at, server_id)"
        " select org_id, gen_random_uuid(), id, n, case n %% 2 when 1 then 'user' else 'assistant' end,"
        " n || ' ' || %s, 'complete', now(), case n %% 2 when 0 then 1 end"
        " from chats, generate_series(1, %s) as n where id = %s",
        *(content, count, chat_id),
    )
    rows("update chats set message_count = %s where id = %s", count, chat_id)


class Pages:
    """Counts the pages that an export reads, and lets something happen before one of them."""

    def __init__(self, server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = 0
        self.before: dict[int, Any] = {}
        store = server.app[STORE]  # type: ignore[index]
        statement = store.message_export

        async def counted(**params: Any) -> Any:
            self.read += 1
            if self.read in self.before:
                self.before[self.read]()
            return await statement(**params)

        monkeypatch.setattr(store, "message_export", counted)


async def test_export_has_all_that_is_known_of_each_message(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    said: list[Any] = [
        says("四 \u2028 🙂", Usage(7, 9), Stop("length")),
        says("part", ModelError("529", "busy")),
        says("Hello"),
    ]
    gated = Gated(pieces=["now "])
    client: TestClient = await aiohttp_client(
        await start_server(model=lambda conversation: (said.pop(0) if said else gated)(conversation))
    )
    chat_id = await say(client, tenant, "One")
    body = {"message": "Two", "chat_id": chat_id}
    assert (await client.post("/chat", json=body, headers=tenant.headers)).status == 503
    await say(client, tenant, "Three", chat_id)
    # From before there were usages.
    unknown = "input_tokens = null, output_tokens = null, is_estimated = null"
    rows(f"update messages set {unknown} where chat_id = %s and content = 'Hello'", chat_id)
    async with client.post("/chat/stream", json=body, headers=tenant.headers) as running:
        async with client.get(f"/chats/{chat_id}/export", headers=tenant.headers) as response:
            raw = await response.read()
        assert running.status == 200
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert response.headers["Content-Disposition"] == f'attachment; filename="chat-{chat_id}.jsonl"'
    assert response.headers["Cache-Control"] == "no-store"
    assert raw.endswith(b"}\n")
    assert raw.isascii()
    chat, *messages = map(json.loads, raw.splitlines())
    assert [chat] == (await chats(client, tenant))["chats"]
    async with client.get(f"/chats/{chat_id}/messages", headers=tenant.headers) as listed:
        shown = (await listed.json())["messages"]
    more = [
        {},
        {"stop": "length", "usage": {"input": 7, "output": 9, "estimated": False}},
        {},
        {"reason": "busy", "usage": {"input": 9, "output": 2, "estimated": True}},
        {},
        {"stop": "end"},
        {},
        {},
    ]
    ended = [message.pop("finished_at") for message in messages]
    assert [moment is None for moment in ended] == [False] * 7 + [True]
    for one, other in zip(messages, shown, strict=True):
        assert {key: one[key] for key in other} == other
    assert [{key: one[key] for key in one.keys() - shown[0].keys()} for one in messages] == more
    assert list(messages[1])[-3:] == ["stop", "usage", "created_at"]


@pytest.mark.parametrize(("page_size", "page_bytes"), [(3, 500_000), (100, 7), (100, 1)])
async def test_export_is_read_page_by_page_and_complete(
    start_server: StartServer,
    aiohttp_client: Any,
    rows: Rows,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
    page_size: int,
    page_bytes: int,
) -> None:
    monkeypatch.setattr("app.api.chats.PAGE_SIZE_LIMIT", page_size)
    monkeypatch.setattr("app.api.chats.PAGE_BYTES", page_bytes)
    server = await start_server()
    client: TestClient = await aiohttp_client(server)
    pages = Pages(server, monkeypatch)
    [chat_id] = add_chats(rows, tenant, ["One"])
    add_messages(rows, chat_id, 7, "é")
    async with client.get(f"/chats/{chat_id}/export", headers=tenant.headers) as response:
        _, *messages = map(json.loads, (await response.read()).splitlines())
    assert [message["content"] for message in messages] == [f"{n} é" for n in range(1, 8)]
    assert pages.read == {3: 4, 7: 8, 1: 8}[min(page_size, page_bytes)]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("what", ["chat deleted", "message deleted", "database away", "bug"])
async def test_export_that_cannot_go_on_is_cut_and_never_just_ends(
    start_server: StartServer,
    rows: Rows,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    what: str,
) -> None:
    monkeypatch.setattr("app.api.chats.PAGE_SIZE_LIMIT", 2)
    server = await start_server()
    pages = Pages(server, monkeypatch)
    [chat_id] = add_chats(rows, tenant, ["One"])
    add_messages(rows, chat_id, 6)

    def happen() -> None:
        if what == "chat deleted":
            rows("delete from chats where id = %s", chat_id)
        elif what == "message deleted":
            rows("delete from messages where chat_id = %s and position = 4", chat_id)
        else:
            raise DatabaseAway(sent=True) if what == "database away" else RuntimeError("secret")

    pages.before[3] = happen
    client = await RawClient.connect(server)
    client.send(export_request(tenant, chat_id, version))
    status, _ = await client.read_head()
    assert b" 200 " in status
    with pytest.raises(ConnectionResetError):
        assert b"secret" not in await client.reader.read()
    assert pages.read == 3


async def test_export_waits_for_a_slow_reader_and_gives_up_one_who_reads_nothing(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(write_timeout_s=0.5, user_reader_limit=1)
    pages = Pages(server, monkeypatch)
    [chat_id] = add_chats(rows, tenant, ["One"])
    add_messages(rows, chat_id, 40, "x" * 500_000)
    client = await RawClient.connect(server)
    client.send(export_request(tenant, chat_id))
    await client.read_head()
    other = await RawClient.connect(server)
    other.send(export_request(tenant, chat_id))
    status, said = await answer(other)
    assert (status, said["error"]) == (429, "Too many streams")
    # Its place is free again: it was given up.
    while True:
        other.send(export_request(tenant, chat_id))
        status_line, head = await other.read_head()
        if b" 200 " in status_line:
            break
        await other.reader.readexactly(int(head[b"content-length"]))
    # What was sent to the one who read nothing is what the sockets hold, and not 20 MB.
    assert pages.read < 30
    read = len(b"".join(await other.read_chunks()))
    assert read > 40 * 500_000


async def test_export_gives_up_one_who_does_not_read_its_end(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    server = await start_server(write_timeout_s=0.1)
    pages = Pages(server, monkeypatch)
    [chat_id] = add_chats(rows, tenant, ["One"])
    client = await RawClient.connect(server)

    def pause() -> None:
        # As a connection that has more to send than its client reads.
        assert server.runner is not None
        assert server.runner.server is not None
        [connection] = server.runner.server.connections
        connection.pause_writing()

    # There is nothing after the chat's own line, so that only the end is to be written.
    pages.before = {1: pause}
    client.send(export_request(tenant, chat_id))
    [completed] = await eventually(
        lambda: [record for record in caplog.records if record.getMessage() == "Request completed"]
    )
    assert vars(completed)["outcome"] == "disconnected"


async def test_export_whose_reader_leaves_is_no_longer_read(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    server = await start_server()
    pages = Pages(server, monkeypatch)
    [chat_id] = add_chats(rows, tenant, ["One"])
    add_messages(rows, chat_id, 40, "x" * 500_000)
    client = await RawClient.connect(server)
    client.send(export_request(tenant, chat_id))
    await client.read_head()
    client.reset()
    completed = await eventually(
        lambda: [record for record in caplog.records if record.getMessage() == "Request completed"]
    )
    assert vars(completed[0])["outcome"] == "disconnected"
    assert pages.read < 30
