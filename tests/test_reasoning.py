"""What a model thinks aloud: sent to whoever asks for it, kept nowhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from house import ask, come_back, disconnect, first_event, open_house, stored
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, post

from app.models import Conversation, Piece, Reasoning

THOUGHT = b'data: {"reasoning":"H\\u00f6flich sein.","done":false}\n\n'
PIECES = (Reasoning("Höflich sein."), "Hello", Reasoning("Mehr?"), " world")


class Noted:
    """A model that thinks, and tells whether it was asked to show it."""

    def __init__(self) -> None:
        self.reasoning: list[bool] = []

    async def __call__(self, conversation: Conversation) -> AsyncIterator[Piece]:
        self.reasoning.append(conversation.reasoning)
        for piece in PIECES:
            yield piece


@pytest.fixture
def model() -> Noted:
    return Noted()


@pytest.fixture
async def client(start_server: StartServer, aiohttp_client: Any, model: Noted) -> TestClient:
    client: TestClient = await aiohttp_client(await start_server(model=model))
    return client


async def test_reasoning_comes_as_these_exact_bytes_where_the_body_asks_for_it(
    client: TestClient, rows: Rows, tenant: Tenant, model: Noted
) -> None:
    async with await RawClient.connect(client.server) as raw:
        raw.send(post("/chat/stream", b'{"message": "Hi", "reasoning": true}', tenant))
        await raw.read_head()
        chunks = await raw.read_chunks()
    assert chunks[:4] == [
        THOUGHT,
        b'data: {"token":"Hello","done":false}\n\n',
        b'data: {"reasoning":"Mehr?","done":false}\n\n',
        b'data: {"token":" ","done":false}\n\ndata: {"token":"world","done":false}\n\n',
    ]
    [done] = events(b"".join(chunks[4:]))
    # It is no part of the reply, but of what that costs: 14 and 5 bytes, beside 11.
    assert done["fullText"] == "Hello world"
    assert done["usage"] == {"input": 1, "output": 15, "estimated": True}
    assert model.reasoning == [True]
    assert rows.messages(tenant.org_id)[1] == ("assistant", "Hello world", "complete")


@pytest.mark.parametrize("asks", [True, False])
async def test_reasoning_has_no_id_where_other_events_have(client: TestClient, tenant: Tenant, asks: bool) -> None:
    query = {"message": "Hi", **tenant.query} | ({"reasoning": "1"} if asks else {})
    async with client.get("/chat/stream", params=query) as response:
        body = await response.read()
    reply_id = response.headers["x-message-id"]
    thought = THOUGHT if asks else b""
    first = f'id: {reply_id}:5\ndata: {{"token":"Hello","done":false}}\n\n'.encode()
    assert body.startswith(first_event(reply_id, 0) + thought + first)


@pytest.mark.parametrize("question", [{}, {"reasoning": False}, {"reasoning": None}])
async def test_reasoning_is_not_sent_to_who_does_not_ask(
    client: TestClient, tenant: Tenant, model: Noted, question: dict[str, Any]
) -> None:
    body = {"message": "Hi", **question}
    async with client.post("/chat/stream", json=body, headers=tenant.headers) as response:
        assert b"reasoning" not in await response.read()
    assert model.reasoning == [False]


async def test_ticket_asks_for_reasoning_in_the_url(client: TestClient, tenant: Tenant) -> None:
    async with client.post("/chat/stream/ticket", json={"message": "Hi"}, headers=tenant.headers) as response:
        query = {"ticket": (await response.json())["ticket"], "reasoning": "1"}
    async with client.get("/chat/stream", params=query) as response:
        assert THOUGHT in await response.read()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("/chat", True, "reasoning is true, expected false, or a stream."),
        (
            "/chat/stream/ticket",
            True,
            "reasoning is true, expected false, and reasoning=1 in the URL of the stream.",
        ),
        ("/chat/stream", "yes", "reasoning is a string, expected true or false."),
        ("/chat/stream", 1, "reasoning is a number, expected true or false."),
        ("/chat/stream?reasoning=yes", False, "reasoning is 'yes', expected 0 or 1."),
    ],
)
async def test_reasoning_that_would_not_be_sent_is_refused(
    client: TestClient, rows: Rows, tenant: Tenant, path: str, value: Any, message: str
) -> None:
    async with client.post(path, json={"message": "Hi", "reasoning": value}, headers=tenant.headers) as response:
        answer = await response.json()
    assert (response.status, answer["error"], answer["message"]) == (400, "Bad reasoning", message)
    assert rows.messages(tenant.org_id) == []


async def test_each_reader_is_sent_it_or_not_and_who_comes_late_has_what_is_thought_from_then_on(
    start_server: StartServer, tenant: Tenant
) -> None:
    pieces: Any = [Reasoning("One"), "a", Reasoning("Two"), "b"]
    model = Gated(pieces=pieces)
    server = await start_server(model=model)
    asker, reply_id = await ask(server, tenant)
    model.go(2)
    assert await asker.read_chunk() == b'data: {"token":"a","done":false}\n\n'
    late = await RawClient.connect(server)
    late.send(
        f"GET /chat/stream/{reply_id}?offset=1&reasoning=1 HTTP/1.1\r\nHost: localhost\r\n"
        f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n\r\n".encode()
    )
    await late.read_head()
    assert await late.read_chunk() == first_event(reply_id, 1)
    plain = await come_back(server, tenant, reply_id, 1)
    await plain.read_head()
    assert await plain.read_chunk() == first_event(reply_id, 1)
    model.go(3)
    read = events(b"".join(await late.read_chunks()))
    assert [event.get("reasoning", event.get("token")) for event in read] == ["Two", "b", ""]
    for reader in (asker, plain):
        assert b"reasoning" not in b"".join(await reader.read_chunks())


async def test_model_that_only_thinks_is_held_while_nobody_reads(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    thoughts: Any = [Reasoning("Hm")] * 100
    model = Gated(pieces=thoughts)
    house = await open_house(start_server, False, model, resume_window_s=0.5)
    client, reply_id = await ask(house.home, tenant)
    await model.asked.wait()
    await disconnect(house, client, reply_id)
    model.go(100)
    await eventually(lambda: stored(rows, reply_id) == ("disconnected", ""))
    # That which it was thinking when its reader left.
    assert model.said == 1
    assert model.closed.is_set()
