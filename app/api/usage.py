"""What a user has used, in tokens, and what budgets leave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from aiohttp import web

from app.api.history import refuse_stranger
from app.api.identity import CALLER
from app.errors import ApiError
from app.storage.store import STORE, OpenedTurn

# The header fields of an answer to a question to which budgets apply.
RATE_LIMIT: web.RequestKey[dict[str, str]] = web.RequestKey("rate_limit", dict)

# A reservation is given back when its reply ends, which nobody knows the time of.
RESERVED_S = 5


async def read_usage(request: web.Request) -> web.Response:
    """`GET /usage`: the caller's turns and tokens of this day and month (UTC), and each budget that applies."""
    row = await request.app[STORE].usage_read(**request[CALLER]._asdict())
    if not row.caller_known:
        refuse_stranger(request)
    return web.json_response(
        {
            "day": {"turns": row.day_turns, "input": row.day_input, "output": row.day_output},
            "month": {"turns": row.month_turns, "input": row.month_input, "output": row.month_output},
            "budgets": row.budgets,
        }
    )


def note_left(request: web.Request, opened: OpenedTurn) -> None:
    """Let the answer to a question say what is left."""
    # Not where the key is an earlier turn's: what this one would have left is not what is left.
    if opened.budgets and (opened.chat_id is not None or opened.short is not None):
        request[RATE_LIMIT] = rate_limit(opened.budgets)


def rate_limit(budgets: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the header fields that say what is left (draft-ietf-httpapi-ratelimit-headers-10), in whole units."""
    policies, limits = [], []
    for budget in budgets:
        name = f'"{budget["scope"]}-{budget["period"]}"'
        # Said, because where it is not a unit is a request.
        policies.append(f'{name};q={int(budget["units"])};qu="units"')
        limits.append(f"{name};r={max(0, int(budget['left']))};t={budget['resets_s']}")
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(limits)}


def too_short(short: Literal["used", "reserved"]) -> ApiError:
    """Return the refusal of a question that some budget does not leave enough for."""
    if short == "used":
        # Not a 429: clients repeat those by themselves, and it would be in vain until the window ends.
        return ApiError(402, "Budget spent", "The budget is spent; GET /usage says when it begins anew.")
    message = "What the budget has left is set aside for replies that run; ask again when they have ended."
    return ApiError(429, "Budget reserved", message, headers={"Retry-After": str(RESERVED_S)})
