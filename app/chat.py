"""The handlers: they conduct the store, the model and the stream.

All that can be answered with a 4xx or 5xx happens before a stream's headers are out.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple, NoReturn

from aiohttp import web

from app.db import DatabaseAway
from app.errors import ApiError
from app.identity import CALLER, parse_uuid
from app.inputs import Question, check_question, read_page, read_question
from app.logs import OUTCOME
from app.model import Conversation, Message, Model, Reply, excerpt
from app.settings import SETTINGS
from app.sse import (
    ClientGone,
    EventStream,
    encode_chunk,
    encode_event,
    encode_id,
    encode_numbered_tokens,
    encode_tokens,
)
from app.store import STORE, FinalStatus, storable
from app.turns import MODEL_CLOSE_TIMEOUT_S, TURNS, Turn, stopping

log = logging.getLogger(__name__)

MODEL: web.AppKey[Model] = web.AppKey("model")

# A write does not yield by itself, so a model that never waits would keep the event loop to itself.
TOKENS_BEFORE_YIELD = 32

# Longer pieces would only fill the memory that is kept for words.
WORD_CHARS = 32


class Opened(NamedTuple):
    chat_id: uuid.UUID
    created_at: datetime
    messages: Sequence[Message]


async def send(request: web.Request) -> web.Response:
    """`POST /chat`: the whole reply as JSON."""
    question = await read_question(request)
    turn = Turn(request, request[CALLER].org_id)
    async with request.app[TURNS].run(turn):
        opened = await open_turn(request, turn, question)
        status, stored = await run_turn(request, turn, Conversation(opened.messages, stream=False))
    if status == "interrupted":
        raise stopping()
    if status == "disconnected":
        # nginx's status for this; nobody reads it but the log.
        raise ApiError(499, "Client closed request", failure(status, stored))
    if status != "complete":
        raise ApiError(502, "Reply failed", failure(status, stored))
    if not stored:
        raise ApiError(503, "Database unavailable", failure(status, stored), headers={"Retry-After": "1"})
    return web.json_response(
        {
            "chat_id": str(opened.chat_id),
            "message_id": str(turn.reply_id),
            "reply": turn.text,
            "created_at": iso(opened.created_at),
        }
    )


async def stream(request: web.Request) -> web.StreamResponse:
    """`POST /chat/stream`: the reply as events."""
    return await stream_reply(request, await read_question(request), numbered=False)


async def stream_to_event_source(request: web.Request) -> web.StreamResponse:
    """`GET /chat/stream`: the same, each event with an id."""
    if "Last-Event-ID" in request.headers:
        # EventSource reconnects after any end of a stream and sends the question again; 204 makes it stop.
        return web.Response(status=204)
    question = check_question(request, request.query.get("message"), request.query.get("chatId"))
    return await stream_reply(request, question, numbered=True)


async def stream_reply(request: web.Request, question: Question, *, numbered: bool) -> web.StreamResponse:
    """Open a turn, write its reply as events, then one last event that says how it ended."""
    turn = Turn(request, request[CALLER].org_id)
    async with request.app[TURNS].run(turn):
        opened = await open_turn(request, turn, question)
        turn.stream = response = EventStream(
            request,
            headers={"x-chat-id": str(opened.chat_id), "x-message-id": str(turn.reply_id)},
            write_timeout_s=request.app[SETTINGS].write_timeout_s,
        )
        status, stored = await run_turn(
            request, turn, Conversation(opened.messages, stream=True), numbered=numbered
        )
        if status == "disconnected":
            return response
        if not response.prepared:
            raise stopping()
        last: dict[str, object] = {"error": "Stream failed", "message": failure(status, stored)}
        if status == "complete" and stored:
            last = {
                "token": "",
                "done": True,
                "fullText": turn.text,
                "chat_id": str(opened.chat_id),
                "message_id": str(turn.reply_id),
            }
        try:
            await response.write_eof(encode_event(last, f"{turn.reply_id}:{len(turn.text)}" if numbered else None))
        except ClientGone:
            log_disconnect(turn)
    return response


async def run_turn(
    request: web.Request, turn: Turn, conversation: Conversation, *, numbered: bool = False
) -> tuple[FinalStatus, bool]:
    """Run the model to some end and save what it said; return the status and whether it is stored."""
    turns = request.app[TURNS]
    try:
        status = await turn.relay(relay(request, turn, conversation, numbered))
    except asyncio.CancelledError:
        # Only a server that gives up waiting for its handlers does this; the save outlives it.
        turns.close(turn, "interrupted")
        raise
    request[OUTCOME] = status
    if status == "disconnected":
        log_disconnect(turn)
    stored = await turns.close(turn, status)
    if not stored:
        log.error("Reply not stored yet", extra={"outcome": status})
    elif status == "complete" and turn.stream is not None:
        log.info("Stream completed", extra={"tokensStreamed": len(turn.pieces), "totalLength": len(turn.text)})
    return status, stored


async def relay(request: web.Request, turn: Turn, conversation: Conversation, numbered: bool) -> FinalStatus:
    """Let the model speak, and write what it says to the turn's stream if it has one."""
    response = turn.stream
    message_id = str(turn.reply_id)
    pieces = turn.pieces
    sent = 0
    try:
        if response is not None:
            await response.prepare(request)
            if numbered:
                # Sets the last event id without an event: an EventSource that loses the connection before the
                # first token comes back with it, and does not ask again.
                response.send(encode_chunk(encode_id(f"{message_id}:0")))
        reply = request.app[MODEL](conversation)
        turn.total_tokens = getattr(reply, "total_tokens", None)
        if response is not None:
            log.info("Starting stream", extra=known(textLength=getattr(reply, "text_length", None)))
        try:
            async for piece in reply:
                piece, chunk = spoken(piece) if len(piece) <= WORD_CHARS else spoken.__wrapped__(piece)
                if not piece:
                    continue
                pieces.append(piece)
                if response is not None:
                    if numbered:
                        chunk = encode_chunk(encode_numbered_tokens(piece, message_id, sent))
                        sent += len(piece)
                    if response.send(chunk):
                        await response.drain()
                if len(pieces) % TOKENS_BEFORE_YIELD == 0:
                    await asyncio.sleep(0)
        finally:
            await close_model(reply)
    except ClientGone:
        return "disconnected"
    except (Exception, asyncio.CancelledError) as exc:
        task = asyncio.current_task()
        if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        # A CancelledError that is not ours: something that the model waited for was cancelled.
        log.exception(
            "Stream failed" if response is not None else "Reply failed", extra={"tokensStreamed": len(turn.pieces)}
        )
        return "failed"
    return "complete"


