"""Tickets: a question is kept, and then asked once by GET, with neither it nor who asks in the URL."""

from __future__ import annotations

import hashlib
import secrets

from aiohttp import web

from app.api.identity import CALLER, refuse_caller
from app.api.inputs import Question, read_question
from app.errors import ApiError
from app.storage.store import STORE, Caller

LIFETIME_S = 60.0


async def issue(request: web.Request) -> web.Response:
    """`POST /chat/stream/ticket`: keep a question, to be asked with `GET /chat/stream?ticket=…`."""
    question = await read_question(request)
    org_id, user_id = request[CALLER]
    ticket = secrets.token_urlsafe(24)
    issued = await request.app[STORE].ticket_issue(
        hash=digest(ticket),
        org_id=org_id,
        user_id=user_id,
        message=question.message,
        chat_id=question.chat_id,
    )
    if not issued:
        refuse_caller()
    return web.json_response({"ticket": ticket, "expires_in": int(LIFETIME_S)})


async def use(request: web.Request, ticket: str, reply_id: str) -> Question:
    """Return what the ticket asks, for the turn with this reply; its caller becomes the request's.

    Raises:
        ApiError: 401, there is no such ticket (any more).
    """
    row = await request.app[STORE].ticket_use(hash=digest(ticket), reply_id=reply_id, lifetime_s=LIFETIME_S)
    if row is None:
        raise refused()
    request[CALLER] = Caller(row.org_id, row.user_id)
    return Question(row.message, row.chat_id)


async def show_again(request: web.Request, ticket: str, reply_id: str) -> None:
    """Let who has used the ticket for this reply come back to it."""
    row = await request.app[STORE].ticket_holder(hash=digest(ticket), reply_id=reply_id)
    if row is None:
        raise refused()
    request[CALLER] = Caller(row.org_id, row.user_id)


def digest(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).digest()


def refused() -> ApiError:
    return ApiError(401, "Bad ticket", f"The ticket is unknown, used, or older than {LIFETIME_S:g} seconds.")
