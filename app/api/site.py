"""The test page and the probes: what is served without a caller."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from app.api.identity import Handler
from app.errors import stopping
from app.replies.turns import TURNS
from app.storage.store import STORE

WEB = Path(__file__).parents[2] / "web"

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
        return web.FileResponse(path, headers=headers)

    return serve


async def health(request: web.Request) -> web.Response:
    """`GET /health`: the process answers."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """`GET /ready`: it takes new turns, and the database answers; else 503."""
    if request.app[TURNS].stopping:
        raise stopping()
    await request.app[STORE].database_ping()
    return web.json_response({"status": "ready"})
