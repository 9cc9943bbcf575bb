"""The handlers: they conduct the store, the model and the stream.

All that can be answered with a 4xx or 5xx happens before a stream's headers are out.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from functools import lru_cache
from uuid import uuid4

from aiohttp import web

from app.api import tickets
from app.api.identity import CALLER, refuse_caller
from app.api.inputs import Question, check_question, read_key, read_question, refuse_spelling
from app.api.resume import (
    connect,
    log_disconnect,
    read_along,
    read_last_event_id,
    read_reply,
    reply_body,
    wait_for_reply,
)
from app.errors import ApiError, stopping, undone, unknown_chat
from app.logs import OUTCOME
from app.models import Conversation, Message, Model, Reply, excerpt
from app.replies.sse import ClientGone, encode_chunk, encode_numbered_tokens, encode_tokens
from app.replies.turns import MODEL_CLOSE_TIMEOUT_S, TURNS, Ended, Turn, failure
from app.settings import SETTINGS
from app.storage.db import Conflict, DatabaseAway
from app.storage.store import STORE, FinalStatus, OpenedTurn, storable

log = logging.getLogger(__name__)

MODEL: web.AppKey[Model] = web.AppKey("model")

# A write does not yield by itself, so a model that never waits would keep the event loop to itself.
TOKENS_BEFORE_YIELD = 32

# Longer pieces would only fill the memory that is kept for words.
WORD_CHARS = 32


async def send(request: web.Request) -> web.Response:
    """`POST /chat`: the whole reply as JSON."""
    question = await read_question(request)
    key = read_key(request)
    # With a key its client may come back and ask again, so that its leaving is no reason to stop.
    turn = Turn(request[CALLER], whole=True, asker=request.transport if key is None else None)
    opened = await open_turn(request, turn, question, key, stream=False)
    if isinstance(opened, str):
        return web.json_response(await wait_for_reply(request, opened))
    request.app[TURNS].start(turn, conduct(request.app, turn, opened))
    ended = await asyncio.shield(turn.ended)
    request[OUTCOME] = ended.status
    if ended.status == "disconnected":
        log_disconnect(turn)
        # nginx's status for this; nobody reads it but the log.
        raise ApiError(499, "Client closed request", failure(*ended))
    if ended.status == "interrupted":
        raise stopping()
    if ended.status != "complete":
        raise ApiError(502, "Reply failed", failure(*ended))
    if not ended.stored:
        raise ApiError(503, "Database unavailable", failure(*ended), headers={"Retry-After": "1"})
    return web.json_response(reply_body(turn.chat_id, turn.reply_id, turn.text, turn.created_at))


async def stream(request: web.Request) -> web.StreamResponse:
    """`POST /chat/stream`: the reply as events."""
    return await stream_reply(request, await read_question(request), numbered=False)


async def stream_to_event_source(request: web.Request) -> web.StreamResponse:
    """`GET /chat/stream`: the same, each event with an id; with `Last-Event-ID`, the rest of a reply."""
    ticket = request.query.get("ticket")
    if "Last-Event-ID" in request.headers:
        # EventSource reconnects after any end of a stream and sends the question again.
        reply_id, offset, ended = read_last_event_id(request.headers["Last-Event-ID"])
        if ended:
            # It has all; this makes it stop.
            return web.Response(status=204)
        if ticket is not None:
            await tickets.show_again(request, ticket, reply_id)
        return await read_reply(request, reply_id, offset, numbered=True)
    turn_id = str(uuid4())
    if ticket is not None:
        question = await tickets.use(request, ticket, turn_id)
    else:
        refuse_spelling(request.query, "chat_id", "chatId")
        question = check_question(request, request.query.get("message"), request.query.get("chatId"))
    return await stream_reply(request, question, reply_id=turn_id, numbered=True)


async def stream_reply(
    request: web.Request, question: Question, *, reply_id: str | None = None, numbered: bool
) -> web.StreamResponse:
    """Open a turn and write its reply as events; the last one says how it ended."""
    turn = Turn(request[CALLER], reply_id)
    opened = await open_turn(request, turn, question, read_key(request), stream=True)
    if isinstance(opened, str):
        return await read_reply(request, opened, 0, numbered=numbered, asked=True)
    if turn.interrupted_by == "interrupted":
        request.app[TURNS].start(turn, conduct(request.app, turn, opened))
        raise stopping()
    reader = await connect(request, turn.chat_id, turn.reply_id, 0, numbered=numbered)
    turns = request.app[TURNS]
    turns.attach(turn, reader, 0)
    turns.start(turn, conduct(request.app, turn, opened))
    return await read_along(request, turn, reader)


async def conduct(app: web.Application, turn: Turn, conversation: Conversation) -> None:
    """Run the model to some end, save what it said, and tell who reads it."""
    turns = app[TURNS]
    try:
        status = await turn.relay(relay(app, turn, conversation))
        stored = await turns.close(turn, status)
    except asyncio.CancelledError:
        turns.close(turn, "interrupted")
        turn.finish(Ended("interrupted", stored=False))
        raise
    if not stored:
        log.error("Reply not stored yet", extra={"outcome": status})
    elif status == "complete" and conversation.stream:
        log.info("Stream completed", extra={"tokensStreamed": len(turn.pieces), "totalLength": turn.length})
    turn.finish(Ended(status, stored))
    await turns.tell(turn)


async def relay(app: web.Application, turn: Turn, conversation: Conversation) -> FinalStatus:
    """Let the model speak, and write what it says to the turn's reader if it has one."""
    pieces = turn.pieces
    try:
        await turn.reader_is_back()
        reply = app[MODEL](conversation)
        turn.total_tokens = getattr(reply, "total_tokens", None)
        if conversation.stream:
            log.info("Starting stream", extra=known(textLength=getattr(reply, "text_length", None)))
        try:
            async for piece in reply:
                if turn.paused:
                    await turn.reader_is_back()
                piece, chunk = spoken(piece) if len(piece) <= WORD_CHARS else spoken.__wrapped__(piece)
                if not piece:
                    continue
                pieces.append(piece)
                turn.length += len(piece)
                reader = turn.reader
                if reader is not None:
                    if reader.numbered:
                        sent = turn.length - len(piece)
                        chunk = encode_chunk(encode_numbered_tokens(piece, turn.reply_id, sent))
                    try:
                        if reader.stream.send(chunk):
                            await reader.stream.drain()
                    except ClientGone:
                        app[TURNS].lose(turn, reader)
                    if turn.paused:
                        await turn.reader_is_back()
                elif turn.remote is not None:
                    turn.remote.more.set()
                if len(pieces) % TOKENS_BEFORE_YIELD == 0:
                    await asyncio.sleep(0)
        finally:
            await close_model(reply)
    except (Exception, asyncio.CancelledError) as exc:
        task = asyncio.current_task()
        if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        # A CancelledError that is not ours: something that the model waited for was cancelled.
        log.exception(
            "Stream failed" if conversation.stream else "Reply failed", extra={"tokensStreamed": len(pieces)}
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


async def open_turn(
    request: web.Request, turn: Turn, question: Question, key: str | None, *, stream: bool
) -> Conversation | str:
    """Store the question and an empty reply, and return what the model is to be given.

    If the key is an earlier turn's, store nothing and return that turn's reply.

    Raises:
        ApiError: 403, the user is not in the org; 404, no such chat; 409, the chat has a running reply, or the key
            was used for another question; 429 or 503, there is no room for the turn; 503, the database is away.
    """
    turns = request.app[TURNS]
    asked = hashlib.sha256(json.dumps([question.message, str(question.chat_id)]).encode()).digest()
    turns.admit(turn)
    try:
        row = await store_turn(request, turn, question, key, asked)
        if row.chat_id is None:
            turns.dismiss(turn)
            return await why_not_opened(request, row, key, asked)
    except BaseException:
        turns.dismiss(turn)
        raise
    turn.chat_id, turn.created_at = row.chat_id, row.created_at
    messages = [Message(said["role"], said["content"]) for said in row.history]
    messages.append(Message("user", question.message))
    return Conversation(messages, stream)


async def store_turn(
    request: web.Request, turn: Turn, question: Question, key: str | None, asked: bytes
) -> OpenedTurn:
    turns = request.app[TURNS]
    # Twice, if another turn began in this chat at the same moment: then it is there to be seen.
    for _ in range(2):
        try:
            return await request.app[STORE].turn_open(
                org_id=turn.caller.org_id,
                user_id=turn.caller.user_id,
                chat_id=question.chat_id,
                new_chat_id=str(uuid4()),
                title=excerpt(question.message, words=8, chars=60),
                question_id=str(uuid4()),
                reply_id=turn.reply_id,
                content=question.message,
                server_id=turns.server_id,
                history_limit=request.app[SETTINGS].history_limit_messages,
                key=key,
                asked=asked,
            )
        except Conflict:
            continue
        except DatabaseAway as exc:
            if exc.sent:
                turns.undo(turn)
            raise
    raise reply_runs(None)


async def why_not_opened(request: web.Request, row: OpenedTurn, key: str | None, asked: bytes) -> str:
    """Return the reply that the key has opened before, or raise what was wrong with the question."""
    if not row.caller_known:
        refuse_caller()
    org_id, user_id = request[CALLER]
    if key is not None:
        earlier = await request.app[STORE].turn_by_key(org_id=org_id, user_id=user_id, key=key, asked=asked)
        if earlier is not None and not earlier.same:
            message = "The Idempotency-Key was used for another question, expected a new one for each."
            raise ApiError(409, "Key reused", message, details={"message_id": earlier.reply_id})
        if earlier is not None:
            reply_id: str = earlier.reply_id
            return reply_id
    if not row.chat_known:
        raise unknown_chat()
    if row.running_id is None:
        # The key's turn has just been taken back.
        raise undone()
    raise reply_runs(row.running_id)


def reply_runs(running_id: str | None) -> ApiError:
    details = {"message_id": running_id} if running_id else {}
    message = "The chat has a reply that still runs; read it, stop it, or wait for its end."
    return ApiError(409, "Reply running", message, headers={"Retry-After": "1"}, details=details)


def known(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}
