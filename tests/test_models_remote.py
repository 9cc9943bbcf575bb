"""Real models over real sockets: read to their own end, tried again, and let go at once."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import format_datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support import eventually
from upstream import (
    ASKED,
    KEY,
    QUESTION,
    STREAM,
    STREAMS,
    Connection,
    Upstream,
    anthropic,
    at_once,
    model,
    openai,
    said,
    sse,
    text,
    upstream,
)

from app.models import (
    Conversation,
    Message,
    Reasoning,
    Stop,
)

WIRES = ["openai", "anthropic"]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried again at once, or nearly."""
    monkeypatch.setattr("app.models.remote.BACKOFF_S", (0.01, 0.02, 0.03))


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def refusal(status: int, body: str = "{}", headers: str = "", kind: str = "application/json") -> bytes:
    data = body.encode()
    return (
        f"HTTP/1.1 {status} Reason\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{headers}"
        "Connection: close\r\n\r\n"
    ).encode() + data


# ---- Requests


async def test_openai_request() -> None:
    async with (
        upstream(STREAM + openai("Hi")) as provider,
        model(
            "openai", f"{provider.url}/v1", model_system="Be kind.", model_extra={"temperature": 0}
        ) as completions,
    ):
        await said(completions, Conversation(ASKED.messages, stream=True, max_tokens=70))
    [request] = provider.connections
    assert request.head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"\r\nAuthorization: Bearer {KEY}\r\n".encode() in request.head
    assert request.body == {
        "model": "model-1",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": QUESTION}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 70,
        "temperature": 0,
    }


@pytest.mark.parametrize("base", ["", "/v1"])
async def test_anthropic_request(base: str) -> None:
    async with (
        upstream(STREAM + anthropic("Hi")) as provider,
        model("anthropic", provider.url + base, model_system="Be kind.", model_max_tokens=60) as messages,
    ):
        await said(messages, Conversation(ASKED.messages, stream=True, max_tokens=70))
    [request] = provider.connections
    assert request.head.startswith(b"POST /v1/messages HTTP/1.1\r\n")
    assert f"\r\nx-api-key: {KEY}\r\n".encode() in request.head
    assert b"\r\nanthropic-version: 2023-06-01\r\n" in request.head
    assert request.body == {
        "model": "model-1",
        "messages": [{"role": "user", "content": QUESTION}],
        "system": "Be kind.",
        "stream": True,
        "max_tokens": 60,
    }


async def test_without_a_key_no_header_has_one(wire: str) -> None:
    async with (
        upstream(STREAM + STREAMS[wire]("Hi")) as provider,
        model(wire, provider.url, model_key=None) as local,
    ):
        assert text((await said(local))[0]) == "Hi"
    assert b"authorization" not in provider.connections[0].head.lower()
    assert b"api-key" not in provider.connections[0].head.lower()


async def test_a_connection_whose_body_has_ended_is_used_again() -> None:
    async def two(connection: Connection) -> None:
        for _ in range(2):
            await connection.read_request()
            body = openai("Hi")
            head = STREAM.replace(b"Connection: close\r\n", b"Transfer-Encoding: chunked\r\n")
            await connection.send(head + b"%x\r\n%b\r\n" % (len(body), body))
            # As servers do: the end of the body by itself, and later.
            await asyncio.sleep(0.01)
            await connection.send(b"0\r\n\r\n")

    async with upstream(two) as provider, model("openai", provider.url) as remote:
        for _ in range(2):
            assert (await said(remote))[0][-1] == Stop("end")
    assert len(provider.connections) == 1


# ---- The end


