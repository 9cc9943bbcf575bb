"""Bearer tokens: who is asking, where headers are not believed. And how much one user may ask."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from house import waiting
from jwt.utils import base64url_encode
from serving import StartServer
from support import RawClient, Rows, Tenant, logged, says

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
        ("not yet", "The token is not valid yet."),
        ("another secret", "The token's signature is not valid."),
        ("no signature", "The token is signed with another algorithm, expected HS256."),
        ("public key", "The token is signed with another algorithm, expected HS256."),
        ("no org", "The token has no claim org_id."),
        ("org is a list", "The token's claim org_id is an array, expected a string."),
        ("org is no UUID", "The token's claim org_id is no UUID, expected one, or a text in iss."),
        ("garbage", "The token is not valid."),
        ("another scheme", "Authorization is expected as: Bearer <token>."),
    ],
)
async def test_token_that_is_not_valid_is_401(
    guarded: Any, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture, what: str, message: str
) -> None:
    caplog.set_level("INFO")
    without = {name: {k: v for k, v in claims(tenant).items() if k != name} for name in ("exp", "org_id")}
    headers = {
        "expired": signed(tenant, exp=time.time() - 60),
        "not yet": signed(tenant, nbf=time.time() + 60),
        "no expiry": bearer(jwt.encode(without["exp"], SECRET)),
        "another secret": bearer(jwt.encode(claims(tenant), "x" * 32)),
        "no signature": bearer(jwt.encode(claims(tenant), None, "none")),
        "public key": bearer(jwt.encode(claims(tenant), KEY, "RS256")),
        "no org": bearer(jwt.encode(without["org_id"], SECRET)),
        "org is a list": signed(tenant, org_id=[tenant.org_id]),
        "org is no UUID": signed(tenant, org_id="acme"),
        "garbage": bearer("a.b.c"),
        "another scheme": {"Authorization": "Basic eA=="},
    }[what]
    async with guarded.post("/chat", json=QUESTION, headers=headers) as response:
        assert response.status == 401
        assert (await response.json())["message"] == message
    [request] = logged(caplog, "Request completed")
    assert (request.status, request.error) == (401, "Unauthorized")
    assert rows.messages(tenant.org_id) == []


def forged(head: str = '{"alg": "HS256"}', body: str = "{}") -> bytes:
    """Return a token of any texts, rightly signed."""
    signed = b".".join(base64url_encode(part.encode()) for part in (head, body))
    return signed + b"." + base64url_encode(hmac.digest(SECRET.encode(), signed, "sha256"))


DEEP = "[" * 2500 + "]" * 2500
ODD_HEADS = ["[]", "7", DEEP, '{"alg": "none", "x": ' + DEEP + "}"] + [
    f'{{"alg": {algorithm}, "kid": {key_id}}}'
    for algorithm, key_id in (
        *(('"HS256"', key_id) for key_id in ('["one"]', "{}", "null", "7")),
        *((algorithm, '"one"') for algorithm in ('["HS256"]', "{}", "null", '"none"', "7")),
    )
]
ODD_CLAIMS = ["[]", DEEP, '{"sub": ' + DEEP + "}", '{"exp": ' + "9" * 5000 + "}"] + [
    f'{{"{name}": {value}, "x": 0}}'
    for name in ("exp", "nbf", "iat")
    for value in ('"soon"', "1e400", "-1e400", "NaN", "Infinity", "[]", "{}", "null")
]


@pytest.mark.parametrize("settings", [{"jwt_secret": SECRET}, {"jwt_jwks_url": "http://127.0.0.1:9/"}], ids=str)
async def test_token_of_any_bytes_is_401(
    start_server: StartServer, tenant: Tenant, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(**settings)
    whole = json.dumps(claims(tenant))
    odd = [f"{whole[:-1]}, {text[1:]}" if text.startswith('{"') else text for text in ODD_CLAIMS]
    tokens = [
        *(forged(head, whole) for head in ODD_HEADS),
        *(forged(body=body) for body in odd),
        *(b"\xff", b"\xc3\xa9", forged(body=whole) + b"\xff", b".", b"..", b"....", b"a" * 8000),
        *(forged(body=json.dumps(claims(tenant, sub=sub))) for sub in (7, 7.5, True, None, "", [], {})),
        forged(body=whole.replace(tenant.user_id, "\\ud800")),
    ]
    for token in tokens:
        client = await RawClient.connect(server)
        client.send(b"GET /chats HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer " + token + b"\r\n\r\n")
        status, head = await client.read_head()
        assert (status, head[b"www-authenticate"]) == (b"HTTP/1.1 401 Unauthorized", b"Bearer"), token[:100]
    assert not logged(caplog, "Request failed")


async def test_audience_issuer_and_claim_names_are_settings(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    settings = {"jwt_audience": "chat", "jwt_issuer": "us", "jwt_org_claim": "tenant", "jwt_user_claim": "uid"}
    client = await aiohttp_client(await start_server(model=says("Hello"), jwt_secret=SECRET, **settings))
    right = {"aud": "chat", "iss": "us", "tenant": tenant.org_id, "uid": tenant.user_id}
    for change, status, message in (
        ({}, 200, None),
        ({"aud": "shop"}, 401, "The token's claim aud is not the expected one."),
        ({"iss": "them"}, 401, "The token's claim iss is not the expected one."),
        ({"uid": 1}, 401, "The token's claim uid is a number, expected a string."),
    ):
        token = jwt.encode({"exp": time.time() + 60} | right | change, SECRET)
        async with client.post("/chat", json=QUESTION, headers=bearer(token)) as response:
            assert (response.status, (await response.json()).get("message")) == (status, message)


ISSUER = "https://id.example.com/"


@pytest.mark.parametrize("sub", ["auth0|5f7c8ec7c33c6c004bbafe82", "107691503500061744567", "Jörg 🙂", "0" * 32])
async def test_claim_that_is_no_uuid_becomes_one_of_its_issuer(
    guarded: Any, rows: Rows, tenant: Tenant, sub: str
) -> None:
    user_id = str(uuid5(uuid5(NAMESPACE_URL, ISSUER), sub))
    rows("insert into users (org_id, id, email) values (%s, %s, %s)", tenant.org_id, user_id, sub)
    async with guarded.post("/chat", json=QUESTION, headers=signed(tenant, iss=ISSUER, sub=sub)) as response:
        assert response.status == 200
    assert rows("select user_id::text from chats where org_id = %s", tenant.org_id) == [(user_id,)]
    # The same text of another issuer is another user's.
    async with guarded.post("/chat", json=QUESTION, headers=signed(tenant, iss=ISSUER[:-1], sub=sub)) as response:
        assert response.status == 403


@pytest.fixture
async def creating(start_server: StartServer, aiohttp_client: Any) -> Any:
    settings = {"jwt_secret": SECRET, "jwt_create_users": True}
    return await aiohttp_client(await start_server(model=says("Hello"), **settings))


@pytest.fixture
def stranger() -> Tenant:
    return Tenant(str(uuid4()), str(uuid4()))


def made(rows: Rows, tenant: Tenant) -> list[tuple[Any, ...]]:
    """Return what there is of an org and its users."""
    return rows(
        "select orgs.name, users.id::text, users.email from orgs left join users on org_id = orgs.id"
        " where orgs.id = %s order by users.created_at",
        tenant.org_id,
    )


@pytest.mark.parametrize("path", ["/chat", "/chat/stream", "/chat/stream/ticket"])
async def test_org_and_user_are_made_with_their_first_question(
    creating: Any, rows: Rows, stranger: Tenant, path: str
) -> None:
    async with creating.post(path, json=QUESTION, headers=signed(stranger)) as response:
        assert response.status == 200
        await response.read()
    assert made(rows, stranger) == [(None, stranger.user_id, None)]
    # And a second user of the org.
    second = Tenant(stranger.org_id, str(uuid4()))
    async with creating.post(path, json=QUESTION, headers=signed(second)) as response:
        assert response.status == 200
    assert [user_id for _, user_id, _ in made(rows, stranger)] == [stranger.user_id, second.user_id]


@pytest.mark.parametrize("path", ["/chat", "/chat/stream/ticket"])
async def test_first_question_in_an_org_that_is_being_deleted_makes_it_anew(
    creating: Any, rows: Rows, stranger: Tenant, path: str
) -> None:
    rows("insert into orgs (id) values (%s)", stranger.org_id)
    rows("begin")
    rows("select from orgs where id = %s for update", stranger.org_id)
    asking = asyncio.create_task(creating.post(path, json=QUESTION, headers=signed(stranger)))
    await waiting(rows, 1)
    rows("delete from orgs where id = %s", stranger.org_id)
    rows("commit")
    assert (await asking).status == 200
    assert made(rows, stranger) == [(None, stranger.user_id, None)]


async def test_users_of_a_provider_without_orgs_are_in_one(
    start_server: StartServer, aiohttp_client: Any, rows: Rows
) -> None:
    settings = {"jwt_secret": SECRET, "jwt_create_users": True, "jwt_org_claim": "iss"}
    client = await aiohttp_client(await start_server(model=says("Hello"), **settings))
    issuer = f"https://{uuid4()}.example.com/"
    for sub in ("auth0|ann", "auth0|bob", "auth0|ann"):
        token = jwt.encode({"iss": issuer, "sub": sub, "exp": time.time() + 60}, SECRET)
        async with client.post("/chat", json=QUESTION, headers=bearer(token)) as response:
            assert response.status == 200
    org_id = str(uuid5(uuid5(NAMESPACE_URL, issuer), issuer))
    assert rows("select count(*) from users where org_id = %s", org_id) == [(2,)]
    assert rows("select count(*) from chats where org_id = %s", org_id) == [(3,)]


async def test_user_is_made_by_no_more_than_a_turns_two_statements(
    statements: list[str], creating: Any, stranger: Tenant
) -> None:
    statements.clear()
    async with creating.post("/chat", json=QUESTION, headers=signed(stranger)) as response:
        assert response.status == 200
    assert statements == ["turn_open", "turn_close"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_first_questions_at_once_make_one_user_and_are_all_answered(
    creating: Any, rows: Rows, stranger: Tenant, end: str
) -> None:
    second = Tenant(stranger.org_id, str(uuid4()))

    async def ask(tenant: Tenant, path: str) -> int:
        async with creating.post(path, json=QUESTION, headers=signed(tenant)) as response:
            return int(response.status)

    # None of them sees the rows that another is about to leave, or not.
    rows("begin")
    try:
        rows("insert into orgs (id) values (%s)", stranger.org_id)
        rows("insert into users (org_id, id) values (%s, %s)", stranger.org_id, stranger.user_id)
        asking = [
            asyncio.create_task(ask(tenant, path))
            for tenant in (stranger, second)
            for path in ("/chat", "/chat", "/chat/stream/ticket")
        ]
        await waiting(rows, len(asking))
    finally:
        rows(end)
    assert await asyncio.gather(*asking) == [200] * 6
    assert {user_id for _, user_id, _ in made(rows, stranger)} == {stranger.user_id, second.user_id}
    assert len(rows.messages(stranger.org_id)) == 2 * 4


async def test_user_who_is_not_made_yet_has_no_chats_and_is_not_made_by_looking(
    creating: Any, rows: Rows, stranger: Tenant
) -> None:
    async with creating.get("/chats", headers=signed(stranger)) as response:
        assert (response.status, await response.json()) == (200, {"chats": [], "next": None})
    some = uuid4()
    for method, path in (
        ("GET", f"/chats/{some}/messages"),
        ("GET", f"/chats/{some}/export"),
        ("GET", f"/chat/stream/{some}"),
        ("DELETE", f"/chat/stream/{some}"),
    ):
        async with creating.request(method, path, headers=signed(stranger)) as response:
            assert response.status == 404, path
    assert made(rows, stranger) == []


async def test_user_is_not_made_where_the_setting_does_not_say_so(
    guarded: Any, rows: Rows, stranger: Tenant
) -> None:
    for method, path in (("POST", "/chat"), ("POST", "/chat/stream/ticket"), ("GET", "/chats")):
        async with guarded.request(method, path, json=QUESTION, headers=signed(stranger)) as response:
            assert response.status == 403
    assert made(rows, stranger) == []


async def test_known_user_is_left_as_they_are(creating: Any, rows: Rows, tenant: Tenant) -> None:
    before = rows("select xmin, * from users where org_id = %s", tenant.org_id)
    async with creating.post("/chat", json=QUESTION, headers=signed(tenant)) as response:
        assert response.status == 200
    assert rows("select xmin, * from users where org_id = %s", tenant.org_id) == before


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
