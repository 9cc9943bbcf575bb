"""Around every handler: request id, CORS, errors to JSON, and one log line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage

from app.api.identity import Handler, allows_origin
from app.api.usage import RATE_LIMIT
from app.errors import ApiError, stopping
from app.logs import ERROR, OUTCOME, USAGE, request_id
from app.replies.turns import TURNS
from app.settings import SETTINGS

log = logging.getLogger(__name__)

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)


# Answered while the server stops, too.
PROBES = ("/health", "/ready")


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, turn what is raised into JSON, and log it once it is answered."""
    # Not the event loop's clock: uvloop's ticks in milliseconds.
    came_s = time.perf_counter()
    given = request.headers.getall("x-request-id", [])
    request[REQUEST_ID] = given[0] if len(given) == 1 and SANE_ID.fullmatch(given[0]) else str(uuid.uuid4())
    request_id.set(request[REQUEST_ID])
    try:
        if is_preflight(request):
            response: web.StreamResponse = preflight()
        elif request.app[TURNS].stopping and request.path not in PROBES:
            raise stopping()
        else:
            response = await handler(request)
    except ApiError as exc:
        response = error_response(request, exc)
    except web.HTTPException as exc:
        response = error_response(request, translate(request, exc))
    except Exception:
        log.exception("Request failed")
        response = error_response(request, ApiError(500, "Internal error", "The server failed; it is logged."))
    extra = {
        "method": request.method,
        "path": request.path,
        "status": response.status,
        "durationMs": round((time.perf_counter() - came_s) * 1000, 1),
    }
    if ERROR in request:
        extra["error"] = request[ERROR]
    if OUTCOME in request:
        extra["outcome"] = request[OUTCOME]
    if USAGE in request:
        extra["usage"] = request[USAGE]
    log.info("Request completed", extra=extra)
    return response


async def expect(request: web.Request) -> None:
    """Ask for a body that waits for that; what else a client expects is ignored (RFC 9110, 10.1.1).

    In place of aiohttp's, which answers it with 417 past all that is here, and with 500 if it is not text.
    """
    if request.headers["Expect"].lower() == "100-continue" and request.version >= HttpVersion11:
        # Who has left by now is noticed where the body is read.
        with suppress(ConnectionError):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def take_whatever_host(server: web.Server) -> None:
    """Let it make a request of any target: aiohttp decodes the host of a whole URL before anything is handled.

    One that it cannot decode (IDNA) would end the connection's task, and leave the connection open without a word.
    """
    make = server.request_factory

    def make_request(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        try:
            return make(message, *rest)
        except ValueError:
            # For which host it is, is told by its target as it came.
            return make(message._replace(url=message.url.relative()), *rest)

    server.request_factory = make_request


def error_response(request: web.Request, exc: ApiError) -> web.Response:
    request[ERROR] = exc.error
    body = {"error": exc.error, "message": exc.message, "requestId": request[REQUEST_ID], **exc.details}
    response = web.json_response(body, status=exc.status, headers=exc.headers)
    if exc.headers.get("Connection") == "close":
        response.force_close()
    return response


def translate(request: web.Request, exc: web.HTTPException) -> ApiError:
    """Return the error that says what aiohttp meant."""
    if isinstance(exc, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(exc.allowed_methods))
        message = f"The method is {request.method}, expected {allowed}."
        return ApiError(405, "Method not allowed", message, headers={"Allow": allowed})
    if isinstance(exc, web.HTTPNotFound):
        return ApiError(404, "Not found", "There is nothing at this path.")
    return ApiError(exc.status, exc.reason, f"{exc.reason}.")


def is_preflight(request: web.Request) -> bool:
    """Whether a browser asks if a page from elsewhere may send a request (Fetch, 3.2.2)."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def preflight() -> web.Response:
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE",
            "Access-Control-Allow-Headers": (
                "authorization, content-type, idempotency-key, last-event-id, x-org-id, x-user-id, x-request-id"
            ),
            "Access-Control-Max-Age": "600",
        },
    )


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Put on every response, streams included, its id, and who may read it: allowed pages, but no cache."""
    if REQUEST_ID in request:
        response.headers["x-request-id"] = request[REQUEST_ID]
    # Shared caches go by the URL: they would give one caller's chats to the next. The page's files and the streams
    # have said by now what holds for them.
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.update(request.get(RATE_LIMIT, {}))
    response.headers.add("Vary", "Origin")
    origin = request.headers.get("Origin")
    if origin is not None and allows_origin(request.app[SETTINGS], origin):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = (
            "x-request-id, x-chat-id, x-message-id, retry-after, ratelimit, ratelimit-policy"
        )
    if request.app[SETTINGS].sim_faults:
        # So that the page offers what a question may ask of the simulator.
        response.headers["x-sim-faults"] = "1"
        response.headers.add("Access-Control-Expose-Headers", "x-sim-faults")