@pytest.mark.parametrize("finish", ["stop", "length"])
async def test_reply_that_the_provider_has_ended_is_complete_though_done_is_missing(finish: str) -> None:
    body = openai("One", " two", finish=finish, done=False)
    async with upstream(STREAM + body) as provider, model("openai", provider.url) as remote:
        reason = {"stop": "end", "length": "length"}[finish]
        assert await said(remote) == (["One", " two", Stop(reason)], None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        ("openai", openai("One", " two", finish=None)),
        ("openai", openai("One", " two", finish=None, done=False)),
        ("openai", openai("One", " two", finish="", done=False)),
        ("openai", openai("One", " two", finish="error", done=True)),
        ("openai", openai("One", " two", done=False)[:-8]),
        ("anthropic", anthropic("One", " two", done=False)),
        ("anthropic", anthropic("One", " two", stop=None, done=False)),
    ],
)
async def test_stream_that_just_ends_has_failed_after_its_text(wire: str, body: bytes) -> None:
    async with upstream(STREAM + body) as provider, model(wire, provider.url) as remote:
        pieces, failure = await said(remote)
    assert text(pieces) == "One two"
    assert failure.reason is None
    assert str(failure) == "the stream (text/event-stream) ended before the model did"
    assert len(provider.connections) == 1


