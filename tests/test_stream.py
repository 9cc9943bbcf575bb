"""`POST /chat/stream` and `GET /chat/stream`: the exact bytes, and what is stored."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import pytest
from aiohttp import TCPConnector
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, logged, post, says

from app.models import Conversation
from app.replies.reply import storable
from app.replies.turns import TURNS

HELLO_SHA256 = hashlib.sha256(b"Hello world").hexdigest()
HELLO = says("Hello", " world")


async def test_http_1_1_stream_is_these_exact_bytes(start_server: StartServer, rows: Rows, tenant: Tenant) -> None:
    server = await start_server(model=HELLO)
    async with await RawClient.connect(server) as client:
        client.send(post("/chat/stream", b'{"message": "Hi"}', tenant))
        status, headers = await client.read_head()
        chunks = await client.read_chunks()

    assert status == b"HTTP/1.1 200 OK"
    assert headers[b"content-type"] == b"text/event-stream"
    assert headers[b"cache-control"] == b"no-cache, no-transform"
    assert headers[b"connection"] == b"keep-alive"
    assert headers[b"x-accel-buffering"] == b"no"
    chat_id, message_id = headers[b"x-chat-id"].decode(), headers[b"x-message-id"].decode()
    assert chunks == [
        b'data: {"token":"Hello","done":false}\n\n',
        b'data: {"token":" ","done":false}\n\ndata: {"token":"world","done":false}\n\n',
        (
            f'data: {{"token":"","done":true,"fullText":"Hello world","chat_id":"{chat_id}",'
            f'"message_id":"{message_id}","chars":11,"sha256":"{HELLO_SHA256}",'
            '"stop":"end","usage":{"input":1,"output":6,"estimated":true}}\n\n'
        ).encode(),
    ]
    assert rows.messages(tenant.org_id) == [
        ("user", "Hi", "complete"),
        ("assistant", "Hello world", "complete"),
    ]
    assert rows(
        "select id::text, chat_id::text from messages where role = 'assistant' and org_id = %s", tenant.org_id
    ) == [(message_id, chat_id)]


async def test_http_1_0_stream_has_no_chunks_and_ends_with_the_connection(
    start_server: StartServer, tenant: Tenant
) -> None:
    server = await start_server(model=HELLO)
    async with await RawClient.connect(server) as client:
        client.send(
            post("/chat/stream", b'{"message": "Hi"}', tenant, version="1.0", headers="Connection: keep-alive\r\n")
        )
        status, headers = await client.read_head()
        body = await client.reader.read()

    assert status == b"HTTP/1.0 200 OK"
    assert b"transfer-encoding" not in headers
    assert headers.get(b"connection") != b"keep-alive"
    chat_id, message_id = headers[b"x-chat-id"].decode(), headers[b"x-message-id"].decode()
    assert (
        body
        == (
            'data: {"token":"Hello","done":false}\n\n'
            'data: {"token":" ","done":false}\n\n'
            'data: {"token":"world","done":false}\n\n'
            f'data: {{"token":"","done":true,"fullText":"Hello world","chat_id":"{chat_id}",'
            f'"message_id":"{message_id}","chars":11,"sha256":"{HELLO_SHA256}",'
            '"stop":"end","usage":{"input":1,"output":6,"estimated":true}}\n\n'
        ).encode()
    )


async def test_connection_close_is_answered_in_kind(start_server: StartServer, tenant: Tenant) -> None:
    server = await start_server(model=HELLO)
    async with await RawClient.connect(server) as client:
        client.send(post("/chat/stream", b'{"message": "Hi"}', tenant, headers="Connection: close\r\n"))
        _, headers = await client.read_head()
        await client.read_chunks()
        assert headers[b"connection"] == b"close"
        assert await client.reader.read() == b""


async def test_connection_serves_a_second_request_after_a_stream(server: TestServer, tenant: Tenant) -> None:
    async with await RawClient.connect(server) as client:
        for _ in range(2):
            client.send(post("/chat/stream", b'{"message": "Hi"}', tenant))
            status, _ = await client.read_head()
            assert status == b"HTTP/1.1 200 OK"
            assert b'"done":true' in (await client.read_chunks())[-1]


async def test_event_source_stream_numbers_each_event_by_code_points(
    start_server: StartServer, tenant: Tenant
) -> None:
    server = await start_server(model=says("Añb", "  \U0001f600 x"))
    async with await RawClient.connect(server) as client:
        client.send(
            f"GET /chat/stream?message=Hi%20there&orgId={tenant.org_id}&userId={tenant.user_id} HTTP/1.1\r\n"
            "Host: localhost\r\n\r\n".encode()
        )
        _, headers = await client.read_head()
        body = b"".join(await client.read_chunks())
    chat_id, message_id = headers[b"x-chat-id"].decode(), headers[b"x-message-id"].decode()
    sha256 = hashlib.sha256("Añb  \U0001f600 x".encode()).hexdigest()
    assert (
        body
        == (
            f'id: {message_id}:0\ndata: {{"token":"","done":false}}\n\n'
            f'id: {message_id}:3\ndata: {{"token":"A\\u00f1b","done":false}}\n\n'
            f'id: {message_id}:5\ndata: {{"token":"  ","done":false}}\n\n'
            f'id: {message_id}:6\ndata: {{"token":"\\ud83d\\ude00","done":false}}\n\n'
            f'id: {message_id}:7\ndata: {{"token":" ","done":false}}\n\n'
            f'id: {message_id}:8\ndata: {{"token":"x","done":false}}\n\n'
            f'id: {message_id}:8:end\ndata: {{"token":"","done":true,"fullText":"A\\u00f1b  \\ud83d\\ude00 x",'
            f'"chat_id":"{chat_id}","message_id":"{message_id}","chars":8,"sha256":"{sha256}",'
            '"stop":"end","usage":{"input":4,"output":6,"estimated":true}}\n\n'
        ).encode()
    )


async def test_event_source_goes_on_with_a_chat(client: TestClient, rows: Rows, tenant: Tenant) -> None:
    first = await client.get("/chat/stream", params={"message": "One", **tenant.query})
    await first.read()
    chat_id = first.headers["x-chat-id"]
    second = await client.get("/chat/stream", params={"message": "Two", "chatId": chat_id, **tenant.query})
    await second.read()
    assert second.headers["x-chat-id"] == chat_id
    assert rows("select count(*) from messages where chat_id = %s", chat_id) == [(4,)]


@pytest.mark.parametrize(
    ("last_event_id", "status"),
    [
        ("", 400),
        ("x", 400),
        ("00000000-0000-0000-0000-000000000000:5", 404),
        ("00000000-0000-0000-0000-000000000000:5:end", 204),
    ],
)
async def test_event_source_reconnect_opens_no_turn_and_is_told_to_stop(
    client: TestClient, rows: Rows, tenant: Tenant, last_event_id: str, status: int
) -> None:
    response = await client.get(
        "/chat/stream", params={"message": "Hi", **tenant.query}, headers={"Last-Event-ID": last_event_id}
    )
    # Each of them stops it.
    assert response.status == status
    assert rows.messages(tenant.org_id) == []


async def test_head_of_a_stream_is_405_and_opens_no_turn(client: TestClient, rows: Rows, tenant: Tenant) -> None:
    response = await client.head("/chat/stream", params={"message": "Hi", **tenant.query})
    assert response.status == 405
    assert response.headers["Allow"] == "GET, POST"
    assert rows.messages(tenant.org_id) == []


TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from(
        [
            " ",
            "\n\n",
            "\t",
            "\u2028",
            "\u00a0",
            "\x1c",
            "a",
            "e\u0301",
            "\u05e9\u05dc",
            "\U0001f469\u200d\U0001f680",
            '"\\',
            "\x00",
            "\ud800",
            "</script>",
        ]
    ),
    max_size=30,
).map("".join)


async def test_tokens_concatenated_are_full_text_and_the_row_for_any_text(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    pieces: list[str] = []

    async def model(conversation: Conversation) -> Any:
        for piece in pieces:
            yield piece

    client = await aiohttp_client(await start_server(model=model))

    async def check(spoken: list[str]) -> None:
        pieces[:] = spoken
        response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
        *tokens, done = events(await response.read())
        text = storable("".join(spoken))
        assert "".join(token["token"] for token in tokens) == text
        assert not any(token["done"] for token in tokens)
        assert done["fullText"] == text
        assert rows("select content, status from messages where id = %s", done["message_id"]) == [
            (text, "complete")
        ]

    loop = asyncio.get_running_loop()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(TEXTS, max_size=8))
    def examples(spoken: list[str]) -> None:
        asyncio.run_coroutine_threadsafe(check(spoken), loop).result(10)

    await asyncio.to_thread(examples)


async def test_white_space_travels_with_the_word_after_it_in_one_write(
    start_server: StartServer, tenant: Tenant
) -> None:
    server = await start_server(sim_seed="1")
    async with await RawClient.connect(server) as client:
        client.send(post("/chat/stream", b'{"message": "Hi"}', tenant))
        await client.read_head()
        first, *words, _ = await client.read_chunks()
    assert len(events(first)) == 1
    assert len(words) >= 19
    for chunk in words:
        space, word = events(chunk)
        assert space["token"].isspace()
        assert not word["token"].isspace()


async def test_each_word_waits_10_to_30_ms(start_server: StartServer, aiohttp_client: Any, tenant: Tenant) -> None:
    client = await aiohttp_client(await start_server(sim_delay_ms=(10.0, 30.0)))
    began = time.perf_counter()
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    words = 0
    async for chunk in response.content.iter_any():
        words += chunk.count(b'"done":false') - chunk.count(b'{"token":" "')
    took_s = time.perf_counter() - began
    assert words >= 20
    # Mean 20 ms; for 20 words and more, outside of this by chance less than once in a million.
    # Beside them the turn is opened and closed, which a busy machine takes its time for.
    assert 0.013 * words < took_s < 0.027 * words + 2


async def test_silence_gets_a_ping_comment(start_server: StartServer, tenant: Tenant) -> None:
    model = Gated()
    server = await start_server(model=model, heartbeat_s=0.1)
    async with await RawClient.connect(server) as client:
        client.send(post("/chat/stream", b'{"message": "Hi"}', tenant))
        await client.read_head()
        assert await client.read_chunk() == b": ping\n"
        assert await client.read_chunk() == b": ping\n"
        model.go()
        chunk = await client.read_chunk()
        while chunk == b": ping\n":
            chunk = await client.read_chunk()
        assert [event["token"] for event in events(chunk)] == ["word", " "]


async def test_stream_that_is_not_silent_gets_no_ping(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(sim_delay_ms=(5.0, 10.0), heartbeat_s=0.15))
    response = await client.post("/chat/stream", json={"message": "tell a story"}, headers=tenant.headers)
    # While its end is stored it is silent.
    said, _, _ = (await response.read()).rpartition(b'"done":false')
    assert len(said) > 5000
    assert b"ping" not in said


@pytest.mark.parametrize("tokens_before", [0, 10])
async def test_model_that_fails_gives_an_error_event_and_saves_the_part(
    start_server: StartServer,
    aiohttp_client: Any,
    rows: Rows,
    tenant: Tenant,
    caplog: pytest.LogCaptureFixture,
    tokens_before: int,
) -> None:
    model = says(*["word "] * tokens_before, RuntimeError("upstream said no"))
    client = await aiohttp_client(await start_server(model=model))
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    body = await response.read()

    assert response.status == 200
    assert events(body)[:-1] == [{"token": "word", "done": False}, {"token": " ", "done": False}] * tokens_before
    assert body.endswith(
        b'data: {"error":"Stream failed","message":"The model failed; what it said so far is saved."}\n\n'
    )
    assert rows.messages(tenant.org_id)[1] == ("assistant", "word " * tokens_before, "failed")
    [record] = logged(caplog, "Stream failed")
    assert (record.levelname, record.piecesStreamed) == ("ERROR", tokens_before)
    assert record.exc_info
    assert str(record.exc_info[1]) == "upstream said no"


@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError(), BrokenPipeError()])
async def test_model_that_loses_its_own_connection_is_no_client_disconnect(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, error: Exception
) -> None:
    client = await aiohttp_client(await start_server(model=says("word ", error)))
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    assert events(await response.read())[-1]["error"] == "Stream failed"
    assert rows.messages(tenant.org_id)[1] == ("assistant", "word ", "failed")


async def test_model_that_says_no_text_at_all_is_done_with_an_empty_reply(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(model=says("", "")))
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    [done] = events(await response.read())
    assert (done["done"], done["fullText"]) == (True, "")
    assert rows.messages(tenant.org_id)[1] == ("assistant", "", "complete")


async def test_model_that_says_something_else_than_text_has_failed(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(model=says("word ", None)))  # type: ignore[arg-type]
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    assert events(await response.read())[-1]["error"] == "Stream failed"
    assert rows.messages(tenant.org_id)[1] == ("assistant", "word ", "failed")


async def test_model_that_fails_when_it_is_called_gives_an_error_event(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    def model(conversation: Conversation) -> Any:
        raise RuntimeError

    client = await aiohttp_client(await start_server(model=model))
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    assert [event["error"] for event in events(await response.read())] == ["Stream failed"]
    assert rows.messages(tenant.org_id)[1] == ("assistant", "", "failed")


async def test_model_that_is_cancelled_from_within_has_failed(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    async def model(conversation: Conversation) -> Any:
        yield "word "
        inner = asyncio.create_task(asyncio.sleep(60))
        inner.cancel()
        await inner

    client = await aiohttp_client(await start_server(model=model))
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    assert events(await response.read())[-1]["error"] == "Stream failed"
    assert rows.messages(tenant.org_id)[1] == ("assistant", "word ", "failed")
    assert len(logged(caplog, "Stream failed")) == 1


async def test_model_that_hangs_when_it_is_closed_is_given_up(
    start_server: StartServer,
    aiohttp_client: Any,
    rows: Rows,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Hanging:
        def __init__(self, conversation: Conversation) -> None:
            self.pieces = iter(["word "])

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> str:
            for piece in self.pieces:
                return piece
            raise StopAsyncIteration

        async def aclose(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr("app.models.CLOSE_TIMEOUT_S", 0.05)
    client = await aiohttp_client(await start_server(model=Hanging))
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    assert events(await response.read())[-1]["fullText"] == "word "
    assert len(logged(caplog, "Model did not close")) == 1


async def test_model_that_never_waits_leaves_the_loop_to_others(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    async def endless(conversation: Conversation) -> Any:
        while True:
            yield "word "

    client = await aiohttp_client(await start_server(model=endless))
    stream = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    async with asyncio.timeout(5):
        assert (await client.get("/health")).status == 200
    stream.close()


async def test_200_streams_at_once_are_none_mixed_up(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    all_there = asyncio.Barrier(200)

    async def echo(conversation: Conversation) -> Any:
        await all_there.wait()
        for number in range(10):
            await asyncio.sleep(0)
            yield f"{conversation.messages[-1].content}:{number} "

    server = await start_server(model=echo)
    client = await aiohttp_client(server, connector=TCPConnector(limit=0))

    async def ask(number: int) -> None:
        async with client.post("/chat/stream", json={"message": f"m{number}"}, headers=tenant.headers) as response:
            *tokens, done = events(await response.read())
        expected = "".join(f"m{number}:{i} " for i in range(10))
        assert "".join(token["token"] for token in tokens) == done["fullText"] == expected
        assert done["message_id"] == response.headers["x-message-id"]
        assert rows("select content from messages where id = %s", done["message_id"]) == [(expected,)]

    await asyncio.gather(*map(ask, range(200)))
    assert rows(
        "select count(*) from messages as question join messages as reply using (org_id, chat_id)"
        " where org_id = %s and question.role = 'user' and reply.role = 'assistant'"
        " and reply.content like question.content || ':0 %%'",
        tenant.org_id,
    ) == [(200,)]


async def test_stream_logs_its_start_and_its_end_without_the_text(
    client: TestClient, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    response = await client.post(
        "/chat/stream", json={"message": "Marmalade"}, headers=tenant.headers | {"x-request-id": "r-1"}
    )
    *tokens, done = events(await response.read())
    [start] = logged(caplog, "Starting stream")
    [end] = logged(caplog, "Stream completed")
    [request] = logged(caplog, "Request completed")
    assert start.textLength == end.totalLength == len(done["fullText"])
    assert end.piecesStreamed == sum(not token["token"].isspace() for token in tokens)
    assert (request.method, request.path, request.status) == ("POST", "/chat/stream", 200)
    assert request.outcome == "complete"
    assert request.durationMs > 0
    assert "Marmalade" not in caplog.text + str([vars(record) for record in caplog.records])


async def test_turn_beyond_the_limit_is_503_at_once_and_those_that_run_go_on(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    client = await aiohttp_client(await start_server(model=model, stream_limit=2))
    streams = [await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers) for _ in range(2)]
    for path in ("/chat", "/chat/stream"):
        refused = await client.post(path, json={"message": "Hi"}, headers=tenant.headers)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert (await refused.json())["message"] == "The server is busy with 2 replies, its limit; try again."
    assert len(rows.messages(tenant.org_id)) == 4
    model.go(2)
    for stream in streams:
        assert await stream.content.readuntil(b"\n\n")
        stream.close()


async def test_question_that_is_opened_as_its_server_stops_is_503_and_not_stored(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server()
    client = await aiohttp_client(server)
    with rows.locked("chats"):
        answers = [
            asyncio.ensure_future(
                client.post(path, json={"message": "Hi"}, headers=tenant.headers | {"Idempotency-Key": path})
            )
            for path in ("/chat", "/chat/stream")
        ]
        await eventually(lambda: rows.waiting() == 2)
        stop = asyncio.ensure_future(server.app[TURNS].drain(0.05))  # type: ignore[index]
        await eventually(lambda: server.app[TURNS].stopping)  # type: ignore[index]
    for answer in answers:
        response = await answer
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert (await response.json())["error"] == "Stopping"
    await stop
    await server.app[TURNS].finish(5.0)  # type: ignore[index]
    assert rows.messages(tenant.org_id) == []
    # The same question may be asked again with the same key.
    assert rows("select count(*) from turn_keys where org_id = %s", tenant.org_id) == [(0,)]


async def test_model_has_its_time_to_close_when_the_client_leaves(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    closed = asyncio.Event()

    async def model(conversation: Conversation) -> Any:
        try:
            yield "word "
            await asyncio.Event().wait()
        finally:
            # Longer than the server takes to look again.
            await asyncio.sleep(1.2)
            closed.set()

    client = await aiohttp_client(await start_server(model=model, resume_window_s=0))
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    await response.content.readuntil(b"\n\n")
    response.close()
    await asyncio.wait_for(closed.wait(), 5)
    await eventually(lambda: rows.messages(tenant.org_id)[1] == ("assistant", "word ", "disconnected"))
