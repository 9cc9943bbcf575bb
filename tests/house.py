"""A reply, the server that has it, and the readers who come back to that or to another server."""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp.test_utils import TestServer
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, post, says

from app.api.resume import BELLS
from app.models import Model
from app.replies.turns import TURNS

TEXT = "One two  three\n四 five 🙂 six seven eight nine ten."
PIECES = re.findall(r"\s*\S+", TEXT)


class House:
    """A server with a model, and where its readers come back to: to it, or to another one."""

    def __init__(self, home: TestServer, door: TestServer, model: Gated) -> None:
        self.home = home
        self.door = door
        self.model = model

    @property
    def turns(self) -> Any:
        return self.home.app[TURNS]


async def open_house(start_server: StartServer, elsewhere: bool, model: Model, **settings: Any) -> House:
    home = await start_server(model=model, **settings)
    door = await start_server(model=says("not asked"), **settings) if elsewhere else home
    for server in (home, door):
        await server.app[BELLS].listening.wait()
    return House(home, door, model)


async def ask(server: TestServer, tenant: Tenant, headers: str = "", message: str = "Hi") -> tuple[RawClient, str]:
    client = await RawClient.connect(server)
    client.send(post("/chat/stream", json.dumps({"message": message}).encode(), tenant, headers=headers))
    _, head = await client.read_head()
    return client, head[b"x-message-id"].decode()


async def call(server: TestServer, tenant: Tenant, method: str, path: str) -> RawClient:
    client = await RawClient.connect(server)
    client.send(
        f"{method} /chat/stream/{path} HTTP/1.1\r\nHost: test\r\n"
        f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n\r\n".encode()
    )
    return client


async def come_back(server: TestServer, tenant: Tenant, reply_id: str, offset: int) -> RawClient:
    return await call(server, tenant, "GET", f"{reply_id}?offset={offset}")


async def stop(server: TestServer, tenant: Tenant, reply_id: str) -> RawClient:
    return await call(server, tenant, "DELETE", reply_id)


async def read_pieces(client: RawClient, model: Gated, count: int) -> str:
    """Let the model say so many pieces, and return what the client read of them."""
    text = ""
    for _ in range(count):
        model.go()
        text += "".join(event["token"] for event in events(await client.read_chunk()))
    return text


async def read_rest(client: RawClient) -> tuple[bytes, list[dict[str, Any]]]:
    status, _ = await client.read_head()
    return status, events(b"".join(await client.read_chunks()))


def spoken(read: list[dict[str, Any]]) -> str:
    return "".join(event.get("token", "") for event in read)


def stored(rows: Rows, reply_id: str) -> tuple[str, str]:
    [(status, content)] = rows("select status, content from messages where id = %s", reply_id)
    return status, content


async def disconnect(house: House, rows: Rows, client: RawClient, reply_id: str) -> None:
    client.reset()
    await eventually(lambda: stored(rows, reply_id)[0] == "disconnected")


async def pause(house: House, rows: Rows, tenant: Tenant) -> tuple[str, str]:
    """Ask, read two pieces and leave; return the reply's id and what was read."""
    client, reply_id = await ask(house.home, tenant)
    seen = await read_pieces(client, house.model, 2)
    await disconnect(house, rows, client, reply_id)
    return reply_id, seen
