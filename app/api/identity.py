"""Who is asking, and from where: checked before a handler runs."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from aiohttp import web
from multidict import MultiMapping
from yarl import URL

from app.errors import ApiError
from app.origins import normal_origin, split_authority
from app.settings import SETTINGS, Settings
from app.storage.store import Caller

USUAL_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII | re.IGNORECASE)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)


Identify = Callable[[web.Request], Awaitable[Caller]]

# How a request that is no EventSource's says who is asking.
IDENTIFY: web.AppKey[Identify] = web.AppKey("identify")


def identified(handler: Handler) -> Handler:
    """Find out who is asking, by token or by headers, before the handler runs."""

    async def admit(request: web.Request) -> web.StreamResponse:
        refuse_foreign_site(request)
        request[CALLER] = await request.app[IDENTIFY](request)
        return await handler(request)

    return admit


def identified_by_query(handler: Handler) -> Handler:
    """The same for `EventSource`, which cannot set headers: from `orgId` and `userId` in the query.

    Where a gateway has set the headers all the same, they must say the same. With a ticket, the handler finds out
    by itself; where tokens are checked, the query is not believed.
    """

    async def admit(request: web.Request) -> web.StreamResponse:
        refuse_foreign_site(request)
        if "ticket" not in request.query:
            if request.app[IDENTIFY] is from_headers:
                request[CALLER] = from_query(request)
            else:
                request[CALLER] = await request.app[IDENTIFY](request)
        return await handler(request)

    return admit


async def from_headers(request: web.Request) -> Caller:
    return caller(request.headers, ("x-org-id", "x-user-id"))


def from_query(request: web.Request) -> Caller:
    for header, name in (("x-org-id", "orgId"), ("x-user-id", "userId")):
        for value in request.headers.getall(header, []):
            if value.lower() != request.query.get(name, "").lower():
                raise ApiError(403, "Forbidden", f"{name} is another than {header}, expected the same.")
    return caller(request.query, ("orgId", "userId"))


def caller(given: MultiMapping[str], names: tuple[str, str]) -> Caller:
    org_id, user_id = (parse_uuid(name, exactly_one(name, given.getall(name, []))) for name in names)
    return Caller(org_id, user_id)


def refuse_caller() -> NoReturn:
    raise ApiError(403, "Forbidden", "The user is not in this org.")


def exactly_one(name: str, values: Sequence[str]) -> str:
    if len(values) != 1:
        raise ApiError(401, "Unauthorized", not_once(name, values))
    return values[0]


def not_once(name: str, values: Sequence[str]) -> str:
    return f"{name} is {f'given {len(values)} times' if values else 'missing'}, expected once."


def parse_uuid(name: str, value: object) -> str:
    """Return a UUID in its usual form of 36 characters, in lower case.

    Raises:
        ApiError: 400, it is none.
    """
    if isinstance(value, str) and USUAL_UUID.fullmatch(value):
        return value.lower()
    raise ApiError(
        400, "Bad UUID", f"{name} is not a UUID, expected one like 123e4567-e89b-12d3-a456-426614174000."
    )


def refuse_foreign_site(request: web.Request) -> None:
    """Refuse what another site's page sends, so that it cannot act for a user who only looks at it.

    `Origin` decides where there is one (Fetch, 3.2); where there is none, `Sec-Fetch-Site` does (an image or
    a script tag sends no origin). Clients that are no browsers send neither. A page under a name that has come to
    resolve to this machine (DNS rebinding) is of the server's own origin for its browser: only the name tells.
    """
    settings, host = request.app[SETTINGS], asked_host(request)
    if host and (settings.believes_anybody or settings.allowed_hosts) and not is_own(host, settings):
        message = f"Host is {host[:100]!r}, expected localhost, a loopback address, HOST or one in ALLOWED_HOSTS."
        raise ApiError(403, "Foreign host", message)
    origin = request.headers.get("Origin")
    if origin is None:
        if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
            return
    elif allows_origin(settings, origin) or (host and normal_origin(origin) in own_origins(host)):
        return
    raise ApiError(
        403, "Foreign origin", "The request comes from a page of another site, expected one in CORS_ORIGINS."
    )


def own_origins(host: str) -> set[str]:
    return {normal_origin(f"{scheme}://{host}") for scheme in ("http", "https")}


def allows_origin(settings: Settings, origin: str) -> bool:
    return normal_origin(origin) in settings.cors_origins


def asked_host(request: web.Request) -> str:
    """Return the host and port that the request is for; "" if it does not say, which no browser does.

    Where the target is a whole URL, that overrules the header (RFC 9112, 3.2.2).
    """
    if request.raw_path.startswith("/"):
        return request.headers.get("Host", "")
    return URL(request.raw_path).raw_authority


def is_own(host: str, settings: Settings) -> bool:
    """Whether a name is this machine's for all browsers, or the server's by its settings. Ports do not matter."""
    name = split_authority(host)[0].removeprefix("[").removesuffix("]")
    if name in {"localhost", settings.host.lower().rstrip("."), *(settings.allowed_hosts or ())}:
        return True
    if name.endswith(".localhost"):
        # RFC 6761, 6.3: no other machine's.
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
