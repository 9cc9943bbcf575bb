"""Streams that are broken on purpose: the bytes, the times, the rows, and that nothing of it happens unasked."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import signal
import time
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from house import ask as ask_plainly
from house import come_back, hears, spoken, stop, stored
from processes import Processes
from serving import StartServer
from support import RawClient, Rows, Tenant, events, eventually, logged, post, says

from app.api.sim import SIMULATOR
from app.models.knobs import FORMS, WIRE
from app.models.texts import TEXTS, compose
from app.replies.events import encode_tokens
from app.replies.faults import FaultyStream
from app.replies.turns import TURNS

TEXT = "".join(compose(["Hi"], random.Random("1\0Hi")))
TOKENS = [event + b"\n\n" for event in encode_tokens(TEXT).split(b"\n\n")[:-1]]
UNICODE = [event + b"\n\n" for event in encode_tokens(TEXTS["unicode"]).split(b"\n\n")[:-1]]


PATHS = ("/chat", "/chat/stream", "/chat/stream/ticket")


def text_of(tokens: list[bytes]) -> str:
    return spoken(events(b"".join(tokens)))


@pytest.fixture
async def rig(start_server: StartServer) -> TestServer:
    return await start_server(sim_faults=True, sim_seed="1", write_timeout_s=0.5)


async def ask(
    server: TestServer, tenant: Tenant, sim: object, *, path: str = "/chat/stream", key: str = "", **more: object
) -> RawClient:
    client = await RawClient.connect(server)
    body = json.dumps({"message": "Hi", "sim": sim} | more).encode()
    client.send(post(path, body, tenant, headers=f"Idempotency-Key: {key}\r\n" if key else ""))
    return client


async def begin(server: TestServer, tenant: Tenant, sim: str | None, **more: Any) -> tuple[RawClient, str]:
    """Ask, and return the client and the reply's id once the headers have come."""
    client = await ask(server, tenant, sim, **more)
    status, head = await client.read_head()
    assert status.endswith(b"200 OK")
    return client, head[b"x-message-id"].decode()


async def answer(client: RawClient) -> tuple[int, dict[bytes, bytes], dict[str, Any]]:
    status, head = await client.read_head()
    body = await client.reader.readexactly(int(head[b"content-length"]))
    return int(status.split()[1]), head, json.loads(body)


async def whole(server: TestServer, tenant: Tenant, sim: str | None, **more: Any) -> list[bytes]:
    """Return the chunks of a stream that comes to its end."""
    client, _ = await begin(server, tenant, sim, **more)
    return await client.read_chunks()


async def broken(client: RawClient) -> tuple[list[bytes], type[Exception]]:
    """Return the chunks of a stream until it breaks, and how."""
    chunks: list[bytes] = []
    try:
        while chunk := await client.read_chunk():
            chunks.append(chunk)
    except (ConnectionError, asyncio.IncompleteReadError, ValueError) as exc:
        # What ends where a chunk's length is expected is a ValueError.
        return chunks, type(exc)
    raise AssertionError("the stream has come to its end")


async def rest(server: TestServer, tenant: Tenant, reply_id: str, offset: int) -> list[dict[str, Any]]:
    client = await come_back(server, tenant, reply_id, offset)
    await client.read_head()
    return events(b"".join(await client.read_chunks()))


# ---- Who may ask for it


async def test_question_with_sim_is_refused_where_it_is_not_allowed(
    server: TestServer, rows: Rows, tenant: Tenant
) -> None:
    for path in PATHS:
        for sim in ("fin@1", "", 7):
            status, head, body = await answer(await ask(server, tenant, sim, path=path))
            assert (status, body["error"]) == (400, "Bad sim")
            assert body["message"] == "sim is given, expected none: SIM_FAULTS is not set."
            assert b"x-sim-faults" not in head
    assert rows.messages(tenant.org_id) == []


