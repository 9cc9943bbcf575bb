"""The server with a real model: what it says is stored, and whoever is done with it lets it go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from house import ask, stop
from serving import StartServer
from support import Rows, Tenant, events, eventually, logged
from upstream import KEY, QUESTION, STREAM, STREAMS, Connection, Upstream, at_once, upstream

from app.server import drain

WIRES = ["openai", "anthropic"]


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def half(connection: Connection) -> None:
    """Say a word, and then no more."""
    await connection.read_request()
    await connection.send(STREAM + STREAMS["openai"]("One ", finish=None, done=False))
    await connection.watch()


@pytest.fixture
async def provider() -> AsyncIterator[Upstream]:
    async with upstream(half) as provider:
        yield provider


async def test_reply_is_streamed_and_stored(
    start_server: StartServer, tenant: Tenant, rows: Rows, wire: str
) -> None:
    async with upstream(STREAM + STREAMS[wire]("One ", "two")) as provider:
        server = await start_server(model=f"{wire}:model-1", model_url=provider.url, model_key=KEY)
        client, _ = await ask(server, tenant)
        read = events(b"".join(await client.read_chunks()))
    assert [event["token"] for event in read] == ["One", " ", "two", ""]
    assert read[-1]["fullText"] == "One two"
    assert rows.messages(tenant.org_id)[1] == ("assistant", "One two", "complete")


async def test_failure_saves_the_text_and_tells_the_client_nothing_of_the_provider(
    start_server: StartServer, tenant: Tenant, rows: Rows, caplog: pytest.LogCaptureFixture, wire: str
) -> None:
    error = b'data: {"error": {"message": "invalid key ' + KEY.encode() + b" in: " + QUESTION.encode() + b'"}}\n\n'
    body = STREAMS[wire]("One ", **{"finish" if wire == "openai" else "stop": None}, done=False) + error
    async with upstream(STREAM + body) as provider:
        server = await start_server(model=f"{wire}:model-1", model_url=provider.url, model_key=KEY)
        client, _ = await ask(server, tenant, message=QUESTION)
        sent = b"".join(await client.read_chunks())
    assert events(sent)[-1]["error"] == "Stream failed"
    assert b"invalid" not in sent
    assert rows.messages(tenant.org_id)[1] == ("assistant", "One ", "failed")
    [record] = logged(caplog, "Reply failed")
    assert vars(record)["cause"].startswith("invalid…")
    assert KEY not in vars(record)["cause"]
    assert "Ophelia" not in caplog.text


@pytest.mark.parametrize("how", ["stop", "leaving", "SIGTERM"])
async def test_provider_is_let_go_within_100_ms(
    start_server: StartServer, tenant: Tenant, rows: Rows, provider: Upstream, how: str
) -> None:
    server = await start_server(
        model="openai:model-1", model_url=provider.url, resume_window_s=0, shutdown_grace_s=0
    )
    client, reply_id = await ask(server, tenant)
    await client.read_chunk()
    if how == "stop":
        await stop(server, tenant, reply_id)
    elif how == "SIGTERM":
        assert server.app is not None
        draining = asyncio.create_task(drain(server.app))
    else:
        client.reset()
        # Noticed within half a second; from then on it counts.
        await eventually(lambda: rows.messages(tenant.org_id)[1][2] == "disconnected")
    [connection] = provider.connections
    assert await at_once(connection.left.is_set)
    if how == "SIGTERM":
        await draining


async def test_provider_goes_on_where_replies_are_finished_unread(
    start_server: StartServer, tenant: Tenant, rows: Rows
) -> None:
    going = asyncio.Event()

    async def gated(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(STREAM + STREAMS["openai"]("One ", finish=None, done=False))
        await going.wait()
        await connection.send(STREAMS["openai"]("two"))

    async with upstream(gated) as provider:
        server = await start_server(model="openai:model-1", model_url=provider.url, unread="finish")
        client, _ = await ask(server, tenant)
        await client.read_chunk()
        client.reset()
        await eventually(lambda: rows.messages(tenant.org_id)[1][1] == "One ")
        going.set()
        await eventually(lambda: rows.messages(tenant.org_id)[1][1:] == ("One two", "complete"))
