"""Bearer tokens: JSON Web Tokens (RFC 7519) that say who is asking."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_URL, uuid5

import jwt
from aiohttp import web

from app.api.identity import USUAL_UUID, Identify, not_once
from app.api.inputs import json_type
from app.api.jwks import KeySet
from app.errors import ApiError
from app.settings import Settings
from app.storage.store import Caller

# Between the clocks of who signs a token and who checks it.
LEEWAY_S = 5

REFUSALS: dict[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "The token has expired.",
    jwt.ImmatureSignatureError: "The token is not valid yet.",
    jwt.InvalidAudienceError: "The token's claim aud is not the expected one.",
    jwt.InvalidIssuerError: "The token's claim iss is not the expected one.",
    jwt.InvalidSignatureError: "The token's signature is not valid.",
}


class Tokens:
    """Checks tokens against one secret, or the keys at a URL."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # A public key must never be taken for the secret of an HMAC.
        by_secret = settings.jwt_jwks_url is None
        self._algorithms = sorted(name for name in settings.jwt_algorithms if name.startswith("HS") == by_secret)
        self.keys: KeySet | None = None
        if settings.jwt_jwks_url is not None:
            self.keys = KeySet(settings.jwt_jwks_url, self._algorithms)

    async def caller(self, request: web.Request) -> Caller:
        """Return whom the request's token names.

        Raises:
            ApiError: 401, there is no token, or it is not valid; 503, the keys cannot be had.
        """
        settings, token = self._settings, bearer(request)
        try:
            claims = jwt.decode(
                token,
                await self._key(token),
                algorithms=self._algorithms,
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp"], "verify_aud": settings.jwt_audience is not None},
            )
        except jwt.InvalidAlgorithmError:
            expected = ", ".join(self._algorithms)
            raise refused(f"The token is signed with another algorithm, expected {expected}.") from None
        except jwt.MissingRequiredClaimError as exc:
            raise refused(f"The token has no claim {exc.claim}.") from None
        except jwt.PyJWTError as exc:
            raise refused(REFUSALS.get(type(exc), "The token is not valid.")) from None
        return Caller(claimed_id(claims, settings.jwt_org_claim), claimed_id(claims, settings.jwt_user_claim))

    async def _key(self, token: str) -> Any:
        if self.keys is None:
            return self._settings.jwt_secret
        header = jwt.get_unverified_header(token)
        algorithm = header.get("alg")
        if algorithm not in self._algorithms:
            raise jwt.InvalidAlgorithmError
        return await self.keys.find(header.get("kid"), algorithm)


def check_tokens(app: web.Application, settings: Settings) -> Identify:
    """Return what finds out by token who is asking; the application keeps its keys up to date."""
    tokens = Tokens(settings)
    if tokens.keys is not None:
        app.cleanup_ctx.append(tokens.keys.kept_up)
    return tokens.caller


def bearer(request: web.Request) -> str:
    """Return the request's token."""
    given = request.headers.getall("Authorization", [])
    if len(given) != 1:
        raise refused(not_once("Authorization", given))
    scheme, _, token = given[0].partition(" ")
    # Bytes that are no UTF-8 come as lone surrogates, which PyJWT cannot encode.
    if scheme.lower() != "bearer" or not token.strip() or not token.isascii():
        raise refused("Authorization is expected as: Bearer <token>.")
    return token.strip()


def claimed_id(claims: dict[str, Any], name: str) -> str:
    """Return the UUID that a claim is, or else the one that stands for what the issuer says in it.

    That is of version 5, named by the claim in the namespace of the issuer, which is of version 5 itself, named by
    `iss` in the namespace of URLs (RFC 9562, 5.5).
    """
    if name not in claims:
        raise refused(f"The token has no claim {name}.")
    claim, issuer = claims[name], claims.get("iss")
    if not isinstance(claim, str):
        raise refused(f"The token's claim {name} is {json_type(claim)}, expected a string.")
    if USUAL_UUID.fullmatch(claim):
        return claim.lower()
    if not claim:
        raise refused(f"The token's claim {name} is empty, expected some text.")
    if not isinstance(issuer, str) or not issuer:
        raise refused(f"The token's claim {name} is no UUID, expected one, or a text in iss.")
    try:
        return str(uuid5(uuid5(NAMESPACE_URL, issuer), claim))
    except UnicodeEncodeError:
        raise refused(f"The token's claim {name} or iss holds a lone surrogate, expected Unicode text.") from None


def refused(message: str) -> ApiError:
    return ApiError(401, "Unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
