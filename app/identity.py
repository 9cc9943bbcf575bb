"""Who is asking, and from where: checked before a handler runs."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple
from uuid import UUID

from aiohttp import web
from multidict import MultiMapping

from app.errors import ApiError
from app.settings import SETTINGS

USUAL_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII | re.IGNORECASE)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Caller(NamedTuple):
    """A user and the org that they act in. Whether they belong together, each SQL statement checks."""

    org_id: UUID
    user_id: UUID


CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)


def by_headers(handler: Handler) -> Handler:
    """Take the caller from `x-org-id` and `x-user-id`."""

    async def identified(request: web.Request) -> web.StreamResponse:
        return await admit(request, request.headers, ("x-org-id", "x-user-id"), handler)

    return identified


def by_query(handler: Handler) -> Handler:
    """Take the caller from `orgId` and `userId` in the query: `EventSource` cannot set headers.

    Where a gateway has set the headers all the same, they must say the same.
    """

    async def identified(request: web.Request) -> web.StreamResponse:
        for header, name in (("x-org-id", "orgId"), ("x-user-id", "userId")):
            for value in request.headers.getall(header, []):
                if value.lower() != request.query.get(name, "").lower():
                    raise ApiError(403, "Forbidden", f"{name} is another than {header}, expected the same.")
        return await admit(request, request.query, ("orgId", "userId"), handler)

    return identified


async def admit(
    request: web.Request, given: MultiMapping[str], names: tuple[str, str], handler: Handler
) -> web.StreamResponse:
    refuse_foreign_site(request)
    org_id, user_id = (parse_uuid(name, exactly_one(name, given.getall(name, []))) for name in names)
    request[CALLER] = Caller(org_id, user_id)
    return await handler(request)


def exactly_one(name: str, values: Sequence[str]) -> str:
    if len(values) != 1:
        raise ApiError(401, "Unauthorized", f"{name} is given {len(values)} times, expected once.")
    return values[0]


def parse_uuid(name: str, value: object) -> UUID:
    """Return `value` as a UUID in its usual form of 36 characters.

    Raises:
        ApiError: 400, it is none.
    """
    # UUID() itself also takes braces, misplaced hyphens and underscores.
    if isinstance(value, str) and USUAL_UUID.fullmatch(value):
        return UUID(value)
    raise ApiError(
        400, "Bad UUID", f"{name} is not a UUID, expected one like 123e4567-e89b-12d3-a456-426614174000."
    )


def refuse_foreign_site(request: web.Request) -> None:
    """Refuse what another site's page sends, so that it cannot act for a user who only looks at it.

    `Origin` decides where there is one (Fetch, 3.2); where there is none, `Sec-Fetch-Site` does (an image or
    a script tag sends no origin). Clients that are no browsers send neither.
    """
    origin = request.headers.get("Origin")
    if origin is None:
        if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
            return
    elif origin in request.app[SETTINGS].cors_origins | {f"http://{request.host}", f"https://{request.host}"}:
        return
    raise ApiError(
        403, "Foreign origin", "The request comes from a page of another site, expected one in CORS_ORIGINS."
    )
