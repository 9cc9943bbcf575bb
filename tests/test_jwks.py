"""The keys of tokens: fetched from their URL, again and again."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.utils import base64url_encode
from serving import StartServer
from support import Tenant, eventually, logged, says

from app.api import jwks
from app.api.jwks import LIMIT_BYTES

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHERS = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
QUESTION = {"message": "Hi"}


def public(key_id: str | None = "one", key: Any = KEY, **more: Any) -> dict[str, Any]:
    """Return a public key as few issuers do: without the one algorithm that it is for."""
    name = next((name for name, other in OTHERS.items() if other is key), "RS256")
    document: dict[str, Any] = jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True)
    document.pop("key_ops", None)
    return document | ({} if key_id is None else {"kid": key_id}) | {"use": "sig"} | more


class KeyServer:
    """Serves keys, or what a test says, and counts how often it is asked."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: list[Any] = [public()]
        self.asked = 0
        # In place of the keys.
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.answer is not None:
            return await self.answer(request)
        return web.json_response({"keys": self.keys})

    async def fail(self, request: web.Request) -> web.Response:
        return web.Response(status=500)


@pytest.fixture
async def issuer(aiohttp_server: Any) -> KeyServer:
    issuer = KeyServer()
    app = web.Application()
    app.router.add_get("/jwks", issuer.serve)
    server = await aiohttp_server(app)
    issuer.url = f"http://{server.host}:{server.port}/jwks"
    return issuer


