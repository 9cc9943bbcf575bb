"""A question becomes a turn: opened, refused, or known by its key to have been opened before."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from app.api.identity import CALLER, refuse_caller
from app.api.inputs import Question
from app.api.limits import LIMITS, Limits
from app.api.sim import SIMULATOR
from app.api.usage import note_left, too_short
from app.errors import ApiError, undone, unknown_chat
from app.replies.elsewhere import ELSEWHERE
from app.replies.mirrors import MIRRORS
from app.replies.reader import Client
from app.replies.reply import Reply
from app.replies.turns import TURNS
from app.storage.store import STORE, OpenedTurn, new_id

# A question may find one reply running that nobody reads, and meet another one before its own is opened.
ASK_TRIES = 3


async def ask(
    request: web.Request, client: Client, question: Question, key: str | None, window_s: float | None
) -> Reply:
    """Open a turn, and let `client` read its reply; if the key is an earlier turn's, let them read that one's.

    Raises:
        ApiError: 402, the budget is spent; 403, no user of the org; 404, no such chat; 409, its reply runs, it has
            gone on, or the key was used otherwise; 429 or 503, no room for the turn; 503, the database is away.
    """
    app, caller = request.app, request[CALLER]
    row = {**question.place(), "key": key, "asked": question.digest() if key else None}
    try:
        app[LIMITS].admit(caller)
        converse = app[SIMULATOR].admit(caller, key, question.sim, question.digest, client.reads_along)
    except ApiError:
        # There is room for what is no new turn.
        if (reply := await attach_earlier(request, client, row)) is None:
            raise
        return reply
    for _ in range(ASK_TRIES):
        opened = await app[TURNS].open(caller, question.message, new_id(), client, window_s, converse, **row)
        note_left(request, opened)
        if client.reply is not None:
            return app[SIMULATOR].noted(client.reply, question.sim)
        replaces = row["replaces"]
        if (reply := await attach_earlier(request, client, row)) is not None:
            app[LIMITS].give_back(caller)
            return reply
        if row["replaces"] != replaces:
            continue
        refuse_question(opened, app[LIMITS])
        if opened.running_id is None or opened.running_server_id is None:
            # Others of the chat come first again and again; else the key has just become free.
            if opened.overtaken:
                break
        elif question.replaces is not None:
            await app[ELSEWHERE].stop_for_good(caller, opened.running_id)
        elif not await app[ELSEWHERE].make_way(caller, opened.running_id, opened.running_server_id):
            break
    raise reply_runs(opened.running_id) if opened.running_id or opened.overtaken else undone()


def refuse_question(opened: OpenedTurn, limits: Limits) -> None:
    """Refuse what would not be opened however often it is tried."""
    if not opened.caller_known:
        refuse_caller()
    if not opened.chat_known:
        raise unknown_chat()
    if opened.gone_on:
        message = (
            "What replaces names is not in the chat, or last (if not said: the reply to that) is not its end."
        )
        raise ApiError(409, "Gone on", message)
    if opened.short is not None:
        limits.over_budget[opened.short] += 1
        raise too_short(opened.short)


async def attach_earlier(request: web.Request, client: Client, row: dict[str, Any]) -> Reply | None:
    """Let `client` read the reply that the key has opened before; return None if there is none, or it was busy.

    What a busy one has replaced is gone, so that `row` is then to replace that one.

    Raises:
        ApiError: 409, the key was used for another question; 503, the reply may be taken back.
    """
    given = request[CALLER]._asdict() | {name: row[name] for name in ("key", "asked", "replaces")}
    earlier = row["key"] and await request.app[STORE].turn_by_key(**given)
    if not earlier:
        return None
    if not earlier.same:
        message = "The Idempotency-Key was used for another question, expected a new one for each."
        raise ApiError(409, "Key reused", message, details={"message_id": earlier.reply_id})
    if earlier.to_replace:
        row |= {"replaces": earlier.reply_id, "last": None}
        return None
    reply = await request.app[ELSEWHERE].attach(request[CALLER], earlier.reply_id, client)
    if reply is None or not await request.app[MIRRORS].is_known(reply):
        raise undone()
    return reply


def reply_runs(running_id: str | None) -> ApiError:
    details = {"message_id": running_id} if running_id else {}
    message = "The chat has a reply that still runs; read it, stop it, or wait for its end."
    return ApiError(409, "Reply running", message, headers={"Retry-After": "1"}, details=details)