@pytest.mark.parametrize("allowed", [False, True])
async def test_sim_in_a_url_is_never_ignored(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, allowed: bool
) -> None:
    client = await aiohttp_client(await start_server(sim_faults=allowed))
    reply_id = "00000000-0000-0000-0000-00000000000a"
    for method, path, more in (
        ("post", "/chat", {}),
        ("post", "/chat/stream", {}),
        ("post", "/chat/stream/ticket", {}),
        ("get", f"/chat/stream/{reply_id}", {}),
        ("get", "/chat/stream", {"ticket": "x"}),
        *([] if allowed else [("get", "/chat/stream", tenant.query | {"message": "Hi"})]),
    ):
        body = {"json": {"message": "Hi"}} if method == "post" else {}
        url = path + "?sim=utf8"
        async with client.request(method, url, params=more, headers=tenant.headers, **body) as response:
            assert response.status == 400, (path, await response.text())
            assert (await response.json())["error"] == "Bad sim"
    assert rows.messages(tenant.org_id) == []


async def test_wrong_knob_is_refused_with_what_is_expected(rig: TestServer, rows: Rows, tenant: Tenant) -> None:
    for sim, message in (
        (7, "sim is not a string, expected one like 'ttft=2s fin@30'."),
        (["utf8"], "sim is not a string, expected one like 'ttft=2s fin@30'."),
        ("utf8 chops=1", "sim has 'chops=1', expected some of: ttft=2s, gap=20ms, "),
        ("ttft=1e9s", "sim has 'ttft=1e9s', expected some of: ttft=2s, gap=20ms, "),
        ("chop=0", "sim has 'chop=0', expected in its place a number from 1 to 65536."),
        ("x" * 501, "sim has 501 characters, expected at most 500."),
    ):
        for path in PATHS:
            status, head, body = await answer(await ask(rig, tenant, sim, path=path))
            assert (status, body["error"]) == (400, "Bad sim")
            assert body["message"].startswith(message)
            assert head[b"x-sim-faults"] == b"1"
    assert rows.messages(tenant.org_id) == []


async def test_stream_of_a_model_of_ones_own_is_broken_but_the_model_hears_of_nothing(
    start_server: StartServer, tenant: Tenant
) -> None:
    server = await start_server(model=says("Hello"), sim_faults=True)
    status, _, body = await answer(await ask(server, tenant, "crlf words=3"))
    assert (status, body["error"]) == (400, "Bad sim")
    assert body["message"] == "sim has 'words', expected none of the model: it is not the simulated one."
    assert (await whole(server, tenant, "crlf"))[0] == b'data: {"token":"Hello","done":false}\r\n\r\n'


async def test_model_whose_times_are_noted_hears_of_its_knobs(start_server: StartServer, tenant: Tenant) -> None:
    server = await start_server(sim_faults=True, metrics_port=0)
    chunks = await whole(server, tenant, "words=3 crlf")
    assert len(json.loads(chunks[-1][6:])["fullText"].split()) == 3


async def test_question_that_names_no_knob_is_a_question_as_any_other(
    rig: TestServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaultyStream, "__init__", lambda *_: pytest.fail("the stream is not to break"))
    plain, _ = await ask_plainly(rig, tenant)
    body = b"".join(await plain.read_chunks())
    assert body.startswith(b"".join(TOKENS))
    for sim in (None, "", "  "):
        assert b"".join(await whole(rig, tenant, sim)).startswith(b"".join(TOKENS))


async def test_what_happens_to_streams_is_refused_without_one(rig: TestServer, rows: Rows, tenant: Tenant) -> None:
    for name in WIRE:
        sim = f"words=3 {FORMS[name].shown}"
        status, _, body = await answer(await ask(rig, tenant, sim, path="/chat"))
        assert (status, body["message"]) == (400, f"sim has {name!r}, expected with a stream.")
    assert rows.messages(tenant.org_id) == []


