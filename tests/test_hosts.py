"""Under which names the server is asked, from which pages, and what is kept of its answers on the way."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from house import answer
from processes import Processes
from serving import StartServer
from support import RawClient, Rows, Tenant, post, says

from app.origins import DEVELOPMENT
from app.settings import Settings


async def ask(
    server: TestServer, tenant: Tenant, *lines: str, target: str = "/chats", version: str = "1.1"
) -> int:
    """Ask for a caller's chats with these header lines; return the status."""
    client = await RawClient.connect(server)
    given = [*lines, *map(": ".join, tenant.headers.items())]
    head = "\r\n".join([f"GET {target} HTTP/{version}", *given, "", ""])
    client.send(head.encode("utf-8", "surrogateescape"))
    status, _ = await client.read_head()
    return int(status.split()[1])


OWN = [
    "localhost",
    "LocalHost.:8080",
    "127.0.0.1:1",
    "127.8.9.10",
    "[::1]:3000",
    "app.localhost:3000",
    "127.0.0.1:",
]
FOREIGN = [
    "evil.example",
    "evil.example:3000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evillocalhost",
    "localhost@evil.example",
    "evil.example@localhost",
    "localhost/evil.example",
    "0.0.0.0:3000",
    "10.1.2.3:3000",
    "[fe80::1]:3000",
    "[",
    "::1",
    ":3000",
    "evil.example\udcff",
]


@pytest.mark.parametrize(("host", "status"), [(host, 200) for host in OWN] + [(host, 403) for host in FOREIGN])
async def test_page_under_a_name_that_resolves_to_this_machine_reads_nothing(
    server: TestServer, tenant: Tenant, host: str, status: int
) -> None:
    assert await ask(server, tenant, f"Host: {host}") == status
    # Of the same origin, for its browser.
    assert (
        await ask(server, tenant, f"Host: {host}", f"Origin: http://{host}", "Sec-Fetch-Site: same-origin")
        == status
    )


@pytest.mark.parametrize("path", ["/chat", "/chat/stream", "/chat/stream/ticket"])
async def test_page_under_such_a_name_asks_nothing(
    server: TestServer, rows: Rows, tenant: Tenant, path: str
) -> None:
    client = await RawClient.connect(server)
    client.send(post(path, b'{"message": "Hi"}', tenant).replace(b"localhost", b"evil.example:3000"))
    status, body = await answer(client)
    assert (status, body["error"]) == (403, "Foreign host")
    assert body["message"] == (
        "Host is 'evil.example:3000', expected localhost, a loopback address, HOST or one in ALLOWED_HOSTS."
    )
    query = f"message=Hi&orgId={tenant.org_id}&userId={tenant.user_id}"
    assert await ask(server, tenant, "Host: evil.example", target=f"/chat/stream?{query}") == 403
    assert rows.messages(tenant.org_id) == []
    assert rows("select from tickets where org_id = %s", tenant.org_id) == []


async def test_whole_url_as_the_target_overrules_the_host_header(server: TestServer, tenant: Tenant) -> None:
    assert await ask(server, tenant, "Host: localhost", target="http://evil.example/chats") == 403
    assert await ask(server, tenant, "Host: localhost", target="http://localhost@evil.example/chats") == 403
    assert await ask(server, tenant, "Host: evil.example", target="http://[::1]:3000/chats") == 200
    origin = "Origin: http://localhost:3003"
    assert await ask(server, tenant, "Host: localhost", origin, target="http://localhost:3003/chats") == 200
    assert await ask(server, tenant, "Host: localhost:3003", origin, target="http://localhost:3004/chats") == 403


def test_whole_url_whose_host_cannot_be_decoded_is_answered(
    start: Processes, postgres_url: str, tenant: Tenant
) -> None:
    address = start(DATABASE_URL=postgres_url).listening().removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=10)) as client:
        for path, status, said in (("/chats", 403, "Foreign host"), ("/health", 200, None)):
            client.request("GET", f"http://xn--{path}", headers=tenant.headers | {"Host": "localhost"})
            response = client.getresponse()
            assert (response.status, json.load(response).get("error")) == (status, said)


async def test_client_that_names_no_host_is_no_browser_and_may_ask(server: TestServer, tenant: Tenant) -> None:
    assert await ask(server, tenant, version="1.0") == 200
    assert await ask(server, tenant, "Origin: http://", version="1.0") == 403