async def test_silence_after_the_providers_own_end_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.remote.LAST_S", 0.05)

    async def hang(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(STREAM + openai("One", done=False))
        await connection.watch()

    async with upstream(hang) as provider, model("openai", provider.url) as remote:
        assert await said(remote) == (["One", Stop("end")], None)


async def test_pings_after_the_providers_own_end_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.remote.LAST_S", 0.1)

    async def on_and_on(connection: Connection) -> None:
        await connection.read_request()
        # An end that was none is not held against what follows.
        await connection.send(STREAM + openai("One", done=False))
        await asyncio.sleep(0.01)
        await connection.send(openai(" two", done=False))
        while True:
            await asyncio.sleep(0.01)
            await connection.send(b": ping\n\n")

    async with asyncio.timeout(10), upstream(on_and_on) as provider, model("openai", provider.url) as remote:
        assert await said(remote) == (["One", " two", Stop("end")], None)


async def test_body_that_does_not_end_after_the_reply_is_left() -> None:
    async def on_and_on(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(STREAM + openai("One"))
        while True:
            await connection.send(b": ping\n\n")
            await asyncio.sleep(0.01)

    async with upstream(on_and_on) as provider, model("openai", provider.url) as remote:
        pieces, failure = await said(remote)
        assert (text(pieces), pieces[-1], failure) == ("One", Stop("end"), None)


@pytest.mark.parametrize(
    ("said_in_stream", "reason"),
    [
        ({"error": {"message": "Overloaded", "type": "overloaded_error"}}, "busy"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "busy"),
        ({"error": {"message": "slow down", "code": 429}}, "busy"),
        ({"error": {"message": "upstream is gone", "code": 502}, "choices": []}, None),
        ({"error": "boom"}, None),
        ({"object": "error", "message": "boom", "code": 500}, None),
        ({"error": {"message": "too many tokens", "code": "context_length_exceeded"}}, "too_long"),
    ],
)
async def test_error_within_a_200_stream_counts(wire: str, said_in_stream: Any, reason: str | None) -> None:
    body = STREAMS[wire]("One", **{"finish" if wire == "openai" else "stop": None}, done=False)
    async with upstream(STREAM + body + sse(said_in_stream)) as provider, model(wire, provider.url) as remote:
        pieces, failure = await said(remote)
    assert (text(pieces), failure.reason) == ("One", reason)
    # Something was said: it is not asked again.
    assert len(provider.connections) == 1


async def test_event_that_is_called_error_counts() -> None:
    for data in (b'{"message": "boom"}', b"boom"):
        body = openai("One", finish=None, done=False) + b"event: error\ndata: " + data + b"\n\n"
        async with upstream(STREAM + body) as provider, model("openai", provider.url) as remote:
            pieces, failure = await said(remote)
        assert (text(pieces), str(failure)) == ("One", "boom")


async def test_refusal_after_text_is_a_stop_and_without_text_an_error(wire: str) -> None:
    how = {"finish": "content_filter"} if wire == "openai" else {"stop": "refusal"}
    async with upstream(STREAM + STREAMS[wire]("One", **how)) as provider, model(wire, provider.url) as remote:
        assert (await said(remote))[0][-1] == Stop("refusal")
    async with upstream(STREAM + STREAMS[wire](**how)) as provider, model(wire, provider.url) as remote:
        pieces, failure = await said(remote)
        assert (text(pieces), failure.reason) == ("", "refused")
        assert len(provider.connections) == 1


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (refusal(200, "<html>Log in</html>", kind="text/html"), "200 <html>Log in</html> (URL)"),
        (refusal(200, '{"choices": [{"message": {"content": "Polonius"}}]}'), "200 (URL)"),
        (refusal(200, "Hello", kind="text/plain"), "the stream (text/plain) ended before the model did"),
        (refusal(302, "", "Location: http://127.0.0.1:1/\r\n"), "302 (URL)"),
        (refusal(404, '{"error": "model not found"}'), "404 model not found (URL)"),
        (refusal(405, "Not here", kind="text/plain"), "405 Not here (URL)"),
        (refusal(401, '{"error": "no such key"}'), "401 no such key"),
        (STREAM + b"data: {]\n\n", "an event is not a JSON object"),
        (STREAM + b"data: " + b"x" * 2_100_000, "an event is longer than 2097152 bytes"),
        (STREAM + b'data: "' + b"x\ndata: " * 300_000, "an event is longer than 2097152 bytes"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", None),
    ],
)
async def test_what_is_no_stream_is_a_failure(answer: bytes, line: str | None) -> None:
    async with upstream(answer) as provider, model("openai", provider.url) as remote:
        pieces, failure = await said(remote)
    assert (pieces, failure.reason) == ([], None)
    if line is not None:
        assert str(failure) == line.replace("URL", f"{provider.url}/chat/completions")


async def test_line_of_a_megabyte_is_read() -> None:
    async with upstream(STREAM + openai("é" * 524_288)) as provider, model("openai", provider.url) as remote:
        assert text((await said(remote))[0]) == "é" * 524_288


# ---- Again


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        *(refusal(status) for status in (408, 409, 429, 500, 502, 503, 504, 529)),
        refusal(502, "<html>Bad gateway</html>", kind="text/html"),
        STREAM,
        STREAM + b": ping\n\n",
        STREAM + sse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        STREAM + sse({"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}),
    ],
)
async def test_tried_again_before_the_first_piece(broken: bytes) -> None:
    async with (
        upstream(broken, broken, broken, STREAM + openai("Hi")) as provider,
        model("openai", provider.url) as remote,
    ):
        pieces, failure = await said(remote)
    assert (text(pieces), pieces[-1], failure) == ("Hi", Stop("end"), None)
    assert len(provider.connections) == 4


@pytest.mark.parametrize(("status", "reason"), [(429, "busy"), (503, "busy"), (529, "busy"), (500, None)])
async def test_three_times_at_most(status: int, reason: str | None) -> None:
    async with upstream(refusal(status)) as provider, model("openai", provider.url) as remote:
        pieces, failure = await said(remote)
    assert (pieces, failure.reason, len(provider.connections)) == ([], reason, 4)


@pytest.mark.parametrize(
    "broken",
    [refusal(status) for status in (400, 401, 403, 404, 422)] + [refusal(429, '{"code":"insufficient_quota"}')],
)
async def test_never_again_what_will_not_pass(broken: bytes) -> None:
    async with upstream(broken) as provider, model("openai", provider.url) as remote:
        pieces, failure = await said(remote)
    assert (pieces, failure.reason, len(provider.connections)) == ([], None, 1)


async def test_refused_connection_is_tried_again(unused_tcp_port: int) -> None:
    async with model("openai", f"http://127.0.0.1:{unused_tcp_port}/v1") as remote:
        pieces, failure = await said(remote)
    assert (pieces, failure.reason) == ([], None)
    asked = f"http://127.0.0.1:{unused_tcp_port}/v1/chat/completions"
    assert f"no answer from {asked}: ClientConnectorError " in str(failure)


@pytest.mark.parametrize("first", ["text", "reasoning"])
async def test_never_again_after_the_first_piece(first: str) -> None:
    key = {"text": "content", "reasoning": "reasoning_content"}[first]
    body = sse({"choices": [{"delta": {key: "Hm"}}]})
    async with upstream(STREAM + body) as provider, model("openai", provider.url) as remote:
        pieces, failure = await said(remote)
    assert pieces == ["Hm" if first == "text" else Reasoning("Hm")]
    assert failure is not None
    assert len(provider.connections) == 1


def in_21_s() -> str:
    """Return a point in time, by a clock that is an hour late."""
    late = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    later = late + datetime.timedelta(seconds=21)
    return f"Date: {format_datetime(late, usegmt=True)}\r\nRetry-After: {format_datetime(later, usegmt=True)}\r\n"


@pytest.mark.parametrize(
    ("header", "after_s"),
    [("Retry-After: 21\r\n", 21), ("Retry-After: 86400\r\n", 86400), pytest.param(in_21_s(), 21, id="date")],
)
async def test_long_retry_after_is_passed_on_at_once(header: str, after_s: float) -> None:
    async with upstream(refusal(429, headers=header)) as provider, model("openai", provider.url) as remote:
        pieces, failure = await said(remote)
    assert failure.reason == "busy"
    assert (pieces, failure.retry_after_s, len(provider.connections)) == ([], after_s, 1)


async def test_retry_after_is_waited_for() -> None:
    loop = asyncio.get_running_loop()
    answers = refusal(429, headers="Retry-After: 0.2\r\n"), STREAM + openai("Hi")
    async with upstream(*answers) as provider, model("openai", provider.url) as remote:
        began_s = loop.time()
        assert text((await said(remote))[0]) == "Hi"
        assert 0.2 <= loop.time() - began_s < 0.7


async def test_retry_after_beyond_the_wait_for_the_first_piece_is_passed_on() -> None:
    answer = refusal(503, headers="Retry-After: 10\r\n")
    async with upstream(answer) as provider, model("openai", provider.url, model_first_s=5) as remote:
        _, failure = await said(remote)
    assert failure.reason == "busy"
    assert (failure.retry_after_s, len(provider.connections)) == (10, 1)


@pytest.mark.parametrize("status", [400, 422])
async def test_stream_options_that_are_refused_are_left_out_from_then_on(status: int) -> None:
    detail = '{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"not permitted"}]}'
    answers = refusal(status, detail), STREAM + openai("Hi")
    async with upstream(*answers) as provider, model("openai", provider.url) as remote:
        for _ in range(2):
            assert text((await said(remote))[0]) == "Hi"
    assert ["stream_options" in request.body for request in provider.connections] == [True, False, False]


async def test_limit_goes_by_the_name_that_the_server_takes() -> None:
    why = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    answers = refusal(400, f'{{"error": {{"message": "{why}"}}}}'), STREAM + openai("Hi")
    async with upstream(*answers) as provider, model("openai", provider.url, model_max_tokens=9) as remote:
        for _ in range(2):
            assert text((await said(remote))[0]) == "Hi"
    limits = [
        {name: request.body[name] for name in request.body if "tokens" in name} for request in provider.connections
    ]
    assert limits == [{"max_tokens": 9}, {"max_completion_tokens": 9}, {"max_completion_tokens": 9}]


async def test_server_that_takes_neither_form_is_asked_no_more_than_thrice() -> None:
    why = '{"error": "max_tokens is unknown, max_completion_tokens is unknown"}'
    async with upstream(refusal(400, why)) as provider, model("openai", provider.url) as remote:
        _, failure = await said(remote)
    assert (failure.reason, len(provider.connections)) == (None, 3)


async def test_what_a_user_writes_teaches_nothing() -> None:
    asked = Conversation([Message("user", "stream_options is not permitted")], stream=True)
    answer = refusal(400, '{"error": "Bad content: stream_options is not permitted"}')
    async with upstream(answer) as provider, model("openai", provider.url) as remote:
        await said(remote, asked)
    assert len(provider.connections) == 1


async def test_failure_quotes_neither_key_nor_conversation() -> None:
    detail = f'{{"detail":[{{"msg":"extra","input":{{"messages":["{QUESTION}"]}}}}], "type":"{KEY[:14]}"}}'
    async with upstream(refusal(422, detail)) as provider, model("openai", provider.url) as remote:
        _, failure = await said(remote)
    assert str(failure) == '422 …"msg": "extra", "input": {"messages": …"]}}]'
    for secret in ("wrote", "letter", "Ophelia", "sk-test", "0123"):
        assert secret not in str(failure)


@pytest.mark.parametrize("head", ["", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
async def test_failure_quotes_nothing_of_an_answer_that_is_no_http(wire: str, head: str) -> None:
    answer = head.encode() + STREAMS[wire]("Polonius")
    async with upstream(answer) as provider, model(wire, provider.url) as remote:
        pieces, failure = await said(remote)
    asked = f"{provider.url}/{'chat/completions' if wire == 'openai' else 'v1/messages'}"
    why = f"no answer from {asked}: ClientResponseError what came is no HTTP"
    assert (pieces, str(failure), len(provider.connections)) == ([], why, 4)


# ---- Silence


async def test_pings_are_life_and_silence_before_the_first_piece_is_not() -> None:
    async def ping(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(STREAM)
        for _ in range(4):
            await asyncio.sleep(0.25)
            await connection.send(b": ping\n\n")
        await connection.send(openai("Hi"))

    async def hang(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(STREAM)
        await connection.watch()

    async with upstream(ping, hang) as provider, model("openai", provider.url, model_first_s=0.8) as remote:
        assert text((await said(remote))[0]) == "Hi"
        pieces, failure = await said(remote)
        assert (pieces, str(failure)) == ([], "no more in 0.8 s: TimeoutError")
        await provider.connections[1].left.wait()
    # There was no time left to ask again.
    assert len(provider.connections) == 2


@pytest.mark.parametrize("headers", [False, True])
async def test_the_wait_for_the_first_piece_holds_for_all_that_is_tried(headers: bool) -> None:
    async def hang(connection: Connection) -> None:
        await connection.read_request()
        if headers:
            await connection.send(b"HTTP/1.1 200 OK\r\n")
        await connection.watch()

    loop = asyncio.get_running_loop()
    async with (
        upstream(refusal(500), b"", hang) as provider,
        model("openai", provider.url, model_first_s=0.4, model_silence_s=9) as remote,
    ):
        began_s = loop.time()
        _, failure = await said(remote)
        assert 0.39 < loop.time() - began_s < 5
    why = f"no answer from {provider.url}/chat/completions: TimeoutError"
    assert (str(failure), len(provider.connections)) == (why, 3)


async def test_silence_after_a_piece() -> None:
    async def hang(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(STREAM + openai("One", done=False)[:-70])
        await connection.watch()

    async with upstream(hang) as provider, model("openai", provider.url, model_silence_s=0.2) as remote:
        pieces, failure = await said(remote)
        assert (text(pieces), str(failure)) == ("One", "no more in 0.2 s: TimeoutError")
        await provider.connections[0].left.wait()


async def test_reply_that_waits_for_its_reader_is_not_silent() -> None:
    async with (
        upstream(STREAM + openai(*(["word "] * 1000))) as provider,
        model("openai", provider.url, model_first_s=0.2, model_silence_s=0.2) as remote,
    ):
        pieces = remote(ASKED).__aiter__()
        words = [await anext(pieces)]
        await asyncio.sleep(0.3)
        words += [piece async for piece in pieces]
    assert text(words) == "word " * 1000


# ---- Let go


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now.replace(year=2999))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(params=["TCP", "TLS"])
def tls(
    request: pytest.FixtureRequest, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> ssl.SSLContext | None:
    """The provider's side; aiohttp's trusts it."""
    if request.param == "TCP":
        return None
    trusting = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def frozen_after(*sent: bytes) -> Callable[[Connection], Awaitable[None]]:
    """Return a provider that reads a request, sends so much, and then neither reads nor sends."""

    async def answer(connection: Connection) -> None:
        await connection.read_request()
        for data in sent:
            await connection.send(data)
        connection.reached.set()
        await connection.watch()

    return answer


async def closes(provider: Upstream, waiting: asyncio.Task[Any]) -> None:
    """Cancel what waits for the provider, and see the connection closed within 100 ms."""
    [connection] = provider.connections
    waiting.cancel()
    assert await at_once(lambda: waiting.done() and connection.left.is_set())
    assert waiting.cancelled()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([], id="no headers"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-"], id="half the headers"),
        pytest.param([STREAM], id="no body"),
        pytest.param([STREAM, b": ping\n\n", b'data: {"choices": [{"del'], id="half a line"),
        pytest.param([refusal(500)[:-1]], id="half an error"),
    ],
)
async def test_cancelled_while_it_waits(sent: list[bytes], tls: ssl.SSLContext | None) -> None:
    async with upstream(frozen_after(*sent), ssl=tls) as provider, model("openai", provider.url) as remote:
        waiting = asyncio.create_task(said(remote))
        await eventually(lambda: provider.connections and provider.connections[0].reached.is_set())
        # What was sent is to be read.
        await asyncio.sleep(0.02)
        await closes(provider, waiting)


async def test_cancelled_while_the_provider_does_not_read_the_request(tls: ssl.SSLContext | None) -> None:
    """More of it than the kernel's buffers hold: closing is not to wait until it is sent."""

    async def unread(connection: Connection) -> None:
        await connection.reader.readexactly(1)
        connection.reached.set()
        await asyncio.sleep(0.1)
        await connection.watch()

    long = Conversation([Message("user", "x" * 30_000_000)], stream=True)
    async with upstream(unread, ssl=tls) as provider, model("openai", provider.url) as remote:
        waiting = asyncio.create_task(said(remote, long))
        await eventually(lambda: provider.connections and provider.connections[0].reached.is_set())
        waiting.cancel()
        await asyncio.wait([waiting])
        await asyncio.wait_for(provider.connections[0].left.wait(), 5)
        assert provider.connections[0].read_bytes < 20_000_000


async def test_cancelled_between_two_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.remote.BACKOFF_S", (60,))
    async with upstream(refusal(500)) as provider, model("openai", provider.url) as remote:
        waiting = asyncio.create_task(said(remote))
        await eventually(lambda: provider.connections and provider.connections[0].body)
        await asyncio.sleep(0.05)
        waiting.cancel()
        assert await at_once(waiting.cancelled)
    assert len(provider.connections) == 1


async def test_cancelled_while_it_connects() -> None:
    with socket.socket() as listener:
        # Nobody accepts, and the one place in the queue is taken.
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with socket.create_connection(address), suppress(TimeoutError), socket.create_connection(address, 0.05):
            pass
        async with model("openai", "http://{}:{}".format(*address)) as remote:
            waiting = asyncio.create_task(said(remote))
            await asyncio.sleep(0.05)
            waiting.cancel()
            assert await at_once(waiting.cancelled)


async def test_slow_reader_holds_the_provider_and_leaving_lets_it_go(tls: ssl.SSLContext | None) -> None:
    block = sse({"choices": [{"delta": {"content": "word "}}]}) * 1000
    sent = 0

    async def on_and_on(connection: Connection) -> None:
        nonlocal sent
        await connection.read_request()
        watching = asyncio.create_task(connection.watch())
        await connection.send(STREAM)
        while not connection.left.is_set():
            await connection.send(block)
            sent += len(block)
        await watching

    async with upstream(on_and_on, ssl=tls) as provider, model("openai", provider.url) as remote:
        pieces = remote(ASKED)
        assert await anext(pieces.__aiter__()) == "word "
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.1)
        # What the kernel's buffers hold, and aiohttp's.
        assert sent < 16_000_000
        closing = asyncio.ensure_future(pieces.aclose())
        assert await at_once(lambda: closing.done() and provider.connections[0].left.is_set())