async def test_page_of_another_origin_is_told_that_sim_is_allowed(rig: TestServer, aiohttp_client: Any) -> None:
    client = await aiohttp_client(rig)
    async with client.get("/health", headers={"Origin": "http://localhost:5173"}) as response:
        assert response.headers["x-sim-faults"] == "1"
        assert "x-sim-faults" in ", ".join(response.headers.getall("Access-Control-Expose-Headers"))


# ---- The model


async def test_whole_reply_has_the_words_that_were_asked_for(rig: TestServer, rows: Rows, tenant: Tenant) -> None:
    status, _, body = await answer(await ask(rig, tenant, "words=500 text=markdown", path="/chat"))
    assert (status, len(body["reply"].split())) == (200, 500)
    assert rows.messages(tenant.org_id)[1] == ("assistant", body["reply"], "complete")


async def test_first_word_and_stall_come_when_they_are_asked_for(rig: TestServer, tenant: Tenant) -> None:
    began_s = time.monotonic()
    client, _ = await begin(rig, tenant, "ttft=0.2s stall@2=1s")
    assert await client.read_chunk() == TOKENS[0]
    first_s = time.monotonic() - began_s
    assert await client.read_chunk() == b"".join(TOKENS[1:3])
    assert await client.read_chunk() == b"".join(TOKENS[3:5])
    third_s = time.monotonic() - began_s
    assert 0.19 < first_s < 1.19 < third_s < 6


async def test_failure_after_some_words_is_that_of_a_model(rig: TestServer, rows: Rows, tenant: Tenant) -> None:
    client, reply_id = await begin(rig, tenant, "fail@3")
    *said, last = events(b"".join(await client.read_chunks()))
    assert spoken(said) == text_of(TOKENS[:5])
    assert last == {"error": "Stream failed", "message": "The model failed; what it said so far is saved."}
    assert stored(rows, reply_id) == ("failed", text_of(TOKENS[:5]))


async def test_endless_reply_ends_by_stop(rig: TestServer, rows: Rows, tenant: Tenant) -> None:
    client, reply_id = await begin(rig, tenant, "endless gap=1ms")
    seen = spoken(events(await client.read_chunk()))
    status, _, body = await answer(await stop(rig, tenant, reply_id))
    assert (status, body["status"]) == (200, "stopped")
    *said, last = events(b"".join(await client.read_chunks()))
    assert last["error"] == "Stopped"
    assert stored(rows, reply_id) == ("stopped", seen + spoken(said))


async def test_endless_reply_ends_at_the_limit(start_server: StartServer, rows: Rows, tenant: Tenant) -> None:
    server = await start_server(sim_faults=True, reply_limit_chars=5000)
    client, reply_id = await begin(server, tenant, "endless gap=0ms")
    assert events(b"".join(await client.read_chunks()))[-1]["error"] == "Stream failed"
    status, text = stored(rows, reply_id)
    assert (status, 4900 < len(text) <= 5000) == ("failed", True)


# ---- A status in place of a stream


@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_question_is_refused_as_often_as_was_asked_for_and_then_answered(
    rig: TestServer, rows: Rows, tenant: Tenant, path: str
) -> None:
    for _ in range(2):
        status, head, body = await answer(await ask(rig, tenant, "status=429:2s*2", path=path))
        assert (status, head[b"retry-after"]) == (429, b"2")
        assert (body["error"], body["message"]) == ("Simulated", "The simulator was to answer with 429.")
        assert rows.messages(tenant.org_id) == []
    for expected in (200, 429, 429, 200):
        # Once it was answered, it is a new question.
        status_line, _ = await (await ask(rig, tenant, "status=429:2s*2", path=path)).read_head()
        assert int(status_line.split()[1]) == expected


