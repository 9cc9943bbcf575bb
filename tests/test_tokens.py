"""Bearer tokens and tickets: who is asking, where headers are not believed."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.utils import base64url_encode
from serving import StartServer
from support import Rows, Tenant, events, eventually, logged, says

from app.api.identity import Handler

SECRET = "a secret of no less than 32 characters"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
QUESTION = {"message": "Hi"}


def claims(tenant: Tenant, **more: Any) -> dict[str, Any]:
    return {"org_id": tenant.org_id, "sub": tenant.user_id, "exp": time.time() + 60} | more


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def signed(tenant: Tenant, **more: Any) -> dict[str, str]:
    return bearer(jwt.encode(claims(tenant, **more), SECRET, "HS256"))


@pytest.fixture
async def guarded(start_server: StartServer, aiohttp_client: Any) -> Any:
    return await aiohttp_client(await start_server(model=says("Hello"), jwt_secret=SECRET))


async def test_token_says_who_is_asking_and_headers_do_not(guarded: Any, rows: Rows, tenant: Tenant) -> None:
    headers = signed(tenant) | rows.tenant().headers
    async with guarded.post("/chat", json=QUESTION, headers=headers) as response:
        assert response.status == 200
    assert [content for _, content, _ in rows.messages(tenant.org_id)] == ["Hi", "Hello"]


async def test_headers_alone_are_401(guarded: Any, rows: Rows, tenant: Tenant) -> None:
    async with guarded.post("/chat", json=QUESTION, headers=tenant.headers) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert (await response.json())["message"] == "Authorization is missing, expected once."
    async with guarded.get("/chat/stream", params={"message": "Hi", **tenant.query}) as response:
        assert response.status == 401
    assert rows.messages(tenant.org_id) == []


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("expired", "The token has expired."),
        ("no expiry", "The token has no claim exp."),
        ("another secret", "The token is not valid."),
        ("no signature", "The token is signed with another algorithm, expected HS256."),
        ("public key", "The token is signed with another algorithm, expected HS256."),
        ("no org", "The token has no claim org_id."),
        ("org is a list", "The token's claim org_id is no UUID."),
        ("garbage", "The token is not valid."),
        ("another scheme", "Authorization is expected as: Bearer <token>."),
    ],
)
async def test_token_that_is_not_valid_is_401(
    guarded: Any, rows: Rows, tenant: Tenant, what: str, message: str
) -> None:
    without = {name: {k: v for k, v in claims(tenant).items() if k != name} for name in ("exp", "org_id")}
    headers = {
        "expired": signed(tenant, exp=time.time() - 60),
        "no expiry": bearer(jwt.encode(without["exp"], SECRET)),
        "another secret": bearer(jwt.encode(claims(tenant), "x" * 32)),
        "no signature": bearer(jwt.encode(claims(tenant), None, "none")),
        "public key": bearer(jwt.encode(claims(tenant), KEY, "RS256")),
        "no org": bearer(jwt.encode(without["org_id"], SECRET)),
        "org is a list": signed(tenant, org_id=[tenant.org_id]),
        "garbage": bearer("a.b.c"),
        "another scheme": {"Authorization": "Basic eA=="},
    }[what]
    async with guarded.post("/chat", json=QUESTION, headers=headers) as response:
        assert response.status == 401
        assert (await response.json())["message"] == message
    assert rows.messages(tenant.org_id) == []


async def test_audience_issuer_and_claim_names_are_settings(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    settings = {"jwt_audience": "chat", "jwt_issuer": "us", "jwt_org_claim": "tenant", "jwt_user_claim": "uid"}
    client = await aiohttp_client(await start_server(model=says("Hello"), jwt_secret=SECRET, **settings))
    right = {"aud": "chat", "iss": "us", "tenant": tenant.org_id, "uid": tenant.user_id}
    for change, status in (({}, 200), ({"aud": "shop"}, 401), ({"iss": "them"}, 401), ({"uid": "x"}, 401)):
        token = jwt.encode({"exp": time.time() + 60} | right | change, SECRET)
        async with client.post("/chat", json=QUESTION, headers=bearer(token)) as response:
            assert response.status == status


class KeyServer:
    """Serves public keys, and counts how often it is asked."""

    def __init__(self) -> None:
        self.keys = [public("one")]
        self.asked = 0

    async def serve(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response({"keys": self.keys})


def public(key_id: str) -> dict[str, Any]:
    key: dict[str, Any] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
    return key | {"kid": key_id, "use": "sig", "alg": "RS256"}


async def url_of(aiohttp_server: Any, serve: Handler) -> str:
    """Serve keys, and return where."""
    app = web.Application()
    app.router.add_get("/jwks", serve)
    server = await aiohttp_server(app)
    return f"http://{server.host}:{server.port}/jwks"


@pytest.fixture
async def keys(aiohttp_server: Any) -> tuple[KeyServer, str]:
    keys = KeyServer()
    return keys, await url_of(aiohttp_server, keys.serve)


async def test_keys_are_fetched_from_their_url_once(
    keys: tuple[KeyServer, str], start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    source, url = keys
    client = await aiohttp_client(await start_server(model=says("Hello"), jwt_jwks_url=url))
    good = jwt.encode(claims(tenant), KEY, "RS256", headers={"kid": "one"})
    unknown = jwt.encode(claims(tenant), KEY, "RS256", headers={"kid": "two"})
    # The public key, taken for a secret.
    head, body = (
        base64url_encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": "one"}, claims(tenant))
    )
    mac = hmac.digest(json.dumps(public("one")).encode(), head + b"." + body, "sha256")
    confused = b".".join([head, body, base64url_encode(mac)]).decode()
    for token, status in ((good, 200), (good, 200), (unknown, 401), (confused, 401)):
        async with client.post("/chat", json=QUESTION, headers=bearer(token)) as response:
            assert response.status == status
    assert source.asked == 1


async def test_keys_that_cannot_be_had_are_503(
    start_server: StartServer,
    aiohttp_client: Any,
    tenant: Tenant,
    unused_tcp_port: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = await aiohttp_client(await start_server(jwt_jwks_url=f"http://127.0.0.1:{unused_tcp_port}/jwks"))
    token = jwt.encode(claims(tenant), KEY, "RS256", headers={"kid": "one"})
    async with client.post("/chat", json=QUESTION, headers=bearer(token)) as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "10"
    assert "Connection refused" in logged(caplog, "Keys unavailable")[0].cause  # type: ignore[attr-defined]


@pytest.mark.parametrize("body", ["not JSON", "[]", '{"keys": []}', '{"keys": [{"kty": "none"}]}'])
async def test_keys_that_are_none_are_503_and_asked_for_once(
    start_server: StartServer, aiohttp_client: Any, aiohttp_server: Any, tenant: Tenant, body: str
) -> None:
    asked = []

    async def serve(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(text=body)

    url = await url_of(aiohttp_server, serve)
    client = await aiohttp_client(await start_server(jwt_jwks_url=url))
    token = jwt.encode(claims(tenant), KEY, "RS256", headers={"kid": "one"})
    for _ in range(2):
        async with client.post("/chat", json=QUESTION, headers=bearer(token)) as response:
            assert response.status == 503
    assert len(asked) == 1


async def test_known_key_does_not_wait_for_an_unknown_one(
    start_server: StartServer,
    aiohttp_client: Any,
    aiohttp_server: Any,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.api.tokens.FETCH_AGAIN_S", 0.0)
    asked: list[web.Request] = []
    may_answer = asyncio.Event()

    async def serve(request: web.Request) -> web.Response:
        asked.append(request)
        if len(asked) > 1:
            await may_answer.wait()
        return web.json_response({"keys": [public("one")]})

    url = await url_of(aiohttp_server, serve)
    client = await aiohttp_client(await start_server(model=says("Hello"), jwt_jwks_url=url))

    async def ask(key_id: str) -> int:
        token = jwt.encode(claims(tenant), KEY, "RS256", headers={"kid": key_id})
        async with client.post("/chat", json=QUESTION, headers=bearer(token)) as response:
            return int(response.status)

    assert await ask("one") == 200
    unknown = asyncio.create_task(ask("two"))
    await eventually(lambda: len(asked) == 2)
    assert await ask("one") == 200
    may_answer.set()
    assert await unknown == 401


async def ticket(client: Any, headers: dict[str, str], **more: Any) -> str:
    async with client.post("/chat/stream/ticket", json=QUESTION | more, headers=headers) as response:
        assert response.status == 200
        answer = await response.json()
    assert answer["expires_in"] == 60
    given: str = answer["ticket"]
    return given


async def test_ticket_asks_its_question_once(guarded: Any, rows: Rows, tenant: Tenant) -> None:
    given = await ticket(guarded, signed(tenant))
    assert rows.messages(tenant.org_id) == []
    async with guarded.get("/chat/stream", params={"ticket": given}) as response:
        assert response.status == 200
        assert events(await response.read())[-1]["fullText"] == "Hello"
    async with guarded.get("/chat/stream", params={"ticket": given}) as response:
        assert response.status == 401
        assert (await response.json())["error"] == "Bad ticket"
    assert [content for _, content, _ in rows.messages(tenant.org_id)] == ["Hi", "Hello"]
    assert rows("select message from tickets where org_id = %s", tenant.org_id) == [(None,)]


async def test_used_ticket_lets_its_reader_come_back_to_its_reply_only(
    guarded: Any, rows: Rows, tenant: Tenant
) -> None:
    given = await ticket(guarded, signed(tenant))
    async with guarded.get("/chat/stream", params={"ticket": given}) as response:
        reply_id = response.headers["x-message-id"]
        await response.read()
    async with guarded.post("/chat", json=QUESTION, headers=signed(tenant)) as response:
        another_id = (await response.json())["message_id"]
    for wanted, status in ((reply_id, 200), (another_id, 401), (str(uuid.uuid4()), 401)):
        headers = {"Last-Event-ID": f"{wanted}:2"}
        async with guarded.get("/chat/stream", params={"ticket": given}, headers=headers) as response:
            assert response.status == status
            if status == 200:
                read = events(await response.read())
                assert [event["token"] for event in read] == ["", "llo", ""]


async def test_old_ticket_is_401(guarded: Any, rows: Rows, tenant: Tenant) -> None:
    given = await ticket(guarded, signed(tenant))
    rows("update tickets set created_at = now() - interval '61 seconds' where org_id = %s", tenant.org_id)
    async with guarded.get("/chat/stream", params={"ticket": given}) as response:
        assert response.status == 401
    assert rows.messages(tenant.org_id) == []


async def test_ticket_of_a_stranger_to_the_org_is_403(guarded: Any, rows: Rows, tenant: Tenant) -> None:
    headers = signed(Tenant(rows.tenant().org_id, tenant.user_id))
    async with guarded.post("/chat/stream/ticket", json=QUESTION, headers=headers) as response:
        assert response.status == 403


async def test_more_running_replies_than_a_user_may_have_are_429(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(sim_delay_ms=(1000.0, 1000.0), user_stream_limit=2))
    running = [await client.post("/chat/stream", json=QUESTION, headers=tenant.headers) for _ in range(2)]
    async with client.post("/chat/stream", json=QUESTION, headers=tenant.headers) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "1"
        expected = "You have 2 replies running, expected at most 2 at once."
        assert (await response.json())["message"] == expected
    async with client.post("/chat", json=QUESTION, headers=rows.tenant(tenant.org_id).headers) as response:
        assert response.status == 200
    for response in running:
        response.close()


async def test_more_turns_a_minute_than_a_user_may_ask_are_429(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(user_turns_per_minute=3))
    for status in (200, 200, 200, 429, 429):
        async with client.post("/chat", json=QUESTION, headers=tenant.headers) as response:
            assert response.status == status
            assert status == 200 or 1 <= int(response.headers["Retry-After"]) <= 60
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(6,)]
