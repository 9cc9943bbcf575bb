"""The keys with which tokens are signed, as their issuer lists them at a URL (JSON Web Key Set, RFC 7517)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import aiohttp
import jwt
from aiohttp import web

from app.errors import ApiError
from app.replies.lease import now_s
from app.replies.tasks import in_background

log = logging.getLogger(__name__)

# How old the list gets before it is asked for anew: a key that is no longer in it is refused from then on.
MAX_AGE_S = 300.0

# For how long after that the last list serves on while none can be had.
STALE_S = 3600.0

# An unknown key id makes us ask at once, and a failure again; so often at most.
FETCH_AGAIN_S = 10.0

# For the whole answer, however slowly it comes, and its size; usual ones have a few KB.
FETCH_TIMEOUT_S = 5.0
LIMIT_BYTES = 262_144


class KeySet:
    """Fetched by one task, so that no request with a known key waits for it."""

    def __init__(self, url: str, algorithms: Sequence[str]) -> None:
        self._url = url
        self._algorithms = algorithms
        # By id and algorithm: few issuers say of an RSA key which of RS256 to PS512 it is for.
        self._keys: dict[tuple[str | None, str], jwt.PyJWK] = {}
        self._good_until_s = self._asked_at_s = float("-inf")
        self._failed = False
        self._wanted = asyncio.Event()
        self._answered = asyncio.Event()

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK:
        """Return the key that a token names.

        Raises:
            jwt.InvalidKeyError: it is not listed.
            ApiError: 503, the list cannot be had.
        """
        key = self._listed(key_id, algorithm)
        if key is None and now_s() - self._asked_at_s > FETCH_AGAIN_S:
            self._answered.clear()
            self._wanted.set()
            await self._answered.wait()
            key = self._listed(key_id, algorithm)
        if key is not None:
            return key
        if self._failed:
            message = "The keys of tokens cannot be had."
            raise ApiError(503, "Keys unavailable", message, headers={"Retry-After": f"{FETCH_AGAIN_S:.0f}"})
        raise jwt.InvalidKeyError

    def _listed(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        # Also in a process that was frozen, before it has asked again.
        return self._keys.get((key_id, algorithm)) if now_s() < self._good_until_s else None

    async def kept_up(self, app: web.Application) -> AsyncIterator[None]:
        """Keep the list up to date as long as the application lives: one of its `cleanup_ctx`."""
        async with in_background([self._keep_up()]):
            yield

    async def _keep_up(self) -> None:
        # Proxies of the environment (HTTPS_PROXY) are used.
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
            while True:
                try:
                    self._take(await fetch(session, self._url))
                except Exception as exc:
                    self._note_failure(exc)
                self._asked_at_s = now_s()
                self._wanted.clear()
                self._answered.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(FETCH_AGAIN_S if self._failed else MAX_AGE_S):
                        await self._wanted.wait()

    def _take(self, document: object) -> None:
        self._keys = usable_keys(document, self._algorithms)
        self._good_until_s = now_s() + MAX_AGE_S + STALE_S
        if self._failed:
            self._failed = False
            log.info("Keys available again")

    def _note_failure(self, exc: Exception) -> None:
        """Say so once, and once more when the last list no longer serves."""
        left_s = max(0.0, self._good_until_s - now_s())
        if not self._failed:
            slow = f"no whole answer within {FETCH_TIMEOUT_S:g} s" if isinstance(exc, TimeoutError) else str(exc)
            extra = {"cause": f"{type(exc).__name__}: {slow}", "lastServesForS": round(left_s)}
            log.warning("Keys unavailable", extra=extra)
        if self._keys and not left_s:
            log.error("Keys too old")
            self._keys = {}
        self._failed = True


async def fetch(session: aiohttp.ClientSession, url: str) -> object:
    """Return the JSON at `url`. That it cannot be had is an exception of any kind."""
    raw = bytearray()
    # A redirect is not followed: the keys are from where the setting says.
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"the status is {response.status}, expected 200")
        async for piece in response.content.iter_any():
            raw += piece
            if len(raw) > LIMIT_BYTES:
                raise ValueError(f"the answer is longer than {LIMIT_BYTES} bytes")
    return json.loads(raw)


def usable_keys(document: object, algorithms: Sequence[str]) -> dict[tuple[str | None, str], jwt.PyJWK]:
    """Return the keys that tokens may be signed with, each for every algorithm that it fits.

    Raises:
        ValueError: there are none.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    keys = {}
    for jwk in listed if isinstance(listed, list) else []:
        # A private key in public proves nothing any more.
        if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig" or "d" in jwk:
            continue
        for algorithm in algorithms:
            if jwk.get("alg") in (None, algorithm) and isinstance(jwk.get("kid"), str | None):
                # Of another type than the algorithm's, or no key at all. It is to keep no other one out.
                with suppress(jwt.PyJWTError, TypeError, ValueError):
                    keys[jwk.get("kid"), algorithm] = jwt.PyJWK(jwk, algorithm)
    if not keys:
        raise ValueError(f"there is no key for {', '.join(algorithms)}")
    return keys
