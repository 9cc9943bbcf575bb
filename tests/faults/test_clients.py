"""Clients that people have, and the caches and proxies that they put before the server: with `make faults`.

Needs Varnish, nginx, Node and npm (Debian: apt-get install varnish nginx nodejs npm), and npm's registry.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import jwt
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import unused_port
from aiosseclient import aiosseclient
from httpx_sse import aconnect_sse
from ledger import FULL, LONG, NODE, SEED, Server, ledger
from support import Rows, Tenant, eventually, tool
from test_network import Nginx, running, words_of
from test_readme import snippet

pytestmark = [
    pytest.mark.skipif(
        not FULL, reason="LEFT OUT: other people's clients and caches, which `make faults` installs"
    ),
    pytest.mark.timeout(180),
]

JWT_SECRET = "a secret of no less than 32 characters"


@dataclass
class Before:
    """What stands before a server."""

    base: str


# ---- Caches


@asynccontextmanager
async def varnish(server: Server, folder: Path) -> AsyncIterator[Before]:
    """Varnish as it comes."""
    port = unused_port()
    address, work = f"127.0.0.1:{port}", folder / "varnish"
    # -j none: as root it would become another user, who may not read the folder.
    options = (
        "-j",
        "none",
        "-F",
        "-n",
        work,
        "-a",
        address,
        "-b",
        f"{server.host}:{server.port}",
        "-s",
        "malloc,16m",
    )
    async with running(tool("varnishd", "varnish"), *options, folder=folder):
        await listens(port)
        yield Before(f"http://{address}")


CACHE = """
    location / {
        proxy_pass http://127.0.0.1:3000;
        proxy_cache all;
        proxy_cache_valid 200 1m;
        add_header X-Cache-Status $upstream_cache_status always;
    }