async def test_question_is_refused_always_where_nothing_else_is_said(
    rig: TestServer, rows: Rows, tenant: Tenant
) -> None:
    for code in (401, 402, 500, 503, 529) * 3:
        status, head, _ = await answer(await ask(rig, tenant, f"status={code}"))
        assert (status, b"retry-after" in head) == (code, False)
    assert rows.messages(tenant.org_id) == []


async def test_refusals_are_counted_for_each_user_question_and_key(
    rig: TestServer, rows: Rows, tenant: Tenant
) -> None:
    colleague = rows.tenant(tenant.org_id)
    for who, more in (
        (tenant, {}),
        (colleague, {}),
        (tenant, {"key": "a"}),
        (tenant, {"key": "b"}),
        (tenant, {"message": "Ho"}),
    ):
        assert (await answer(await ask(rig, who, "status=503*1", **more)))[0] == 503
    for who, more in ((tenant, {}), (colleague, {}), (tenant, {"key": "a"}), (tenant, {"message": "Ho"})):
        assert (await whole(rig, who, "status=503*1", **more))[-1]


async def test_key_that_was_refused_and_answered_leads_to_its_reply(
    rig: TestServer, rows: Rows, tenant: Tenant
) -> None:
    assert (await answer(await ask(rig, tenant, "status=503*1", key="k")))[0] == 503
    bodies = {b"".join(await whole(rig, tenant, "status=503*1", key="k")) for _ in range(3)}
    assert len(bodies) == 1
    assert len(rows.messages(tenant.org_id)) == 2


async def test_refused_question_counts_as_one_that_was_asked(start_server: StartServer, tenant: Tenant) -> None:
    server = await start_server(sim_faults=True, user_turns_per_minute=2)
    seen = [(await answer(await ask(server, tenant, "status=503")))[2]["error"] for _ in range(3)]
    assert seen == ["Simulated", "Simulated", "Too many turns"]


