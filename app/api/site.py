"""The test page and the probes: what is served without a caller."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from app.api.identity import Handler
from app.errors import ApiError, stopping
from app.replies.turns import TURNS
from app.storage.store import STORE

# Set when the server is to stop; for STOP_DELAY_S it still serves.
STOP: web.AppKey[asyncio.Event] = web.AppKey("stop", asyncio.Event)

# As the setting names it, without its provider; None: one of the product's own.
MODEL_NAME: web.AppKey[str | None] = web.AppKey("model_name")

WEB = Path(__file__).parents[2] / "web"
SCRIPTS_AND_STYLES = sorted(path.name for path in WEB.iterdir() if path.suffix in {".js", ".css"})

# The page's own files, and connections to whatever server its reader configures. It frames nothing and is
# framed by nobody.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src http: https:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


# Not left to the machine's own table: browsers run no script whose type is another.
CONTENT_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json"}


def page_file(name: str) -> Handler:
    """Return the handler of one file in `web/`."""
    path = WEB / name
    headers = HEADERS | {"Content-Type": f"{CONTENT_TYPES[path.suffix]}; charset=utf-8"}

    async def serve(request: web.Request) -> web.StreamResponse:
        refuse_impossible_dates(request)
        if "If-Range" in request.headers:
            # FileResponse knows dates alone there: to an ETag of before it would give a part of what is now.
            return web.Response(body=path.read_bytes(), headers=headers)
        return web.FileResponse(path, headers=headers)

    return serve


def refuse_impossible_dates(request: web.Request) -> None:
    """Refuse dates that cannot be read. FileResponse reads them too late for an answer: the connection would drop.

    What is no date at all is ignored (RFC 9110, 13.1.3).
    """
    try:
        _ = request.if_modified_since, request.if_unmodified_since, request.if_range
    except (ValueError, OverflowError):
        message = (
            "If-Modified-Since, If-Unmodified-Since or If-Range is a date that cannot be, expected one of HTTP."
        )
        raise ApiError(400, "Bad date", message) from None


async def model(request: web.Request) -> web.Response:
    """`GET /model`: which model answers, and whether it is the simulated one."""
    name = request.app[MODEL_NAME]
    return web.json_response({"model": name, "simulated": name == "sim"})


async def health(request: web.Request) -> web.Response:
    """`GET /health`: the process answers."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """`GET /ready`: it takes new turns and will go on to, and the database answers; else 503."""
    if request.app[STOP].is_set() or request.app[TURNS].stopping:
        raise stopping()
    await request.app[STORE].database_ping()
    return web.json_response({"status": "ready"})