"""


@asynccontextmanager
async def caching_nginx(server: Server, folder: Path) -> AsyncIterator[Before]:
    nginx = Nginx(folder / "nginx", [server], CACHE, more=f"proxy_cache_path {folder}/cache keys_zone=all:1m;")
    try:
        await eventually(nginx.is_listening)
        yield nginx
    finally:
        nginx.close()


async def listens(port: int) -> None:
    async def is_open() -> bool:
        with suppress(ConnectionError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            return True
        return False

    async with asyncio.timeout(20):
        while not await is_open():
            await asyncio.sleep(0.05)


def bearer(tenant: Tenant) -> dict[str, str]:
    claims = {"org_id": tenant.org_id, "sub": tenant.user_id, "exp": 2**32}
    return {"Authorization": f"Bearer {jwt.encode(claims, JWT_SECRET)}"}


@pytest.mark.parametrize("cache", [varnish, caching_nginx])
@pytest.mark.parametrize("tokens", [False, True], ids=["headers", "tokens"])
async def test_cache_gives_no_users_chats_to_another(
    serve: Callable[..., Server], own_rows: Rows, tmp_path: Path, cache: Any, tokens: bool
) -> None:
    server = serve(**({"JWT_SECRET": JWT_SECRET} if tokens else {}))
    one, two = own_rows.tenant(), own_rows.tenant()
    say_who = bearer if tokens else (lambda tenant: tenant.headers)
    async with cache(server, tmp_path) as before, ClientSession(before.base) as session:
        async with session.post("/chat", json={"message": "Secret"}, headers=say_who(one)) as response:
            assert response.status == 200
            chat_id = (await response.json())["chat_id"]
        for path, others in (("/chats", 200), (f"/chats/{chat_id}/messages", 404)):
            for _ in range(2):
                for headers, status, is_there in (
                    (say_who(one), 200, True),
                    (say_who(two), others, False),
                    ({}, 401, False),
                ):
                    async with session.get(path, headers=headers) as response:
                        assert response.status == status
                        assert ("Secret" in await response.text()) is is_there
        # Neither does it keep what must be sent anew to be believed.
        async with session.get("/chats", headers=say_who(one)) as response:
            assert response.headers.get("X-Cache-Status", "MISS") == "MISS"
            assert response.headers.get("Age", "0") == "0"


# ---- Proxies that compress


async def test_words_come_through_express_and_its_compression_in_their_time(
    node: str, serve: Callable[..., Server], own_rows: Rows, say: Callable[..., None]
) -> None:
    server = serve(SIM_DELAY_MS="20-20")
    async with running(node, NODE / "proxy.js", server.base) as proxy:
        assert proxy.stdout
        before = Before(f"http://127.0.0.1:{int(await proxy.stdout.readline())}")
        async with ledger([before], own_rows.tenant(), SEED) as clients:
            direct, proxied = ([clients.entry(LONG) for _ in range(5)] for _ in range(2))
            for entry in direct + proxied:
                entry.words_at_s = []
            await asyncio.gather(
                *(clients.ask(entry, base=server.base) for entry in direct),
                *(clients.ask(entry) for entry in proxied),
            )
            assert all(entry.is_done for entry in direct + proxied)
            later_s = [
                median(words_of(entry)[i] for entry in proxied) - median(words_of(entry)[i] for entry in direct)
                for i in range(len(words_of(direct[0])))
            ]
            async with clients.session.get(f"{before.base}/chats", headers=clients.tenant.headers) as response:
                # It does compress what it may.
                assert response.headers["Content-Encoding"] in ("gzip", "deflate", "br")
    say(any_word_later=f"{max(later_s) * 1000:.1f}ms")
    assert max(later_s) < 0.1


# ---- Clients


@asynccontextmanager
async def cutting(server: Server, after_bytes: int | None) -> AsyncIterator[Before]:
    """A wire to a server, of which the first connection breaks after so many bytes."""
    cuts = [after_bytes] if after_bytes else []
    connections: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(256):
                writer.write(data)
                await writer.drain()
                if left is not None and (left := left - len(data)) <= 0:
                    writer.transport.abort()

    async def connect(here: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())  # type: ignore[arg-type]
        there, to_server = await asyncio.open_connection(server.host, server.port)
        try:
            down = pump(there, to_client, cuts.pop() if cuts else None)
            await asyncio.wait(
                [asyncio.create_task(pump(here, to_server, None)), asyncio.create_task(down)],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for writer in (to_client, to_server):
                writer.transport.abort()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    wire = await asyncio.start_server(connect, "127.0.0.1", 0)
    async with wire:
        yield Before("http://{}:{}".format(*wire.sockets[0].getsockname()[:2]))
        await asyncio.wait(connections)


async def by_library(node: str, library: str, url: str) -> list[str]:
    async with running(node, NODE / "client.js", library, url) as client:
        assert client.stdout
        messages: list[str] = json.loads(await asyncio.wait_for(client.stdout.read(), 60))
        return messages


async def by_httpx_sse(node: str, library: str, url: str) -> list[str]:
    async with httpx.AsyncClient() as client, aconnect_sse(client, "GET", url, timeout=30) as source:
        return [event.data async for event in source.aiter_sse()]


async def by_aiosseclient(node: str, library: str, url: str) -> list[str]:
    return [event.data async for event in aiosseclient(url)]


@pytest.mark.parametrize(
    ("library", "read", "after_bytes"),
    [
        ("fetch-event-source", by_library, 4000),
        ("event-source-polyfill", by_library, 4000),
        ("reconnecting-eventsource", by_library, 4000),
        ("httpx-sse", by_httpx_sse, None),
        ("aiosseclient", by_aiosseclient, None),
    ],
)
async def test_client_gets_no_empty_message_and_where_it_comes_back_by_itself_asks_once(
    node: str, serve: Callable[..., Server], own_rows: Rows, library: str, read: Any, after_bytes: int | None
) -> None:
    # Silences between the words: pings.
    server, tenant = serve(HEARTBEAT_S="0.1", SIM_DELAY_MS="50-300"), own_rows.tenant()
    async with cutting(server, after_bytes) as wire:
        url = f"{wire.base}/chat/stream?message=Hi&orgId={tenant.org_id}&userId={tenant.user_id}"
        messages = await read(node, library, url)
    *tokens, done = map(json.loads, messages)
    assert "".join(event["token"] for event in tokens) == done["fullText"]
    # Each connection begins with one.
    assert [event["token"] for event in tokens].count("") == (2 if after_bytes else 1)
    [(_, question, _), (_, reply, status)] = own_rows.messages(tenant.org_id)
    assert (question, reply, status) == ("Hi", done["fullText"], "complete")
    assert server.errors() == []


# What the README's client gives, or throws.
IN_NODE = """
const [url, headers] = process.argv.slice(2);
const reply = ask(url, JSON.parse(headers), { message: 'Hi' });
let text = '';
try {
  for await (const token of reply.tokens()) text += token;
} catch (error) {
  text = error.message;
  await reply.stop(); // there is nothing to stop
}
console.log(text);
"""


async def test_readmes_client_in_node_asks_a_whole_url_and_refuses_another_at_once(
    node: str, serve: Callable[..., Server], own_rows: Rows, tmp_path: Path
) -> None:
    server, tenant = serve(), own_rows.tenant()
    program = tmp_path / "client.mjs"
    program.write_text(snippet("js", "function ask(").split("// '':")[0] + IN_NODE)
    headers = json.dumps(tenant.headers | {"content-type": "application/json"})
    for url in (server.base, ""):
        async with running(node, program, url, headers) as client:
            assert client.stdout
            # By itself it would come back for a minute and a half.
            said = await asyncio.wait_for(client.stdout.read(), 20)
        if url:
            [(_, question, _), (_, reply, status)] = own_rows.messages(tenant.org_id)
            assert (question, said.decode(), status) == ("Hi", f"{reply}\n", "complete")
        else:
            assert said == b"Failed to parse URL from /chat/stream\n"
