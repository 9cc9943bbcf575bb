"""Bearer tokens: JSON Web Tokens (RFC 7519) that say who is asking."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any
from uuid import UUID

import jwt
from aiohttp import web

from app.api.identity import not_once
from app.errors import ApiError
from app.settings import Settings
from app.storage.store import Caller

log = logging.getLogger(__name__)

# Between the clocks of who signs a token and who checks it.
LEEWAY_S = 5

# An unknown key id makes us ask for the keys again; so often at most.
FETCH_AGAIN_S = 10.0
FETCH_TIMEOUT_S = 5


class Tokens:
    """Checks tokens against one secret, or the keys at a URL (RFC 7517)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = None
        if settings.jwt_jwks_url is not None:
            self._client = jwt.PyJWKClient(settings.jwt_jwks_url, cache_keys=False, timeout=FETCH_TIMEOUT_S)
        # A public key must never be taken for the secret of an HMAC.
        self._algorithms = sorted(
            name for name in settings.jwt_algorithms if name.startswith("HS") == (self._client is None)
        )
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at_s = float("-inf")
        self._failed = False
        self._fetching = asyncio.Lock()

    async def caller(self, request: web.Request) -> Caller:
        """Return whom the request's token names.

        Raises:
            ApiError: 401, there is no token, or it is not valid; 503, the keys cannot be had.
        """
        given = request.headers.getall("Authorization", [])
        if len(given) != 1:
            raise refused(not_once("Authorization", given))
        scheme, _, token = given[0].partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise refused("Authorization is expected as: Bearer <token>.")
        settings = self._settings
        try:
            claims = jwt.decode(
                token.strip(),
                await self._key(token.strip()),
                algorithms=self._algorithms,
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp"], "verify_aud": settings.jwt_audience is not None},
            )
        except jwt.ExpiredSignatureError:
            raise refused("The token has expired.") from None
        except jwt.InvalidAlgorithmError:
            expected = ", ".join(self._algorithms)
            raise refused(f"The token is signed with another algorithm, expected {expected}.") from None
        except jwt.MissingRequiredClaimError as exc:
            raise refused(f"The token has no claim {exc.claim}.") from None
        except jwt.PyJWTError:
            raise refused("The token is not valid.") from None
        return Caller(
            claimed_uuid(claims, settings.jwt_org_claim),
            claimed_uuid(claims, settings.jwt_user_claim),
        )

    async def _key(self, token: str) -> Any:
        if self._client is None:
            return self._settings.jwt_secret
        key_id = jwt.get_unverified_header(token).get("kid")
        if key_id not in self._keys:
            async with self._fetching:
                if key_id not in self._keys and time.monotonic() - self._fetched_at_s > FETCH_AGAIN_S:
                    await self._fetch(self._client)
        if key_id in self._keys:
            return self._keys[key_id]
        if self._failed:
            message = "The keys of tokens cannot be had."
            raise ApiError(503, "Keys unavailable", message, headers={"Retry-After": f"{FETCH_AGAIN_S:.0f}"})
        raise jwt.InvalidKeyError

    async def _fetch(self, client: jwt.PyJWKClient) -> None:
        try:
            keys = await asyncio.to_thread(client.get_signing_keys, refresh=True)
        except (jwt.PyJWKClientError, jwt.PyJWKSetError, OSError, ValueError) as exc:
            log.warning("Keys unavailable", extra={"cause": f"{type(exc).__name__}: {exc}"})
            self._failed = True
        else:
            self._keys = {key.key_id: key for key in keys}
            self._failed = False
        self._fetched_at_s = time.monotonic()


def claimed_uuid(claims: dict[str, Any], name: str) -> str:
    if name not in claims:
        raise refused(f"The token has no claim {name}.")
    try:
        return str(UUID(claims[name]))
    except (TypeError, ValueError, AttributeError):
        raise refused(f"The token's claim {name} is no UUID.") from None


def refused(message: str) -> ApiError:
    return ApiError(401, "Unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
