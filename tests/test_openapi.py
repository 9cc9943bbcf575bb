"""web/openapi.json, held against the routes and against what they answer."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer
from serving import StartServer
from support import Gated, Rows, Tenant, events, says

from app.api.site import SCRIPTS_AND_STYLES

DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parent.parent / "web/openapi.json").read_text())
METHODS = {"get", "post", "patch", "delete"}
# The page is no part of what programs use.
PAGE = {"/", *(f"/{name}" for name in SCRIPTS_AND_STYLES)}


def operations() -> set[tuple[str, str]]:
    return {(path, method) for path, item in DOCUMENT["paths"].items() for method in item if method in METHODS}


async def test_document_has_every_route_and_no_other(server: TestServer) -> None:
    assert server.app is not None
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in server.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert {route for route in routes if route[0] not in PAGE} == operations()


async def test_document_is_served(client: TestClient) -> None:
    response = await client.get("/openapi.json")
    assert response.content_type == "application/json"
    assert await response.json() == DOCUMENT


def test_every_reference_leads_somewhere() -> None:
    def check(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                target: Any = DOCUMENT
                for part in node["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for child in node.values():
                check(child)
        elif isinstance(node, list):
            for child in node:
                check(child)

    check(DOCUMENT)


@pytest.mark.parametrize(("path", "method"), sorted(operations()))
async def test_answers_are_among_those_that_are_documented(
    client: TestClient, rows: Rows, tenant: Tenant, path: str, method: str
) -> None:
    documented = DOCUMENT["paths"][path][method]["responses"]
    url = path.format(message_id=uuid.uuid4(), chat_id=uuid.uuid4())
    for headers in (
        {},
        tenant.headers,
        rows.tenant(str(uuid.uuid4())).headers,
        {"x-org-id": "x", "x-user-id": "x"},
    ):
        for body in (
            None,
            b"{",
            b'{"message": "Hi"}',
            b'{"message": " "}',
            b'{"message": "Hi", "chat_id": 7}',
            b'{"title": "Hi"}',
        ):
            for query in (
                "",
                "?limit=0",
                "?offset=x",
                "?ticket=x",
                "?before=x",
                "?q=",
                "?message=Hi&orgId=1&userId=2",
            ):
                more = {"content-type": "application/json"} if body else {}
                async with client.request(method, url + query, data=body, headers=headers | more) as response:
                    assert str(response.status) in documented, (response.status, headers, body, query)
                    assert response.status < 500
                    if response.status >= 400:
                        assert {"error", "message", "requestId"} <= (await response.json()).keys()
                    else:
                        await response.read()


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Range", "bytes=0-3", 206),
        ("If-None-Match", "*", 304),
        ("If-Match", '"another"', 412),
        ("Range", "bytes=999999-", 416),
    ],
)
async def test_document_is_a_file_and_says_so(client: TestClient, header: str, value: str, status: int) -> None:
    response = await client.get("/openapi.json", headers={header: value})
    assert response.status == status
    assert str(status) in DOCUMENT["paths"]["/openapi.json"]["get"]["responses"]


async def test_error_event_is_the_failure_that_is_documented(start_server: StartServer, tenant: Tenant) -> None:
    server = await start_server(model=says("Hello", RuntimeError("lost")))
    async with (
        ClientSession() as session,
        session.post(server.make_url("/chat/stream"), json={"message": "Hi"}, headers=tenant.headers) as response,
    ):
        last = events(await response.read())[-1]
    failed = DOCUMENT["components"]["schemas"]["Failed"]
    assert last.keys() == set(failed["required"]) == failed["properties"].keys()


async def test_stream_beyond_a_users_limit_is_429_as_is_documented(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(model=Gated(), user_reader_limit=1))
    question, ids = {"message": "Hi"}, tenant.headers
    async with client.post("/chat/stream", json=question, headers=ids) as reading:
        url = f"/chat/stream/{reading.headers['x-message-id']}"
        for path, method, request in (
            ("/chat", "post", client.post("/chat", json=question, headers=ids)),
            ("/chat/stream", "post", client.post("/chat/stream", json=question, headers=ids)),
            ("/chat/stream", "get", client.get("/chat/stream", params=question | tenant.query)),
            ("/chat/stream/{message_id}", "get", client.get(url, headers=ids)),
        ):
            async with request as response:
                assert response.status == 429
                assert (await response.json())["error"] == "Too many streams"
                assert "Retry-After" in response.headers
            assert "429" in DOCUMENT["paths"][path][method]["responses"]
