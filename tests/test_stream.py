"""`POST /chat/stream` and `GET /chat/stream`: the exact bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator

from conftest import RawClient, Rows, StartServer, Tenant, post

from app.model import Conversation


async def hello_world(conversation: Conversation) -> AsyncIterator[str]:
    yield "Hello"
    yield " world"


async def test_http_1_1_stream_is_these_exact_bytes(start_server: StartServer, rows: Rows, tenant: Tenant) -> None:
    server = await start_server(model=hello_world)
    async with await RawClient.connect(server) as client:
        client.send(post("/chat/stream", b'{"message": "Hi"}', tenant))
        status, headers = await client.read_head()
        chunks = await client.read_chunks()

    assert status == b"HTTP/1.1 200 OK"
    assert headers[b"content-type"] == b"text/event-stream"
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"connection"] == b"keep-alive"
    assert headers[b"x-accel-buffering"] == b"no"
    chat_id, message_id = headers[b"x-chat-id"].decode(), headers[b"x-message-id"].decode()
    assert chunks == [
        b'data: {"token":"Hello","done":false}\n\n',
        b'data: {"token":" ","done":false}\n\ndata: {"token":"world","done":false}\n\n',
        (
            f'data: {{"token":"","done":true,"fullText":"Hello world","chat_id":"{chat_id}",'
            f'"message_id":"{message_id}"}}\n\n'
        ).encode(),
    ]
    assert rows.messages(tenant.org_id) == [
        ("user", "Hi", "complete"),
        ("assistant", "Hello world", "complete"),
    ]