class Asker:
    """Asks with tokens of its own, and gives the status."""

    def __init__(self, client: Any, tenant: Tenant) -> None:
        self._client = client
        self._claims = {"org_id": tenant.org_id, "sub": tenant.user_id, "exp": time.time() + 60}

    def token(self, key_id: str | None = "one", algorithm: str = "RS256", key: Any = KEY) -> str:
        return jwt.encode(self._claims, key, algorithm, headers={} if key_id is None else {"kid": key_id})

    async def send(self, token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        async with self._client.get("/chats", headers=headers) as response:
            return int(response.status)

    async def __call__(self, key_id: str | None = "one", algorithm: str = "RS256", key: Any = KEY) -> int:
        return await self.send(self.token(key_id, algorithm, key))


StartAsker = Callable[..., Awaitable[Asker]]


@pytest.fixture
def asking(start_server: StartServer, aiohttp_client: Any, issuer: KeyServer, tenant: Tenant) -> StartAsker:
    async def start(**settings: Any) -> Asker:
        settings = {"jwt_jwks_url": issuer.url} | settings
        return Asker(await aiohttp_client(await start_server(model=says("Hello"), **settings)), tenant)

    return start


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done every few minutes or seconds, is done all the time."""
    monkeypatch.setattr(jwks, "MAX_AGE_S", 0.01)
    monkeypatch.setattr(jwks, "FETCH_AGAIN_S", 0.01)


async def test_keys_are_fetched_from_their_url_once(asking: StartAsker, issuer: KeyServer) -> None:
    ask = await asking()
    assert [await ask(), await ask(), await ask("two")] == [200, 200, 401]
    assert issuer.asked == 1


async def test_public_key_is_never_taken_for_a_secret(
    asking: StartAsker, issuer: KeyServer, tenant: Tenant
) -> None:
    # One that is a secret is not, either: it is public.
    issuer.keys.append({"kty": "oct", "kid": "secret", "k": "c2VjcmV0" * 8, "use": "sig"})
    ask = await asking(jwt_algorithms=frozenset({"HS256", "RS256"}))
    claims = {"org_id": tenant.org_id, "sub": tenant.user_id, "exp": time.time() + 60}
    for key_id, secret in (("one", json.dumps(public()).encode()), ("secret", b"secret" * 8)):
        head, body = (
            base64url_encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": key_id}, claims)
        )
        mac = hmac.digest(secret, head + b"." + body, "sha256")
        assert await ask.send(b".".join([head, body, base64url_encode(mac)]).decode()) == 401
    assert await ask() == 200


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", *OTHERS])
async def test_key_without_an_algorithm_serves_each_allowed_one_of_its_type(
    asking: StartAsker, issuer: KeyServer, algorithm: str
) -> None:
    issuer.keys = [public(), *(public(name, key) for name, key in OTHERS.items())]
    ask = await asking(jwt_algorithms=frozenset({algorithm}))
    right = (algorithm, algorithm, OTHERS[algorithm]) if algorithm in OTHERS else ("one", algorithm, KEY)
    assert await ask(*right) == 200
    # Another algorithm, a key of another type, and one that is not listed.
    other = "RS384" if algorithm == "RS256" else "RS256"
    assert await ask("one", other) == 401
    assert await ask("ES256" if right[0] == "one" else "one", *right[1:]) == 401
    assert await ask(None, *right[1:]) == 401


async def test_key_of_one_algorithm_or_of_another_use_serves_no_other(
    asking: StartAsker, issuer: KeyServer
) -> None:
    private = jwt.get_algorithm_by_name("RS256").to_jwk(KEY, as_dict=True)
    issuer.keys = [
        public("one", alg="RS256"),
        public("for encryption", use="enc"),
        private | {"kid": "private"},
        public("listed", kid=["listed"]),
        public("broken", n=7),
        public("empty", n=""),
        {"kty": "RSA", "kid": "empty"},
        "no key",
        public(None),
    ]
    ask = await asking(jwt_algorithms=frozenset({"RS256", "RS512"}))
    assert [await ask("one", "RS256"), await ask(None, "RS256")] == [200, 200]
    assert await ask("one", "RS512") == 401
    for key_id in ("for encryption", "private", "listed", "broken", "empty"):
        assert await ask(key_id, "RS256") == 401


@pytest.mark.usefixtures("hasty")
async def test_key_that_is_no_longer_listed_is_refused(asking: StartAsker, issuer: KeyServer) -> None:
    ask = await asking()
    assert await ask() == 200
    issuer.keys = [public("two")]
    # The second fetch from now on began after the change.
    asked = issuer.asked
    await eventually(lambda: issuer.asked >= asked + 2)
    # No token of another key has made it fetch.
    assert [await ask(), await ask("two")] == [401, 200]


@pytest.mark.usefixtures("hasty")
async def test_last_keys_serve_on_for_an_hour_while_none_can_be_had(
    asking: StartAsker, issuer: KeyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask = await asking()
    assert await ask() == 200
    issuer.answer = issuer.fail
    asked = issuer.asked
    await eventually(lambda: issuer.asked >= asked + 5)
    assert [await ask(), await ask("two")] == [200, 503]
    # Once, not for each fetch or request.
    [record] = logged(caplog, "Keys unavailable")
    assert record.cause == "ValueError: the status is 500, expected 200"  # type: ignore[attr-defined]
    assert record.lastServesForS == 3600  # type: ignore[attr-defined]

    now_s = jwks.now_s
    monkeypatch.setattr(jwks, "now_s", lambda: now_s() + jwks.STALE_S)
    # At once, and not only with the next fetch: the process may have been frozen.
    assert await ask() == 503
    await eventually(lambda: logged(caplog, "Keys too old"))
    asked = issuer.asked
    await eventually(lambda: issuer.asked >= asked + 3)
    assert len(logged(caplog, "Keys too old")) == len(logged(caplog, "Keys unavailable")) == 1

    issuer.answer = None
    await eventually(lambda: logged(caplog, "Keys available again"))
    assert [await ask(), await ask("two")] == [200, 401]


async def test_known_key_does_not_wait_for_an_unknown_one_and_many_unknown_ones_fetch_once(
    asking: StartAsker, issuer: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = await asking()
    assert await ask() == 200
    monkeypatch.setattr(jwks, "FETCH_AGAIN_S", 0.0)
    may_answer = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await may_answer.wait()
        return web.json_response({"keys": [public(), public("two")]})

    issuer.answer = wait
    asking_two = [asyncio.create_task(ask("two")) for _ in range(20)]
    asking_three = asyncio.create_task(ask("three"))
    await eventually(lambda: issuer.asked == 2)
    assert await ask() == 200
    monkeypatch.setattr(jwks, "FETCH_AGAIN_S", 10.0)
    may_answer.set()
    assert await asyncio.gather(*asking_two) == [200] * 20
    assert await asking_three == 401
    assert issuer.asked == 2


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("not JSON", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "ValueError: there is no key for ES256, RS256"),
        ('{"keys": []}', "ValueError: there is no key for ES256, RS256"),
        ('{"keys": {"one": 1}}', "ValueError: there is no key for ES256, RS256"),
        ('{"keys": [{"kty": "none"}]}', "ValueError: there is no key for ES256, RS256"),
        ("[" * 100_000, "RecursionError: maximum recursion depth exceeded while decoding a JSON array"),
        (" " * (LIMIT_BYTES + 1), "ValueError: the answer is longer than 262144 bytes"),
    ],
)
async def test_keys_that_are_none_are_503_and_asked_for_once(
    asking: StartAsker, issuer: KeyServer, caplog: pytest.LogCaptureFixture, text: str, cause: str
) -> None:
    async def serve(request: web.Request) -> web.Response:
        return web.Response(text=text)

    issuer.answer = serve
    ask = await asking()
    assert [await ask(), await ask()] == [503, 503]
    assert issuer.asked == 1
    [record] = logged(caplog, "Keys unavailable")
    assert record.cause.startswith(cause)  # type: ignore[attr-defined]
    assert record.lastServesForS == 0  # type: ignore[attr-defined]


async def test_keys_elsewhere_are_not_followed(
    asking: StartAsker, issuer: KeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound(issuer.url)

    issuer.answer = redirect
    ask = await asking()
    assert await ask() == 503
    assert issuer.asked == 1
    [record] = logged(caplog, "Keys unavailable")
    assert record.cause == "ValueError: the status is 302, expected 200"  # type: ignore[attr-defined]


async def test_keys_that_cannot_be_had_are_503(
    asking: StartAsker, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    ask = await asking(jwt_jwks_url=f"http://127.0.0.1:{unused_tcp_port}/jwks")
    async with ask._client.get("/chats", headers={"Authorization": f"Bearer {ask.token()}"}) as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "10"
        assert (await response.json())["message"] == "The keys of tokens cannot be had."
    assert "Cannot connect to host 127.0.0.1" in logged(caplog, "Keys unavailable")[0].cause  # type: ignore[attr-defined]


async def test_keys_that_drip_in_are_given_up_as_a_whole(
    asking: StartAsker, issuer: KeyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        # A byte comes well within any timeout for one.
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    issuer.answer = drip
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.2)
    ask = await asking()
    async with asyncio.timeout(5):
        assert await ask() == 503
    [record] = logged(caplog, "Keys unavailable")
    assert record.cause == "TimeoutError: no whole answer within 0.2 s"  # type: ignore[attr-defined]
