"""Clients that go away, in every way they do."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from functools import partial
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, logged, post, says

from app import models as simulated
from app.replies.turns import TURNS
from app.server import MODEL
from app.storage.db import DATABASE


@pytest.fixture
def start_server(start_server: StartServer) -> StartServer:
    """Start servers whose turns end with their readers; that they can be resumed, test_resume.py shows."""
    return partial(start_server, resume_window_s=0)


async def assert_nothing_leaked(server: TestServer, caplog: pytest.LogCaptureFixture) -> None:
    app = server.app
    assert app is not None
    # A request whose client has left does not wait for the save.
    await eventually(lambda: app[TURNS].running.total() == 0)
    await eventually(lambda: app[DATABASE].connections_in_use == 0)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def start_stream(server: TestServer, tenant: Tenant, message: bytes = b"Hi") -> RawClient:
    client = await RawClient.connect(server)
    client.send(post("/chat/stream", b'{"message": "' + message + b'"}', tenant))
    await client.read_head()
    return client


def hang_up(client: RawClient, how: str) -> None:
    if how == "rst":
        client.reset()
    elif how == "half-close":
        client.writer.write_eof()
    else:
        client.writer.close()


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
async def test_disconnect_after_third_token_saves_what_was_said_and_asks_for_no_more(
    start_server: StartServer, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    model = Gated()
    server = await start_server(model=model, heartbeat_s=60)
    client = await start_stream(server, tenant)
    for _ in range(3):
        model.go()
        await client.read_chunk()
    hang_up(client, how)
    # Found in a silence, without another token: long before the heartbeat is due.
    async with asyncio.timeout(5):
        await model.closed.wait()
    await eventually(lambda: rows.messages(tenant.org_id)[1][2] != "streaming")

    assert model.said == 3
    assert rows.messages(tenant.org_id)[1] == ("assistant", "word word word ", "disconnected")
    [record] = logged(caplog, "Client disconnected during stream")
    assert (record.levelname, record.piecesStreamed) == ("WARNING", 3)
    [request] = await eventually(lambda: logged(caplog, "Request completed"))
    assert request.outcome == "disconnected"
    await assert_nothing_leaked(server, caplog)


async def test_disconnect_logs_how_many_tokens_there_would_have_been(
    start_server: StartServer, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(sim_delay_ms=(5.0, 5.0))
    client = await start_stream(server, tenant, b"tell a story")
    await client.read_chunk()
    client.writer.close()
    [record] = await eventually(lambda: logged(caplog, "Client disconnected during stream"))
    assert record.totalPieces >= 150
    assert 0 < record.piecesStreamed < 150


async def test_100_disconnects_at_random_tokens_each_save_an_exact_prefix(
    start_server: StartServer, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    # So slowly that none is at its end before its client has read so much.
    server = await start_server(sim_delay_ms=(10.0, 20.0), sim_seed="7")
    rng = random.Random(7)
    app = server.app
    assert app is not None
    whole = {}
    for message in (b"tell a story", b"tell a story about a fox"):
        said = simulated.Message("user", message.decode())
        reply = app[MODEL](simulated.Conversation([said], stream=False))
        whole[message] = "".join([token async for token in reply])

    async def cut() -> tuple[bytes, str, str]:
        message = rng.choice(list(whole))
        tokens, how = rng.randrange(1, 60), rng.choice(["fin", "rst"])
        client = await RawClient.connect(server)
        client.send(post("/chat/stream", b'{"message": "' + message + b'"}', tenant))
        _, headers = await client.read_head()
        seen = "".join([event["token"] for _ in range(tokens) for event in events(await client.read_chunk())])
        hang_up(client, how)
        return message, headers[b"x-message-id"].decode(), seen

    cuts = await asyncio.gather(*(cut() for _ in range(100)))
    await eventually(
        lambda: rows("select 1 from messages where org_id = %s and status = 'streaming'", tenant.org_id) == []
    )

    for message, message_id, seen in cuts:
        [(content, status)] = rows("select content, status from messages where id = %s", message_id)
        assert status == "disconnected"
        assert whole[message].startswith(content)
        assert content.startswith(seen)
    await eventually(lambda: len(logged(caplog, "Request completed")) == 100)
    assert len(logged(caplog, "Client disconnected during stream")) == 100
    await assert_nothing_leaked(server, caplog)


async def test_client_that_stops_reading_is_dropped_after_the_write_timeout(
    start_server: StartServer, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    async def torrent(conversation: Any) -> Any:
        # More than the buffers of a connection hold.
        for _ in range(200):
            yield "x" * 65_536
        await asyncio.Event().wait()

    server = await start_server(model=torrent, write_timeout_s=0.3, reply_limit_chars=200 * 65_536)
    client = await start_stream(server, tenant)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await eventually(lambda: rows.messages(tenant.org_id)[1][2] != "streaming")
    content, status = rows.messages(tenant.org_id)[1][1:]
    # It held up nobody.
    assert (status, len(content)) == ("disconnected", 200 * 65_536)
    await eventually(lambda: logged(caplog, "Request completed"))
    await assert_nothing_leaked(server, caplog)
    client.writer.transport.abort()


async def test_client_that_reads_slowly_is_not_dropped(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    async def flood(conversation: Any) -> Any:
        for _ in range(200):
            yield "x" * 65_536

    server = await start_server(model=flood, write_timeout_s=0.3, reply_limit_chars=200 * 65_536)
    client = await start_stream(server, tenant)
    # Less in one read than the kernel holds: the server waits, but never for as long as its timeout.
    total = 0
    while chunk := await client.read_chunk():
        total += len(chunk)
        await asyncio.sleep(0.002)
    assert total > 200 * 65_536
    assert rows.messages(tenant.org_id)[1][2] == "complete"


async def test_disconnect_while_the_turn_is_opened_saves_an_empty_reply(
    start_server: StartServer, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(model=says("word "))
    with rows.locked("chats"):
        client = await RawClient.connect(server)
        client.send(post("/chat/stream", b'{"message": "Hi"}', tenant))
        await eventually(lambda: rows.waiting() == 1)
        client.reset()
    [request] = await eventually(lambda: logged(caplog, "Request completed"))
    assert request.outcome == "disconnected"
    await eventually(lambda: rows.messages(tenant.org_id)[1] == ("assistant", "", "disconnected"))
    await assert_nothing_leaked(server, caplog)


async def test_client_that_leaves_post_chat_ends_the_model_too(
    start_server: StartServer, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    model = Gated()
    server = await start_server(model=model)
    client = await RawClient.connect(server)
    client.send(post("/chat", b'{"message": "Hi"}', tenant))
    await model.asked.wait()
    model.go()
    await eventually(lambda: model.said == 1)
    client.reset()
    await asyncio.wait_for(model.closed.wait(), 5)
    await eventually(lambda: rows.messages(tenant.org_id)[1] == ("assistant", "word ", "disconnected"))
    await eventually(lambda: logged(caplog, "Request completed"))
    await assert_nothing_leaked(server, caplog)


async def test_disconnect_in_the_middle_of_the_body_is_no_error(
    start_server: StartServer, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server()
    client = await RawClient.connect(server)
    client.send(post("/chat/stream", b'{"message": "Hi"}', tenant)[:-3])
    await client.writer.drain()
    client.writer.close()
    [request] = await eventually(lambda: logged(caplog, "Request completed"))
    assert request.status == 400
    assert rows.messages(tenant.org_id) == []
    await assert_nothing_leaked(server, caplog)


async def test_client_that_leaves_before_it_is_asked_for_its_body_leaves_no_trace(
    start_server: StartServer, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(model=says("Hello"))
    head = post("/chat", b"{}", tenant, headers="Expect: 100-continue\r\n").removesuffix(b"{}")
    for _ in range(3):
        # Gone before the server has even accepted it: nothing is awaited here.
        with socket.create_connection((server.host, server.port)) as client:
            client.sendall(head)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await eventually(lambda: len(logged(caplog, "Request completed")) == 3)
    await assert_nothing_leaked(server, caplog)
