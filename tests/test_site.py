"""The page's files and the probes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from serving import StartServer
from support import RawClient, Tenant, post, says

from app.api.site import WEB


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("/", "text/html"), ("/chat.js", "text/javascript"), ("/chat.css", "text/css")],
)
async def test_page_file_is_served_under_a_strict_policy(client: TestClient, path: str, content_type: str) -> None:
    response = await client.get(path)
    assert response.status == 200
    assert response.content_type == content_type
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_page_names_each_script_that_there_is_and_each_is_served(client: TestClient) -> None:
    page = await (await client.get("/")).text()
    scripts = re.findall(r'<script src="([^"]+)" defer></script>', page)
    assert sorted(scripts) == sorted(path.name for path in WEB.glob("*.js"))
    for name in scripts:
        response = await client.get(f"/{name}")
        assert response.content_type == "text/javascript"
        assert await response.text() == (WEB / name).read_text()


@pytest.mark.parametrize(
    "path", ["/index.html", "/../setup.cfg", "/%2e%2e/setup.cfg", "/web/chat.js", "/chat.js/"]
)
async def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert (await client.get(path)).status == 404


async def test_probes_answer_without_a_caller(client: TestClient) -> None:
    assert await (await client.get("/health")).json() == {"status": "ok"}
    assert await (await client.get("/ready")).json() == {"status": "ready"}


@pytest.mark.parametrize("name", ["If-Modified-Since", "If-Unmodified-Since", "If-Range"])
@pytest.mark.parametrize(
    ("date", "status"),
    [
        ("Sun, 06 Nov 99999999999999999999 08:49:37 GMT", 400),
        ("Sun, 99999999999999999999 Nov 1994 08:49:37 GMT", 400),
        # No dates at all, and so none for us (RFC 9110, 13.1.3).
        ("0", 200),
        ("Sun, 06 Nov 1e20 08:49:37 GMT", 200),
        ("\udcff", 200),
    ],
)
async def test_date_that_cannot_be_is_400_and_drops_no_connection(
    server: TestServer, name: str, date: str, status: int
) -> None:
    for path in ("/", "/openapi.json"):
        async with await RawClient.connect(server) as client:
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{name}: {date}\r\n\r\n"
            client.send(head.encode("utf-8", "surrogateescape"))
            assert int((await client.read_head())[0].split()[1]) == status


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_rest_of_another_version_of_a_file_is_all_of_this_one(client: TestClient, method: str) -> None:
    given = {"Range": "bytes=5-", "If-Range": '"another"'}
    response = await client.request(method, "/chat.js", headers=given)
    assert (response.status, response.content_type) == (200, "text/javascript")
    script = (WEB / "chat.js").read_bytes()
    assert response.headers["Content-Length"] == str(len(script))
    assert await response.read() == (script if method == "GET" else b"")


@pytest.mark.parametrize("expected", ["\udcff", "200-ok", "100-continue, more"])
async def test_expectation_that_nobody_knows_is_ignored(server: TestServer, expected: str) -> None:
    client = await RawClient.connect(server)
    client.send(
        f"GET /health HTTP/1.1\r\nHost: localhost\r\nExpect: {expected}\r\n\r\n".encode("utf-8", "surrogateescape")
    )
    status, head = await client.read_head()
    assert (status, b"x-request-id" in head) == (b"HTTP/1.1 200 OK", True)


async def test_body_that_waits_to_be_asked_for_is_asked_for(server: TestServer, tenant: Tenant) -> None:
    client = await RawClient.connect(server)
    head, body = post("/chat", b'{"message": "Hi"}', tenant, headers="Expect: 100-Continue\r\n").split(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert await client.read_head() == (b"HTTP/1.1 100 Continue", {})
    client.send(body)
    assert (await client.read_head())[0] == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    ("model", "answer"),
    [
        ("sim", {"model": "sim", "simulated": True}),
        ("openai:local/llama:3b", {"model": "local/llama:3b", "simulated": False}),
        (says("Hello"), {"model": None, "simulated": False}),
    ],
    ids=["simulated", "real", "own"],
)
async def test_model_is_named(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant, model: Any, answer: dict[str, Any]
) -> None:
    client = await aiohttp_client(await start_server(model=model, model_url="http://127.0.0.1:9/v1"))
    async with client.get("/model", headers=tenant.headers) as response:
        assert await response.json() == answer
    assert (await client.get("/model")).status == 401
