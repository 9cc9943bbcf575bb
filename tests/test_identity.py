"""Who may see what: headers, tenants, other sites."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from serving import StartServer
from support import RawClient, Rows, Tenant

ROUTES = [
    *("POST /chat", "POST /chat/stream", "GET /chat/stream", "GET /chats", "GET /chats/{chat_id}/messages"),
    *("PATCH /chats/{chat_id}", "DELETE /chats/{chat_id}", "GET /chats/{chat_id}/export"),
]
# These do not tell a chat that there is from one that there is not.
SILENT = ["GET /chats", "DELETE /chats/{chat_id}"]


async def call(
    client: TestClient, route: str, org_id: str, user_id: str, chat_id: str | None = None
) -> ClientResponse:
    """Send a well-formed request to `route` as this caller, about this chat."""
    method, path = route.split()
    path = path.format(chat_id=chat_id or uuid4())
    headers = {"x-org-id": org_id, "x-user-id": user_id}
    if method == "POST":
        return await client.post(path, json={"message": "Hi", "chat_id": chat_id}, headers=headers)
    if path == "/chat/stream":
        params = {"message": "Hi", "orgId": org_id, "userId": user_id} | ({"chatId": chat_id} if chat_id else {})
        return await client.get(path, params=params)
    body = {"title": "Mine"} if method == "PATCH" else None
    return await client.request(method, path, json=body, headers=headers)


async def chat_of(client: TestClient, tenant: Tenant) -> str:
    response = await client.post("/chat", json={"message": "Secret"}, headers=tenant.headers)
    chat_id: str = (await response.json())["chat_id"]
    return chat_id


@pytest.mark.parametrize("route", ROUTES)
async def test_identity_that_is_no_uuid_is_400(client: TestClient, rows: Rows, tenant: Tenant, route: str) -> None:
    for org_id, user_id in (("x", tenant.user_id), (tenant.org_id, "x"), (tenant.org_id, tenant.user_id + "0")):
        response = await call(client, route, org_id, user_id)
        assert response.status == 400
        assert (await response.json())["error"] == "Bad UUID"
    assert rows.messages(tenant.org_id) == []


async def test_ids_in_capitals_are_the_same_and_come_back_in_small_letters(
    client: TestClient, rows: Rows, tenant: Tenant
) -> None:
    chat_id = await chat_of(client, tenant)
    capitals = Tenant(tenant.org_id.upper(), tenant.user_id.upper())
    question = {"message": "And?", "chat_id": chat_id.upper()}
    answer = await client.post("/chat", json=question, headers=capitals.headers)
    assert (answer.status, (await answer.json())["chat_id"]) == (200, chat_id)
    stream = await client.post("/chat/stream", json=question, headers=capitals.headers)
    assert stream.headers["x-chat-id"] == chat_id
    await stream.read()
    assert len(rows.messages(tenant.org_id)) == 6


@pytest.mark.parametrize("route", ROUTES)
async def test_user_who_is_not_in_the_org_is_403(
    client: TestClient, rows: Rows, tenant: Tenant, route: str
) -> None:
    other = rows.tenant()
    for org_id, user_id in (
        (tenant.org_id, other.user_id),
        (other.org_id, tenant.user_id),
        (str(uuid4()), tenant.user_id),
        (tenant.org_id, str(uuid4())),
    ):
        response = await call(client, route, org_id, user_id)
        assert response.status == 403
        assert (await response.json())["message"] == "The user is not in this org."
    assert rows.messages(tenant.org_id) == rows.messages(other.org_id) == []


@pytest.mark.parametrize("route", [route for route in ROUTES if route not in SILENT])
async def test_chat_of_another_user_or_org_does_not_exist(
    client: TestClient, rows: Rows, tenant: Tenant, route: str
) -> None:
    chat_id = await chat_of(client, tenant)
    before = rows.messages(tenant.org_id), rows("select title from chats where id = %s", chat_id)
    for other in (rows.tenant(tenant.org_id), rows.tenant()):
        response = await call(client, route, other.org_id, other.user_id, chat_id)
        assert response.status == 404
        answer = await response.json()
        assert answer["message"] == "There is no such chat."
        unknown = await call(client, route, other.org_id, other.user_id, str(uuid4()))
        assert (await unknown.json())["message"] == answer["message"]
    assert (rows.messages(tenant.org_id), rows("select title from chats where id = %s", chat_id)) == before


async def test_chat_of_another_user_or_org_is_not_deleted_and_the_answer_does_not_tell(
    client: TestClient, rows: Rows, tenant: Tenant
) -> None:
    chat_id = await chat_of(client, tenant)
    before = rows.messages(tenant.org_id)
    for other in (rows.tenant(tenant.org_id), rows.tenant()):
        for asked in (chat_id, str(uuid4())):
            response = await call(client, "DELETE /chats/{chat_id}", other.org_id, other.user_id, asked)
            assert (response.status, await response.read()) == (204, b"")
    assert rows.messages(tenant.org_id) == before


async def test_chats_of_others_are_not_listed(client: TestClient, rows: Rows, tenant: Tenant) -> None:
    chat_id = await chat_of(client, tenant)
    for other in (rows.tenant(tenant.org_id), rows.tenant()):
        response = await client.get("/chats", headers=other.headers)
        assert await response.json() == {"chats": [], "next": None}
        response = await client.get("/chats", params={"q": "Secret"}, headers=other.headers)
        assert await response.json() == {"chats": [], "next": None}
        # The place of theirs in the list of another is one between that one's own.
        response = await client.get(
            "/chats", params={"before": f"9999999999999999_{chat_id}"}, headers=other.headers
        )
        assert await response.json() == {"chats": [], "next": None}


async def test_message_of_another_chat_is_nothing_to_page_before(
    client: TestClient, rows: Rows, tenant: Tenant
) -> None:
    mine, other = await chat_of(client, tenant), await chat_of(client, tenant)
    [(message_id,)] = rows("select id::text from messages where chat_id = %s and role = 'user'", other)
    response = await client.get(f"/chats/{mine}/messages", params={"before": message_id}, headers=tenant.headers)
    assert response.status == 404


async def test_schema_refuses_rows_that_point_into_another_org(
    client: TestClient, rows: Rows, tenant: Tenant
) -> None:
    chat_id = await chat_of(client, tenant)
    other = rows.tenant()
    with pytest.raises(Exception, match="foreign key"):
        rows("update messages set org_id = %s where chat_id = %s", other.org_id, chat_id)
    with pytest.raises(Exception, match="foreign key"):
        rows("update chats set user_id = %s where id = %s", other.user_id, chat_id)


@pytest.mark.parametrize(
    "path", ["/chat", "/chat/stream", "/chats", f"/chats/{UUID(int=1)}/messages", f"/chats/{UUID(int=1)}/export"]
)
@pytest.mark.parametrize("header", ["x-org-id", "x-user-id"])
@pytest.mark.parametrize("times", [0, 2])
async def test_identity_header_missing_or_sent_twice_is_401(
    server: TestServer, rows: Rows, tenant: Tenant, path: str, header: str, times: int
) -> None:
    lines = [f"{name}: {value}\r\n" for name, value in tenant.headers.items() if name != header]
    lines += [f"{header}: {tenant.headers[header]}\r\n"] * times
    method = "GET" if path.startswith("/chats") else "POST"
    client = await RawClient.connect(server)
    client.send(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 17\r\n"
        f'{"".join(lines)}\r\n{{"message": "Hi"}}'.encode()
    )
    status, _ = await client.read_head()
    assert status == b"HTTP/1.1 401 Unauthorized"
    assert rows.messages(tenant.org_id) == []


@pytest.mark.parametrize("parameter", ["orgId", "userId"])
@pytest.mark.parametrize("times", [0, 2])
async def test_identity_parameter_missing_or_sent_twice_is_401(
    client: TestClient, rows: Rows, tenant: Tenant, parameter: str, times: int
) -> None:
    params = [("message", "Hi"), *((k, v) for k, v in tenant.query.items() if k != parameter)]
    params += [(parameter, tenant.query[parameter])] * times
    response = await client.get("/chat/stream", params=params)
    assert response.status == 401
    what = f"given {times} times" if times else "missing"
    assert f"{parameter} is {what}, expected once." in (await response.json())["message"]
    assert rows.messages(tenant.org_id) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:8080"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8080"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:8080.evil.example"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://\u2100.com"}, 403),
        ({"Origin": "//test"}, 403),
    ],
)
async def test_request_of_another_site_is_refused_and_stores_nothing(
    client: TestClient, rows: Rows, tenant: Tenant, headers: dict[str, str], status: int
) -> None:
    get = await client.get("/chat/stream", params={"message": "Hi", **tenant.query}, headers=headers)
    await get.read()
    posted = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers | headers)
    path = f"/chats/{(await posted.json()).get('chat_id', UUID(int=1))}"
    renamed = await client.patch(path, json={"title": "Hi"}, headers=tenant.headers | headers)
    exported = await client.get(f"{path}/export", headers=tenant.headers | headers)
    await exported.read()
    assert {get.status, posted.status, renamed.status, exported.status} == {status}
    deleted = await client.delete(f"/chats/{UUID(int=1)}", headers=tenant.headers | headers)
    assert deleted.status == (204 if status == 200 else 403)
    assert len(rows.messages(tenant.org_id)) == (4 if status == 200 else 0)


async def test_own_origin_is_always_allowed(client: TestClient, tenant: Tenant) -> None:
    origin = f"http://{client.host}:{client.port}"
    response = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers | {"Origin": origin})
    assert response.status == 200


async def test_null_origin_is_allowed_where_the_setting_says_so(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(cors_origins=frozenset({"null"})))
    response = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers | {"Origin": "null"})
    assert response.status == 200
    assert response.headers["Access-Control-Allow-Origin"] == "null"


async def test_preflight_and_answers_let_an_allowed_page_read(client: TestClient, tenant: Tenant) -> None:
    origin = {"Origin": "http://localhost:8080"}
    preflight = await client.options("/chat/stream", headers=origin | {"Access-Control-Request-Method": "POST"})
    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == "http://localhost:8080"
    assert preflight.headers["Access-Control-Allow-Methods"] == "GET, POST, PATCH, DELETE"
    assert "x-org-id" in preflight.headers["Access-Control-Allow-Headers"]
    stream = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers | origin)
    bad = await client.post("/chat/stream", json={}, headers=tenant.headers | origin)
    for response in (stream, bad):
        assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:8080"
        assert "x-chat-id" in response.headers["Access-Control-Expose-Headers"]
        assert response.headers["Vary"] == "Origin"


async def test_preflight_of_another_site_gets_no_permission(client: TestClient) -> None:
    response = await client.options(
        "/chat", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_query_cannot_say_another_caller_than_the_gateways_headers(
    client: TestClient, rows: Rows, tenant: Tenant
) -> None:
    other = rows.tenant()
    params = {"message": "Hi", **tenant.query}
    assert (await client.get("/chat/stream", params=params, headers=other.headers)).status == 403
    assert (await client.get("/chat/stream", params=params, headers={"x-user-id": other.user_id})).status == 403
    assert rows.messages(tenant.org_id) == []
    assert (await client.get("/chat/stream", params=params, headers=tenant.headers)).status == 200