@lru_cache(maxsize=4096)
def spoken(piece: str) -> tuple[str, bytes]:
    """Return what is stored of a piece, and the chunk of events that is sent of it.

    Words recur: most are made once, and kept once for all the replies that hold them.
    """
    piece = storable(piece)
    return piece, encode_chunk(encode_tokens(piece))


async def close_model(reply: Reply) -> None:
    """Let the model stop its work, for a limited time."""
    try:
        async with asyncio.timeout(MODEL_CLOSE_TIMEOUT_S):
            await reply.aclose()
    except Exception:
        log.exception("Model did not close")


async def open_turn(request: web.Request, turn: Turn, question: Question) -> Opened:
    """Store the question and an empty reply.

    Raises:
        ApiError: 403, the user is not in the org; 404, no such chat; 503, the database is away.
    """
    org_id, user_id = request[CALLER]
    try:
        row = await request.app[STORE].turn_open(
            org_id=org_id,
            user_id=user_id,
            chat_id=question.chat_id,
            new_chat_id=uuid.uuid4(),
            title=excerpt(question.message, words=8, chars=60),
            question_id=uuid.uuid4(),
            reply_id=turn.reply_id,
            content=question.message,
            server_id=request.app[TURNS].server_id,
            history_limit=request.app[SETTINGS].history_limit_messages,
        )
    except DatabaseAway as exc:
        if exc.sent:
            request.app[TURNS].disown(turn)
        raise
    if not row.caller_known:
        refuse_caller()
    if row.chat_id is None:
        refuse_chat()
    messages = [Message(said["role"], said["content"]) for said in row.history]
    messages.append(Message("user", question.message))
    return Opened(row.chat_id, row.created_at, messages)


async def list_chats(request: web.Request) -> web.Response:
    """`GET /chats`: the caller's chats, newest first."""
    org_id, user_id = request[CALLER]
    limit, before = read_page(request)
    rows = await request.app[STORE].chat_list(org_id=org_id, user_id=user_id, before=before, page_size=limit + 1)
    if not rows:
        refuse_caller()
    if not rows[0].before_known:
        raise ApiError(404, "Not found", "There is no such chat to page before.")
    chats = [
        {"chat_id": str(row.chat_id), "title": row.title, "created_at": iso(row.created_at)}
        for row in rows
        if row.chat_id is not None
    ]
    page = chats[:limit]
    return web.json_response({"chats": page, "next": page[-1]["chat_id"] if len(chats) > limit else None})


async def list_messages(request: web.Request) -> web.Response:
    """`GET /chats/{chat_id}/messages`: from the chat's end, oldest first within a page."""
    org_id, user_id = request[CALLER]
    chat_id = parse_uuid("chat_id", request.match_info["chat_id"])
    limit, before = read_page(request)
    rows = await request.app[STORE].message_list(
        org_id=org_id, user_id=user_id, chat_id=chat_id, before=before, page_size=limit + 1
    )
    if not rows:
        refuse_caller()
    if rows[0].chat_id is None:
        refuse_chat()
    if not rows[0].before_known:
        raise ApiError(404, "Not found", "There is no such message to page before.")
    messages = [
        {
            "message_id": str(row.message_id),
            "role": row.role,
            "content": row.content,
            "status": row.status,
            "created_at": iso(row.created_at),
        }
        for row in rows
        if row.message_id is not None
    ]
    page = messages[-limit:]
    return web.json_response({"messages": page, "next": page[0]["message_id"] if len(messages) > limit else None})


def refuse_caller() -> NoReturn:
    raise ApiError(403, "Forbidden", "The user is not in this org.")


def refuse_chat() -> NoReturn:
    raise ApiError(404, "Not found", "There is no such chat.")


def failure(status: FinalStatus, stored: bool) -> str:
    """Return the sentence that tells a client why it does not get a whole, stored reply."""
    what = {
        "complete": "The reply is complete",
        "failed": "The model failed",
        "interrupted": "The server is stopping",
        "disconnected": "The client left",
    }[status]
    if stored:
        return f"{what}; what it said so far is saved."
    return f"{what}, but it could not be saved."


def iso(moment: datetime) -> str:
    """Return `moment` in UTC with milliseconds (RFC 3339), as JavaScript's toISOString does."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def log_disconnect(turn: Turn) -> None:
    log.warning(
        "Client disconnected during stream" if turn.stream is not None else "Client disconnected",
        extra={"tokensStreamed": len(turn.pieces)} | known(totalTokens=turn.total_tokens),
    )


def known(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}