async def test_probes_need_no_name(server: TestServer, tenant: Tenant) -> None:
    for path in ("/health", "/ready"):
        assert await ask(server, tenant, "Host: 10.1.2.3:3000", target=path) == 200


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({"host": "Dev.example."}, "dev.example:3000", 200),
        ({"host": "::1"}, "[::1]", 200),
        ({"allowed_hosts": frozenset({"chat.example", "::5"})}, "CHAT.example.:80", 200),
        ({"allowed_hosts": frozenset({"chat.example", "::5"})}, "[::5]:80", 200),
        ({"allowed_hosts": frozenset({"chat.example"})}, "localhost", 200),
        ({"allowed_hosts": frozenset({"chat.example"})}, "a.chat.example", 403),
        ({"trust_identity_headers": True}, "any.example", 200),
        ({"trust_identity_headers": True, "allowed_hosts": frozenset({"chat.example"})}, "any.example", 403),
        ({"trust_identity_headers": True, "allowed_hosts": frozenset({"chat.example"})}, "chat.example", 200),
        # By then it is the token that is missing.
        ({"jwt_secret": "x" * 32}, "any.example", 401),
        ({"jwt_secret": "x" * 32, "allowed_hosts": frozenset({"chat.example"})}, "any.example", 403),
    ],
)
async def test_settings_say_which_names_are_the_servers(
    start_server: StartServer, tenant: Tenant, settings: dict[str, Any], host: str, status: int
) -> None:
    assert await ask(await start_server(**settings), tenant, f"Host: {host}") == status


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("chat.example:443", "https://chat.example", 200),
        ("chat.example:80", "http://chat.example", 200),
        ("chat.example", "https://chat.example:443", 200),
        ("chat.example.", "https://chat.example", 200),
        ("chat.example", "https://chat.example.", 200),
        ("Chat.Example.:443", "https://chat.example", 200),
        ("chat.example:8443", "https://chat.example.:8443", 200),
        ("[2001:DB8::1]:443", "https://[2001:db8::1]", 200),
        ("chat.example:443", "http://chat.example", 403),
        ("chat.example:8443", "https://chat.example", 403),
        ("chat.example", "https://chat.example.evil.example", 403),
        ("chat.example", "ftp://chat.example", 403),
    ],
)
async def test_own_origin_is_the_same_however_it_is_written(
    start_server: StartServer, tenant: Tenant, host: str, origin: str, status: int
) -> None:
    server = await start_server(trust_identity_headers=True)
    assert await ask(server, tenant, f"Host: {host}", f"Origin: {origin}") == status


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1:5173", "http://localhost:4200"])
async def test_page_of_a_development_server_may_ask_and_come_back_without_being_asked_for(
    client: TestClient, tenant: Tenant, origin: str
) -> None:
    wanted = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "last-event-id,x-org-id"}
    preflight = await client.options("/chat/stream", headers={"Origin": origin} | wanted)
    assert preflight.headers["Access-Control-Allow-Origin"] == origin
    assert {"last-event-id", "x-org-id"} < set(preflight.headers["Access-Control-Allow-Headers"].split(", "))
    response = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers | {"Origin": origin})
    assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, origin)


async def test_page_of_whatever_else_runs_on_this_machine_may_not(client: TestClient, tenant: Tenant) -> None:
    for origin in ("http://localhost:8888", "https://localhost:5173", "http://localhost.evil.example:5173"):
        response = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers | {"Origin": origin})
        assert response.status == 403
        assert "Access-Control-Allow-Origin" not in response.headers


def test_origins_that_a_setting_lists_are_as_browsers_write_them() -> None:
    origins = Settings.from_environ(
        {"CORS_ORIGINS": "https://Chat.Example.:443/, null, http://[::1]:80"}
    ).cors_origins
    assert origins == {"https://chat.example", "null", "http://[::1]"}
    more = Settings.from_environ({"CORS_ORIGINS": "development,https://chat.example"}).cors_origins
    assert more == DEVELOPMENT | {"https://chat.example"}


async def test_no_cache_keeps_an_answer_of_the_api(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(model=says("Hello")))
    asked = {"json": {"message": "Hi"}, "headers": tenant.headers}
    stranger = rows.tenant(tenant.org_id).headers
    chat_id = (await (await client.post("/chat", **asked)).json())["chat_id"]
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    for request, status in (
        (client.get("/chats", headers=tenant.headers), 200),
        (client.head("/chats", headers=tenant.headers), 200),
        (client.get(f"/chats/{chat_id}/messages", headers=tenant.headers), 200),
        (client.get(f"/chats/{chat_id}/messages", headers=stranger), 404),
        (client.post("/chat", **asked), 200),
        (client.post("/chat/stream/ticket", **asked), 200),
        (client.get("/chats?limit=0", headers=tenant.headers), 400),
        (client.get("/chats"), 401),
        (client.get("/chats", headers=tenant.headers | {"Origin": "https://evil.example"}), 403),
        (client.get("/chat/stream?ticket=none"), 401),
        (client.get("/nothing"), 404),
        (client.put("/"), 405),
        (client.options("/chats", headers=preflight), 204),
        (client.get("/health"), 200),
        (client.get("/ready"), 200),
    ):
        async with request as response:
            assert (response.status, response.headers.getall("Cache-Control")) == (status, ["no-store"])
    async with client.post("/chat/stream", **asked) as response:
        # No cache may give it to another, and no middleware compress it.
        assert response.headers.getall("Cache-Control") == ["no-cache, no-transform"]
    for path in ("/", "/chat.js", "/openapi.json"):
        async with client.get(path) as response:
            assert response.headers.getall("Cache-Control") == ["no-cache"]
