"""EventSource, its polyfills, and other clients that come back by themselves; what they may leave out."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from house import PIECES, TEXT, House, open_house, spoken
from serving import StartServer
from support import Gated, Rows, Tenant, events, says

ASKED = {"message": "Hi"}
NOBODYS = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
async def house(start_server: StartServer, elsewhere: bool) -> House:
    house = await open_house(start_server, elsewhere, Gated(pieces=PIECES))
    house.model.go(len(PIECES) + 1)
    return house


@pytest.fixture
async def door(house: House, aiohttp_client: Any) -> TestClient:
    client: TestClient = await aiohttp_client(house.door)
    return client


@pytest.fixture
async def reply_id(house: House, aiohttp_client: Any, tenant: Tenant) -> str:
    client = await aiohttp_client(house.home)
    async with client.get("/chat/stream", params=ASKED | tenant.query) as response:
        await response.read()
    return str(response.headers["x-message-id"])


@pytest.mark.parametrize("name", ["lastEventId", "lastEventID", "Last-Event-ID", "last_event_id"])
async def test_polyfill_that_comes_back_with_the_id_in_its_url_asks_nothing_again(
    door: TestClient, rows: Rows, tenant: Tenant, reply_id: str, name: str
) -> None:
    async with door.get("/chat/stream", params=ASKED | tenant.query | {name: f"{reply_id}:3"}) as response:
        first, *rest = (await response.read()).split(b"\n\n")
    assert response.headers["x-message-id"] == reply_id
    assert first == f'id: {reply_id}:3\ndata: {{"token":"","done":false}}'.encode()
    assert spoken(events(b"\n\n".join(rest))) == TEXT[3:]
    params = ASKED | tenant.query | {name: f"{reply_id}:{len(TEXT)}:end"}
    assert (await door.get("/chat/stream", params=params)).status == 204
    assert len(rows.messages(tenant.org_id)) == 2


@pytest.mark.parametrize(
    ("header", "in_url", "status"),
    [
        # What is in the URL may be of an earlier connection.
        ("{}:5:end", ["{}:3"], 204),
        ("{}:5:end", ["nonsense"], 204),
        (None, ["{}:5:end", "{}:5:end"], 204),
        (None, ["{}:5:end", ""], 204),
        (None, ["{}:5:end", "{}:3"], 400),
        (None, ["nonsense"], 400),
        (None, [f"{NOBODYS}:3"], 404),
        ("", [], 400),
    ],
)
async def test_id_is_the_headers_or_the_one_in_the_url(
    client: TestClient, rows: Rows, tenant: Tenant, header: str | None, in_url: list[str], status: int
) -> None:
    given = [("lastEventId", value.format(NOBODYS)) for value in in_url]
    headers = {} if header is None else {"Last-Event-ID": header.format(NOBODYS)}
    params = [*ASKED.items(), *tenant.query.items(), *given]
    async with client.get("/chat/stream", params=params, headers=headers) as response:
        assert response.status == status
    assert rows.messages(tenant.org_id) == []


async def test_polyfill_that_sends_an_empty_id_at_first_asks(
    client: TestClient, rows: Rows, tenant: Tenant
) -> None:
    async with client.get("/chat/stream", params=ASKED | tenant.query | {"lastEventId": ""}) as response:
        assert events(await response.read())[-1]["done"]
    assert len(rows.messages(tenant.org_id)) == 2


async def test_client_that_resumes_and_loses_the_connection_again_goes_on_where_it_was(
    door: TestClient, tenant: Tenant, reply_id: str
) -> None:
    url = f"/chat/stream/{reply_id}?offset=3"
    for last, status in (
        (f"{reply_id}:8", 200),
        (f"{reply_id}:{len(TEXT)}:end", 204),
        (f"{NOBODYS}:8", 400),
        ("nonsense", 400),
    ):
        for headers, path in (({"Last-Event-ID": last}, url), ({}, f"{url}&lastEventId={last}")):
            async with door.get(path, headers=tenant.headers | headers) as response:
                assert response.status == status
                if status == 200:
                    assert spoken(events(await response.read())) == TEXT[8:]


async def read_done(client: TestClient, path: str, tenant: Tenant, **params: str) -> dict[str, Any]:
    async with client.get(path, params=params, headers=tenant.headers) as response:
        assert response.status == 200
        return events(await response.read())[-1]


@pytest.mark.parametrize(("value", "has"), [("0", False), ("1", True)])
async def test_done_leaves_the_whole_text_out_where_it_is_not_wanted(
    door: TestClient, tenant: Tenant, reply_id: str, value: str, has: bool
) -> None:
    keys = {"token", "done", "chat_id", "message_id", "chars", "sha256", "stop", "usage"} | (
        {"fullText"} if has else set()
    )
    resumed = await read_done(door, f"/chat/stream/{reply_id}", tenant, fullText=value)
    again = await read_done(
        door, "/chat/stream", tenant, lastEventId=f"{reply_id}:3", fullText=value, **tenant.query
    )
    for done in (resumed, again):
        assert done.keys() == keys
        assert (done["chars"], done["sha256"]) == (len(TEXT), hashlib.sha256(TEXT.encode()).hexdigest())


async def test_question_may_ask_for_a_done_without_the_text_in_every_way(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(model=says("Hello")))
    issued = await client.post("/chat/stream/ticket", json=ASKED, headers=tenant.headers)
    ticket = (await issued.json())["ticket"]
    posted = await client.post("/chat/stream?fullText=0", json=ASKED, headers=tenant.headers)
    for done in (
        events(await posted.read())[-1],
        await read_done(client, "/chat/stream", tenant, fullText="0", **ASKED, **tenant.query),
        await read_done(client, "/chat/stream", tenant, fullText="0", ticket=ticket),
    ):
        assert "fullText" not in done
        assert (done["done"], done["chars"]) == (True, 5)


@pytest.mark.parametrize("query", ["fullText=", "fullText=2", "fullText=true", "fullText=0&fullText=1"])
async def test_any_other_wish_is_400_and_asks_nothing_and_uses_no_ticket(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, query: str
) -> None:
    client = await aiohttp_client(await start_server(model=says("Hello")))
    issued = await client.post("/chat/stream/ticket", json=ASKED, headers=tenant.headers)
    ticket = (await issued.json())["ticket"]
    asked = f"message=Hi&orgId={tenant.org_id}&userId={tenant.user_id}"
    for request in (
        client.post(f"/chat/stream?{query}", json=ASKED, headers=tenant.headers),
        client.get(f"/chat/stream?{query}&{asked}"),
        client.get(f"/chat/stream?{query}&ticket={ticket}"),
        client.get(f"/chat/stream/{NOBODYS}?{query}", headers=tenant.headers),
    ):
        async with request as response:
            assert (response.status, (await response.json())["error"]) == (400, "Bad fullText")
    assert rows.messages(tenant.org_id) == []
    assert (await read_done(client, "/chat/stream", tenant, ticket=ticket))["fullText"] == "Hello"
