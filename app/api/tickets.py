"""Tickets: a question is kept, and then asked by GET, with neither it nor the user in the URL.

A ticket is worth an Idempotency-Key: its turn is the one that has the ticket's hash for a key. So showing it uses
nothing up, whatever comes of the question.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from typing import NamedTuple
from uuid import UUID

from aiohttp import web

from app.api.identity import CALLER, refuse_caller
from app.api.inputs import Question, read_question, refuse_reasoning
from app.api.limits import LIMITS
from app.api.sim import read_sim, refuse_sim_in_url
from app.errors import ApiError
from app.models.knobs import Knobs
from app.storage.store import STORE, Caller

# For a ticket to ask. Once it has asked, it leads to its reply for as long as it is kept.
LIFETIME_S = 300.0

# Its org's id, by which it is found as all else is, and 24 random bytes; after a dot what its question asks of the
# simulator, which its hash keeps as it is.
TICKET = re.compile(r"([0-9a-f]{32})[A-Za-z0-9_-]{32}(?:\.([A-Za-z0-9_-]{1,667}))?", re.ASCII)


class Ticket(NamedTuple):
    question: Question
    key: str
    # None if it has not asked yet.
    reply_id: str | None


async def issue(request: web.Request) -> web.Response:
    """`POST /chat/stream/ticket`: keep a question, to be asked with `GET /chat/stream?ticket=…`."""
    question = await read_question(request)
    refuse_reasoning(question, "false, and reasoning=1 in the URL of the stream")
    caller = request[CALLER]
    request.app[LIMITS].admit_ticket(caller)
    ticket = caller.org_id.replace("-", "") + secrets.token_urlsafe(24) + packed(question.sim)
    issued = await request.app[STORE].ticket_issue(
        **caller._asdict(),
        hash=digest(ticket),
        **question.place(),
        message=question.message,
    )
    if not issued:
        refuse_caller()
    return web.json_response({"ticket": ticket, "expires_in": int(LIFETIME_S)})


async def find(request: web.Request, ticket: str) -> Ticket:
    """Return what a ticket stands for; its user becomes the request's caller.

    Raises:
        ApiError: 401, there is no such ticket (any more); 400, `sim` is not what it should be.
    """
    refuse_sim_in_url(request, "in the body that the ticket is for")
    match = TICKET.fullmatch(ticket)
    if match is None:
        raise refused()
    org_id, hashed = str(UUID(match[1])), digest(ticket)
    row = await request.app[STORE].ticket_find(org_id=org_id, hash=hashed, lifetime_s=LIFETIME_S)
    if row is None:
        raise refused()
    request[CALLER] = Caller(org_id, row.user_id)
    sim = read_sim(request, match[2] and base64.urlsafe_b64decode(match[2] + "==").decode("ascii"))
    question = Question(row.message, row.chat_id, replaces=row.replaces, last=row.last, sim=sim)
    return Ticket(question, hashed.hex(), row.reply_id)


def packed(knobs: Knobs | None) -> str:
    if knobs is None:
        return ""
    return "." + base64.urlsafe_b64encode(knobs.spelled.encode("ascii")).decode("ascii").rstrip("=")


def digest(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("ascii")).digest()


def refused() -> ApiError:
    message = f"The ticket is unknown, another reply's, or older than {LIFETIME_S:g} seconds."
    return ApiError(401, "Bad ticket", message)
