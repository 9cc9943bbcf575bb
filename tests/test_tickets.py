"""Tickets: a question that a GET asks, at any server, as often as it is shown, once."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from house import PIECES, TEXT, cut_off, spoken
from serving import StartServer
from support import Gated, Rows, Tenant, events, says
from yarl import URL

from app.api.limits import LIMITS
from app.server import sweep
from app.storage.store import STORE

SECRET = "a secret of no less than 32 characters"
QUESTION = {"message": "Hi"}


def signed(tenant: Tenant) -> dict[str, str]:
    claims = {"org_id": tenant.org_id, "sub": tenant.user_id, "exp": time.time() + 60}
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET)}"}


@pytest.fixture
async def guarded(start_server: StartServer, aiohttp_client: Any) -> Any:
    return await aiohttp_client(await start_server(model=says("Hello"), jwt_secret=SECRET))


async def ticket(client: Any, headers: dict[str, str], **more: Any) -> str:
    async with client.post("/chat/stream/ticket", json=QUESTION | more, headers=headers) as response:
        assert response.status == 200
        return str((await response.json())["ticket"])


def show(client: Any, given: str, **headers: str) -> Any:
    return client.get("/chat/stream", params={"ticket": given}, headers=headers)


async def test_ticket_that_is_shown_again_gives_the_same_turn(guarded: Any, rows: Rows, tenant: Tenant) -> None:
    given = await ticket(guarded, signed(tenant))
    assert rows.messages(tenant.org_id) == []
    bodies = set()
    for _ in range(2):
        async with show(guarded, given) as response:
            assert response.status == 200
            bodies.add(await response.read())
    [body] = bodies
    assert events(body)[-1]["fullText"] == "Hello"
    assert [content for _, content, _ in rows.messages(tenant.org_id)] == ["Hi", "Hello"]


async def test_50_with_one_ticket_at_once_at_two_servers_give_one_turn(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    clients = [await aiohttp_client(await start_server(model=says(*PIECES), jwt_secret=SECRET)) for _ in range(2)]
    given = await ticket(clients[0], signed(tenant))

    async def ask_at(i: int) -> str:
        async with show(clients[i % 2], given) as response:
            assert response.status == 200
            assert spoken(events(await response.read())) == TEXT
            return str(response.headers["x-message-id"])

    assert len(set(await asyncio.gather(*(ask_at(i) for i in range(50))))) == 1
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(2,)]


async def test_ticket_that_is_shown_again_shows_its_running_reply_from_the_start(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    model = Gated(pieces=PIECES)
    client = await aiohttp_client(await start_server(model=model, jwt_secret=SECRET))
    given = await ticket(client, signed(tenant))
    first = await show(client, given)
    model.go(3)
    second = await show(client, given)
    assert second.headers["x-message-id"] == first.headers["x-message-id"]
    model.go(len(PIECES))
    for response in (first, second):
        assert spoken(events(await response.read())) == TEXT


async def test_refused_question_uses_up_no_ticket(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    model = Gated(pieces=PIECES)
    limits = {"user_stream_limit": 1, "user_reader_limit": 2}
    client = await aiohttp_client(await start_server(model=model, jwt_secret=SECRET, **limits))
    given = await ticket(client, signed(tenant))
    asked = await client.post("/chat/stream", json=QUESTION, headers=signed(tenant))
    async with show(client, given) as response:
        assert (response.status, (await response.json())["error"]) == (429, "Too many replies")
    reading = await client.get(f"/chat/stream/{asked.headers['x-message-id']}", headers=signed(tenant))
    async with show(client, given) as response:
        assert (response.status, (await response.json())["error"]) == (429, "Too many streams")
    model.go(2 * len(PIECES) + 2)
    for response in (asked, reading):
        assert spoken(events(await response.read())) == TEXT
    with cut_off(client.server):
        async with show(client, given) as response:
            assert (response.status, (await response.json())["error"]) == (503, "Database unavailable")
    async with show(client, given) as response:
        assert spoken(events(await response.read())) == TEXT
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(4,)]


async def test_ticket_for_a_chat_whose_reply_runs_is_409_and_not_used_up(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    model = Gated(pieces=PIECES)
    client = await aiohttp_client(await start_server(model=model, jwt_secret=SECRET))
    running = await client.post("/chat/stream", json=QUESTION, headers=signed(tenant))
    given = await ticket(client, signed(tenant), chat_id=running.headers["x-chat-id"])
    async with show(client, given) as response:
        assert (response.status, (await response.json())["error"]) == (409, "Reply running")
    model.go(len(PIECES))
    await running.read()
    async with show(client, given) as response:
        assert response.status == 200


async def test_reader_with_a_ticket_comes_back_to_its_reply_only(guarded: Any, tenant: Tenant) -> None:
    given = await ticket(guarded, signed(tenant))
    unused = await ticket(guarded, signed(tenant))
    async with show(guarded, given) as response:
        reply_id = response.headers["x-message-id"]
        await response.read()
    async with guarded.post("/chat", json=QUESTION, headers=signed(tenant)) as response:
        another_id = (await response.json())["message_id"]
    for wanted, by, status in (
        (reply_id, given, 200),
        (another_id, given, 401),
        (str(uuid.uuid4()), given, 401),
        (reply_id, unused, 401),
    ):
        async with show(guarded, by, **{"Last-Event-ID": f"{wanted}:2"}) as response:
            assert response.status == status
            if status == 200:
                assert [event["token"] for event in events(await response.read())] == ["", "llo", ""]
    # And stops nothing.
    async with guarded.delete(f"/chat/stream/{reply_id}", params={"ticket": given}) as response:
        assert response.status == 401


async def test_ticket_asks_for_five_minutes_and_leads_to_its_reply_for_an_hour(
    guarded: Any, rows: Rows, tenant: Tenant
) -> None:
    async with guarded.post("/chat/stream/ticket", json=QUESTION, headers=signed(tenant)) as response:
        answer = await response.json()
    assert answer == {"ticket": answer["ticket"], "expires_in": 300}
    used, unused = answer["ticket"], await ticket(guarded, signed(tenant))
    async with show(guarded, used) as response:
        back = {"Last-Event-ID": response.headers["x-message-id"] + ":2"}
    rows("update tickets set created_at = now() - interval '301 seconds' where org_id = %s", tenant.org_id)
    async with show(guarded, unused) as response:
        assert (response.status, (await response.json())["error"]) == (401, "Bad ticket")
    for headers in ({}, back):
        async with show(guarded, used, **headers) as response:
            assert response.status == 200
    assert len(rows.messages(tenant.org_id)) == 2
    rows("update tickets set created_at = now() - interval '3601 seconds' where org_id = %s", tenant.org_id)
    app = guarded.server.app
    await sweep(app[STORE], app[LIMITS])
    for headers in ({}, back):
        async with show(guarded, used, **headers) as response:
            assert response.status == 401


@pytest.mark.parametrize("given", ["", "x", "é", "\ud800", "0" * 64, "g" * 64, "0" * 31 + "٣" + "x" * 32])
async def test_text_that_is_no_ticket_is_401(guarded: Any, given: str) -> None:
    quoted = quote(given.encode("utf-8", "surrogatepass"))
    async with guarded.get(URL(f"/chat/stream?ticket={quoted}", encoded=True)) as response:
        assert (response.status, (await response.json())["error"]) == (401, "Bad ticket")


async def test_ticket_is_of_its_org_and_whole(guarded: Any, rows: Rows, tenant: Tenant) -> None:
    given = await ticket(guarded, signed(tenant))
    other = rows.tenant().org_id.replace("-", "")
    for changed in (other + given[32:], given[:-1] + ("A" if given[-1] != "A" else "B"), given + "A"):
        async with show(guarded, changed) as response:
            assert response.status == 401
    assert rows.messages(tenant.org_id) == []


async def test_ticket_of_a_stranger_to_the_org_is_403(guarded: Any, rows: Rows, tenant: Tenant) -> None:
    headers = signed(Tenant(rows.tenant().org_id, tenant.user_id))
    async with guarded.post("/chat/stream/ticket", json=QUESTION, headers=headers) as response:
        assert response.status == 403


async def test_tickets_are_rationed_like_turns_and_beside_them(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=says("Hello"), jwt_secret=SECRET, user_turns_per_minute=3)
    client = await aiohttp_client(server)
    given = [await ticket(client, signed(tenant)) for _ in range(3)]
    async with client.post("/chat/stream/ticket", json=QUESTION, headers=signed(tenant)) as response:
        assert response.status == 429
        answer = await response.json()
        assert 1 <= int(response.headers["Retry-After"]) <= 60
    expected = "You have taken 3 tickets within a minute, expected at most as often."
    assert (answer["error"], answer["message"]) == ("Too many turns", expected)
    assert rows("select count(*) from tickets where org_id = %s", tenant.org_id) == [(3,)]
    # All of them may ask, and be shown again.
    for shown in given * 2:
        async with show(client, shown) as response:
            assert response.status == 200
    await ticket(client, signed(rows.tenant(tenant.org_id)))


async def test_ticket_of_a_turn_that_was_taken_back_asks_again(guarded: Any, rows: Rows, tenant: Tenant) -> None:
    given = await ticket(guarded, signed(tenant))
    async with show(guarded, given) as response:
        first_id = response.headers["x-message-id"]
    # As turn_undo leaves it.
    for table in ("turn_keys", "messages", "chats"):
        rows(f"delete from {table} where org_id = %s", tenant.org_id)
    async with show(guarded, given) as response:
        assert response.headers["x-message-id"] != first_id
    assert len(rows.messages(tenant.org_id)) == 2


async def test_tickets_of_a_server_of_the_version_before_are_still_stored_and_used(
    rows: Rows, tenant: Tenant
) -> None:
    rows(
        "insert into tickets (hash, org_id, user_id, message) values ('old', %s, %s, 'Hi')",
        tenant.org_id,
        tenant.user_id,
    )
    used = (
        "with ticket as (select hash from tickets where hash = 'old' and reply_id is null for update)"
        " update tickets set reply_id = gen_random_uuid(), message = null from ticket"
        " where tickets.hash = ticket.hash returning reply_id is not null"
    )
    assert [rows(used), rows(used)] == [[(True,)], []]