async def test_refusals_are_forgotten_after_a_while_and_beyond_a_thousand(
    rig: TestServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.sim.KEPT", 2)
    for key in ("a", "b", "c", "a"):
        # Of the first nothing is known any more.
        assert (await answer(await ask(rig, tenant, "status=503*1", key=key)))[0] == 503
    monkeypatch.setattr("app.api.sim.REFUSED_S", 0)
    assert (await answer(await ask(rig, tenant, "status=503*1", key="a")))[0] == 503


# ---- The wire


@pytest.mark.parametrize("after", [0, 1, 4])
async def test_fin_ends_the_connection_and_not_the_body(
    rig: TestServer, rows: Rows, tenant: Tenant, after: int
) -> None:
    client, reply_id = await begin(rig, tenant, f"fin@{after}")
    assert await broken(client) == (TOKENS[:after], ValueError)
    seen = text_of(TOKENS[:after])
    more = await rest(rig, tenant, reply_id, len(seen))
    assert seen + spoken(more) == more[-1]["fullText"] == TEXT
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_rst_resets_the_connection(rig: TestServer, rows: Rows, tenant: Tenant) -> None:
    client, reply_id = await begin(rig, tenant, "rst@4 gap=5ms")
    assert await broken(client) == (TOKENS[:4], ConnectionResetError)
    seen = text_of(TOKENS[:4])
    assert spoken(await rest(rig, tenant, reply_id, len(seen))) == TEXT[len(seen) :]
    assert stored(rows, reply_id) == ("complete", TEXT)


async def test_break_comes_as_often_as_is_said_and_is_counted_for_each_stream(
    rig: TestServer, tenant: Tenant
) -> None:
    client, reply_id = await begin(rig, tenant, "fin@4*3 gap=2ms")
    chunks, _ = await broken(client)
    seen = text_of(chunks)
    for _ in range(2):
        client = await come_back(rig, tenant, reply_id, len(seen))
        await client.read_head()
        chunks, how = await broken(client)
        assert (len(chunks), how) == (4, ValueError)
        seen += text_of(chunks)
    assert seen + spoken(await rest(rig, tenant, reply_id, len(seen))) == TEXT


async def test_other_reader_of_the_reply_is_not_broken_off(rig: TestServer, tenant: Tenant) -> None:
    client, reply_id = await begin(rig, tenant, "fin@6 ttft=0.1s gap=5ms")
    other = await come_back(rig, tenant, reply_id, 0)
    await other.read_head()
    ends = await asyncio.gather(client.read_chunks(), other.read_chunks(), return_exceptions=True)
    # It happens to whoever comes so far first.
    [chunks] = [end for end in ends if isinstance(end, list)]
    assert spoken(events(b"".join(chunks))) == TEXT


async def test_hanging_stream_is_open_and_silent_until_its_client_leaves(
    start_server: StartServer, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(sim_faults=True, sim_seed="1", heartbeat_s=0.1, write_timeout_s=0.2)
    client, reply_id = await begin(server, tenant, "hang@4")
    assert [await client.read_chunk() for _ in range(4)] == TOKENS[:4]
    # Five heartbeats, and more than a write may take.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), 0.5)
    seen = text_of(TOKENS[:4])
    assert spoken(await rest(server, tenant, reply_id, len(seen))) == TEXT[len(seen) :]
    assert len(logged(caplog, "Client disconnected during stream")) == 0
    client.reset()
    await eventually(lambda: logged(caplog, "Client disconnected during stream"))


async def test_hanging_stream_is_reset_in_the_end(
    rig: TestServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.replies.faults.HANG_S", 0.2)
    began_s = time.monotonic()
    client, _ = await begin(rig, tenant, "hang@0")
    assert (await broken(client))[0] == []
    assert time.monotonic() - began_s > 0.19


def test_stop_waits_for_no_silent_stream(start: Processes, postgres_url: str, rows: Rows, tenant: Tenant) -> None:
    process = start(DATABASE_URL=postgres_url, SIM_FAULTS="1", SHUTDOWN_GRACE_S="0.2")
    host, _, port = process.listening().removeprefix("http://").partition(":")

    async def run() -> None:
        clients = [RawClient(*await asyncio.open_connection(host, int(port))) for _ in range(2)]
        for client, sim in zip(clients, ("hang@2", "burst=60s endless"), strict=True):
            client.send(post("/chat/stream", json.dumps({"message": "Hi", "sim": sim}).encode(), tenant))
            await client.read_head()
        await clients[0].read_chunk()
        process.popen.send_signal(signal.SIGTERM)
        await asyncio.gather(*(broken(client) for client in clients))
        for client in clients:
            await client.close()

    began_s = time.monotonic()
    asyncio.run(run())
    assert process.end()[0] == 0
    assert time.monotonic() - began_s < 8
    assert [line for line in process.lines if line["level"] == "error"] == []
    assert all(status in ("complete", "interrupted") for _, _, status in rows.messages(tenant.org_id))


async def test_cut_stream_lacks_its_last_event_alone(rig: TestServer, rows: Rows, tenant: Tenant) -> None:
    client, reply_id = await begin(rig, tenant, "cut@done*2")
    assert await client.read_chunks() == TOKENS
    assert stored(rows, reply_id) == ("complete", TEXT)
    # The id to come back with, and no last event again.
    assert await rest(rig, tenant, reply_id, len(TEXT)) == [{"token": "", "done": False}]
    assert (await rest(rig, tenant, reply_id, len(TEXT)))[-1]["fullText"] == TEXT


async def test_duplicate_comes_once_with_the_same_bytes(rig: TestServer, tenant: Tenant) -> None:
    chunks = await whole(rig, tenant, "dup@9")
    assert chunks[:-1] == [*TOKENS[:8], TOKENS[8] * 2, *TOKENS[9:]]
    assert events(chunks[-1])[0]["chars"] == len(TEXT)


async def test_duplicate_has_the_id_of_its_event(rig: TestServer, aiohttp_client: Any, tenant: Tenant) -> None:
    client = await aiohttp_client(rig)
    async with client.get("/chat/stream", params=tenant.query | {"message": "Hi", "sim": "dup@2"}) as response:
        body = await response.read()
    reply_id = response.headers["x-message-id"].encode()
    second = b"id: %s:5\n" % reply_id + TOKENS[0]
    assert body.startswith(b'id: %s:0\ndata: {"token":"","done":false}\n\n' % reply_id + second * 2)


@pytest.mark.parametrize("size", [1, 7])
async def test_chopped_stream_has_so_many_bytes_a_chunk(rig: TestServer, tenant: Tenant, size: int) -> None:
    client, _ = await begin(rig, tenant, f"chop={size}")
    chunks = await client.read_chunks()
    assert b"".join(chunks).startswith(b"".join(TOKENS))
    assert {len(chunk) for chunk in chunks} <= set(range(1, size + 1))
    assert len(chunks) >= len(b"".join(TOKENS)) / size


async def test_packets_that_are_small_are_limited(
    rig: TestServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.replies.faults.SMALL_PACKETS", 100)
    chunks = await whole(rig, tenant, "chop=1")
    assert {len(chunk) for chunk in chunks[:100]} == {1}
    assert b"".join(chunks).startswith(b"".join(TOKENS))
    assert len(chunks) < 300


async def test_raw_utf8_is_the_same_events_and_chopped_it_is_cut_within_characters(
    rig: TestServer, tenant: Tenant
) -> None:
    chunks = await whole(rig, tenant, "utf8 text=unicode")
    raw = b"".join(chunks)
    assert "灯塔的看守人每晚朗读天气。".encode() in raw
    assert "\u2028".encode() in raw
    assert [json.loads(chunk[6:]) for chunk in chunks[:-1]] == events(b"".join(UNICODE))
    assert json.loads(chunks[-1][6:])["fullText"] == TEXTS["unicode"]
    assert b"\\u" not in raw
    chopped = await whole(rig, tenant, "utf8 chop=1 text=unicode")
    assert "灯".encode()[:1] in chopped
    assert b"".join(chopped).startswith(b"".join(chunks[:-1]))


async def test_line_ends_of_another_kind(rig: TestServer, tenant: Tenant) -> None:
    chunks = await whole(rig, tenant, "crlf")
    assert chunks[:-1] == [token.replace(b"\n", b"\r\n") for token in TOKENS]
    assert chunks[-1].endswith(b"}\r\n\r\n")


async def test_ping_has_these_line_ends_too(start_server: StartServer, tenant: Tenant) -> None:
    server = await start_server(sim_faults=True, heartbeat_s=0.1)
    client, _ = await begin(server, tenant, "crlf bom ttft=10s")
    assert [await client.read_chunk() for _ in range(2)] == [b"\xef\xbb\xbf: ping\r\n", b": ping\r\n"]


async def test_byte_order_mark_is_the_first_of_each_stream(rig: TestServer, tenant: Tenant) -> None:
    client, reply_id = await begin(rig, tenant, "bom")
    chunks = await client.read_chunks()
    assert chunks[:-1] == [b"\xef\xbb\xbf" + TOKENS[0], *TOKENS[1:]]
    again = await come_back(rig, tenant, reply_id, len(TEXT))
    await again.read_head()
    assert (await again.read_chunk()).startswith(b"\xef\xbb\xbfid: ")


async def test_noise_is_no_event(rig: TestServer, tenant: Tenant) -> None:
    chunks = await whole(rig, tenant, "noise")
    assert chunks[:-1] == [b": noise\nnoise: noise\nnoise\n\nid\n\n\n" + token for token in TOKENS]


async def test_noise_repeats_the_id_of_the_event_before(rig: TestServer, tenant: Tenant) -> None:
    _, reply_id = await begin(rig, tenant, "noise fin@0")
    client = await come_back(rig, tenant, reply_id, 0)
    await client.read_head()
    noise, event_id = b": noise\nnoise: noise\nnoise\n\n", f"id: {reply_id}:".encode()
    assert [await client.read_chunk() for _ in range(3)] == [
        noise + b"\n" + event_id + b'0\ndata: {"token":"","done":false}\n\n',
        noise + event_id + b"0\n\n\n" + event_id + b"5\n" + TOKENS[0],
        noise + event_id + b"5\n\n\n" + event_id + b"6\n" + TOKENS[1],
    ]


@pytest.mark.parametrize(("given", "size"), [("64k", 65_536), ("1024k", 1_048_576), ("100", 100)])
async def test_large_event_is_the_first_and_the_same_but_for_its_size(
    rig: TestServer, tenant: Tenant, given: str, size: int
) -> None:
    chunks = await whole(rig, tenant, f"big={given}")
    assert len(chunks[0]) == size
    assert chunks[0].endswith(b" \n\n")
    assert [json.loads(chunks[0][6:])] == events(TOKENS[0])
    assert chunks[1:-1] == TOKENS[1:]


async def test_burst_holds_what_is_said_meanwhile_together(rig: TestServer, tenant: Tenant) -> None:
    began_s = time.monotonic()
    client, _ = await begin(rig, tenant, "burst=1s gap=5ms words=40")
    text = spoken(events(await client.read_chunk()))
    first_s = time.monotonic() - began_s
    # All came at once that was said by then; one word a chunk, read without a wait.
    while text.count(" ") < 30:
        text += spoken(events(await asyncio.wait_for(client.read_chunk(), 0.8)))
    assert 0.99 < first_s < 6


async def test_faults_go_together(rig: TestServer, tenant: Tenant) -> None:
    client, reply_id = await begin(rig, tenant, "utf8 crlf chop=3 bom noise big=1k dup@2 fin@5 text=unicode")
    chunks, _ = await broken(client)
    body = b"".join(chunks).decode().removeprefix("\ufeff").replace("\r\n", "\n")
    said = [json.loads(line[6:])["token"] for line in body.split("\n") if line.startswith("data: ")]
    assert [*said[:1], *said[2:]] == [event["token"] for event in events(b"".join(UNICODE[:5]))]
    assert said[1] == said[2]
    client = await come_back(rig, tenant, reply_id, 0)
    await client.read_head()
    assert (await client.read_chunk()) == b"\xef\xbb\xbf"
    assert json.dumps(TEXTS["unicode"], ensure_ascii=False).encode() in b"".join(
        await client.read_chunks()
    ).replace(b"\r\n", b"\n")


async def test_client_that_leaves_a_slow_stream_is_gone_at_once(
    rig: TestServer, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    client, reply_id = await begin(rig, tenant, "burst=60s gap=10ms words=1000")
    client.reset()
    began_s = time.monotonic()
    await eventually(lambda: logged(caplog, "Client disconnected during stream"))
    assert time.monotonic() - began_s < 5
    assert not rig.app[TURNS].find(reply_id).reply.readers


async def test_reader_at_another_server_sees_no_faults(
    rig: TestServer, start_server: StartServer, tenant: Tenant
) -> None:
    door = await hears(await start_server(sim_faults=True))
    client, reply_id = await begin(rig, tenant, "fin@4*9 crlf gap=5ms words=100")
    seen = text_of([chunk.replace(b"\r\n", b"\n") for chunk in (await broken(client))[0]])
    more = await rest(door, tenant, reply_id, len(seen))
    assert seen + spoken(more) == more[-1]["fullText"]


async def test_replies_are_kept_in_mind_to_a_number(
    rig: TestServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.sim.KEPT", 1)
    _, first_id = await begin(rig, tenant, "cut@done*9")
    _, second_id = await begin(rig, tenant, "cut@done*9")
    assert list(rig.app[SIMULATOR]._faults) == [second_id]
    assert (await rest(rig, tenant, first_id, 0))[-1]["fullText"] == TEXT


# ---- Keys, tickets and EventSource


async def test_key_of_the_same_question_with_the_same_knobs_is_the_same_reply(
    rig: TestServer, tenant: Tenant
) -> None:
    client, reply_id = await begin(rig, tenant, "fin@2 gap=10ms", key="k")
    await broken(client)
    again, again_id = await begin(rig, tenant, " fin@2  gap=10ms", key="k")
    assert again_id == reply_id
    assert spoken(events(b"".join(await again.read_chunks()))) == TEXT
    status, _, body = await answer(await ask(rig, tenant, "fin@3 gap=10ms", key="k"))
    assert (status, body["error"], body["message_id"]) == (409, "Key reused", reply_id)
    status, _, body = await answer(await ask(rig, tenant, None, key="k"))
    assert (status, body["error"]) == (409, "Key reused")


async def ticket(client: Any, tenant: Tenant, sim: str) -> str:
    async with client.post(
        "/chat/stream/ticket", json={"message": "Hi", "sim": sim}, headers=tenant.headers
    ) as response:
        assert response.status == 200
        return str((await response.json())["ticket"])


async def test_ticket_asks_with_its_knobs_at_any_server_that_allows_them(
    rig: TestServer, start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(rig)
    given = await ticket(client, tenant, "crlf words=3")
    other = await aiohttp_client(await start_server(sim_faults=True))
    async with other.get("/chat/stream", params={"ticket": given}) as response:
        body = await response.read()
    assert b"\r\n\r\n" in body
    assert len(rows.messages(tenant.org_id)[1][1].split()) == 3
    # Shown again it is the same turn.
    async with client.get("/chat/stream", params={"ticket": given}) as response:
        assert events(await response.read())[-1]["fullText"] == rows.messages(tenant.org_id)[1][1]
    not_allowed = await aiohttp_client(await start_server())
    async with not_allowed.get("/chat/stream", params={"ticket": given}) as response:
        assert (response.status, (await response.json())["error"]) == (400, "Bad sim")


async def test_ticket_whose_knobs_were_changed_is_none(
    rig: TestServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(rig)
    given = await ticket(client, tenant, "words=3")
    ticket_alone, _, knobs = given.partition(".")
    assert base64.urlsafe_b64decode(knobs + "==") == b"words=3"
    other = base64.urlsafe_b64encode(b"words=4").decode().rstrip("=")
    for changed in (
        ticket_alone,
        f"{ticket_alone}.{other}",
        f"{given}A",
        f"{given}.",
        f"{given}.{other}",
        f"{ticket_alone}.!",
    ):
        async with client.get("/chat/stream", params={"ticket": changed}) as response:
            assert (response.status, (await response.json())["error"]) == (401, "Bad ticket")
    assert rows.messages(tenant.org_id) == []


async def test_event_source_that_is_broken_off_comes_back_with_the_same_url(
    rig: TestServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(rig)
    query = tenant.query | {"message": "Hi", "sim": "cut@done"}
    async with client.get("/chat/stream", params=query) as response:
        said = await response.read()
    last_id = said.rsplit(b"id: ", 1)[1].split(b"\n")[0].decode()
    async with client.get("/chat/stream", params=query, headers={"Last-Event-ID": last_id}) as response:
        assert events(await response.read())[-1]["fullText"] == TEXT
    assert len(rows.messages(tenant.org_id)) == 2


async def test_log_says_what_happened_on_purpose(
    rig: TestServer, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = await begin(rig, tenant, "fail@3 cut@done dup@1 fin@9")
    await client.read_chunks()
    assert [record.__dict__["fault"] for record in logged(caplog, "Stream broken on purpose")] == ["dup", "cut"]
    [failed] = logged(caplog, "Reply failed")
    assert failed.__dict__["cause"] == "the simulator was to fail after 3 words"
