"""The handlers of turns: ask, read on, stop.

All that can be answered with a 4xx or 5xx happens before a stream's headers are out.
"""

from __future__ import annotations

import logging
from math import ceil

from aiohttp import web

from app.api import tickets
from app.api.asking import ask
from app.api.identity import CALLER, parse_uuid
from app.api.inputs import (
    Question,
    check_question,
    iso,
    read_key,
    read_last_event_id,
    read_offset,
    read_question,
    read_switch,
    refuse_reasoning,
    refuse_spelling,
)
from app.api.sim import SIMULATOR, read_sim, refuse_sim_in_url
from app.errors import ApiError, stopping, undone, unknown_reply
from app.logs import OUTCOME, USAGE
from app.replies.elsewhere import ELSEWHERE
from app.replies.events import closing_words
from app.replies.mirrors import MIRRORS
from app.replies.reader import READERS, EventReader, WholeReader
from app.replies.reply import Ended, Reply
from app.replies.turns import TURNS
from app.settings import SETTINGS
from app.statuses import ERRORS, STOPPING, TAKEN_BACK, Cut, bad_offset, failure
from app.storage.db import DatabaseAway

log = logging.getLogger(__name__)

# Before a question is worth asking again that a busy model has not answered, where its provider has not said; and
# the most that is passed on of what it has.
BUSY_S = 5
BUSY_MOST_S = 3600


async def send(request: web.Request) -> web.Response:
    """`POST /chat`: the whole reply as JSON."""
    question = await read_question(request)
    refuse_reasoning(question, "false, or a stream")
    key = read_key(request)
    # With a key its client may come back and ask again, so that its leaving is no reason to stop.
    window_s = 0.0 if key is None else None
    reader = WholeReader(request)
    with request.app[READERS].reading(request[CALLER], reader):
        reply = await ask(request, reader, question, key, window_s)
        over = await reader.read(reply)
    if over == "gone":
        log_disconnect(request, reply)
        # nginx's status for this; nobody reads it but the log.
        raise ApiError(499, "Client closed request", failure("disconnected"))
    if isinstance(over, Cut):
        raise {STOPPING: stopping(), TAKEN_BACK: undone()}.get(over, DatabaseAway(sent=True))
    request[OUTCOME] = over.status
    if over.status == "interrupted" and request.app[TURNS].stopping:
        raise stopping()
    if over.status != "complete":
        raise reply_failed(over)
    if over.usage is not None:
        request[USAGE] = over.usage._asdict()
    return web.json_response(
        {
            "chat_id": reply.chat_id,
            "message_id": reply.id,
            "reply": reply.text,
            "created_at": iso(reply.created_at),
            **closing_words(over),
        }
    )


async def stream(request: web.Request) -> web.StreamResponse:
    """`POST /chat/stream`: the reply as events."""
    reader, question = event_reader(request, numbered=False), await read_question(request)
    reader.reads_reasoning |= question.reasoning
    return await stream_reply(request, reader, question, read_key(request))


async def stream_to_event_source(request: web.Request) -> web.StreamResponse:
    """`GET /chat/stream`: the same, each event with an id; with `Last-Event-ID`, the rest of a reply."""
    reader = event_reader(request, numbered=True)
    given, sim = request.query.get("ticket"), read_sim(request, request.query.get("sim"))
    # EventSource reconnects after any end of a stream and sends the question again.
    last = read_last_event_id(request)
    if last is not None:
        if last.ended:
            # It has all; this makes it stop.
            return web.Response(status=204)
        if given is not None and (await tickets.find(request, given)).reply_id != last.reply_id:
            raise tickets.refused()
        return await read_reply(request, reader, last.reply_id, last.offset)
    if given is None:
        refuse_spelling(request.query, "chat_id", "chatId")
        question = check_question(request, request.query, request.query.get("chatId"))
        question, key = question._replace(sim=sim), read_key(request)
    else:
        question, key, _ = await tickets.find(request, given)
    return await stream_reply(request, reader, question, key)


async def resume(request: web.Request) -> web.StreamResponse:
    """`GET /chat/stream/{message_id}?offset=N`: the rest of a reply, as events with ids."""
    reader = event_reader(request, numbered=True)
    refuse_sim_in_url(request, "with a question")
    reply_id, offset = parse_uuid("message_id", request.match_info["message_id"]), read_offset(request)
    last = read_last_event_id(request)
    if last is not None:
        # One who reconnects by itself sends the same URL again; the offset in it is that of the first time.
        if last.reply_id != reply_id:
            raise ApiError(400, "Bad event id", f"Last-Event-ID is of {last.reply_id}, expected {reply_id}.")
        if last.ended:
            return web.Response(status=204)
        offset = last.offset
    return await read_reply(request, reader, reply_id, offset)


async def stop(request: web.Request) -> web.Response:
    """`DELETE /chat/stream/{message_id}`: end a reply; answer with how it ended, by this or before."""
    reply_id = parse_uuid("message_id", request.match_info["message_id"])
    status = await request.app[ELSEWHERE].stop(request[CALLER], reply_id)
    if status is None:
        raise unknown_reply()
    return web.json_response({"message_id": reply_id, "status": status})


def event_reader(request: web.Request, *, numbered: bool) -> EventReader:
    """Return who reads for the client of a stream; `numbered`: each event has an id.

    `fullText=0` in the query: the event `done` does not repeat the reply; `reasoning=1`: thoughts are sent, too.
    """
    return EventReader(
        request,
        request.app[SETTINGS],
        numbered=numbered,
        full_text=read_switch(request, "fullText", default=True),
        reasoning=read_switch(request, "reasoning", default=False),
    )


async def stream_reply(
    request: web.Request, reader: EventReader, question: Question, key: str | None
) -> web.StreamResponse:
    """Open a turn and write its reply as events; the last one says how it ended."""
    settings = request.app[SETTINGS]
    window_s = None if settings.unread == "finish" else settings.resume_window_s
    with request.app[READERS].reading(request[CALLER], reader):
        reply = await ask(request, reader, question, key, window_s)
        request.app[SIMULATOR].break_stream(request, reader, reply.id)
        await reader.read(reply, 0)
    note_end(request, reader, reply)
    return reader.stream


async def read_reply(request: web.Request, reader: EventReader, reply_id: str, offset: int) -> web.StreamResponse:
    """Write the rest of a reply as events, wherever it runs or ran; 204 if there is none and never will be.

    Raises:
        ApiError: 404, the caller has no such reply; 409, it has no such offset; 503, the database is away.
    """
    with request.app[READERS].reading(request[CALLER], reader):
        reply = await request.app[ELSEWHERE].attach(request[CALLER], reply_id, reader)
        if reply is None:
            raise unknown_reply()
        if offset > reply.length and await request.app[MIRRORS].is_shorter(reply, offset):
            raise ApiError(409, "Bad offset", bad_offset(offset, reply.length))
        ended = reply.state
        if isinstance(ended, Ended) and ended.status != "complete" and offset == reply.length:
            return web.Response(status=204)
        request.app[SIMULATOR].break_stream(request, reader, reply_id)
        await reader.read(reply, offset)
    note_end(request, reader, reply)
    return reader.stream


def reply_failed(ended: Ended) -> ApiError:
    message = failure(ended.status, ended.reason)
    if ended.reason not in ERRORS:
        return ApiError(502, "Reply failed", message)
    status, error, _ = ERRORS[ended.reason]
    after_s = min(ceil(ended.retry_after_s or BUSY_S), BUSY_MOST_S)
    return ApiError(status, error, message, headers={"Retry-After": str(after_s)} if status == 503 else {})


def note_end(request: web.Request, reader: EventReader, reply: Reply) -> None:
    """Say in the log how a stream ended."""
    if reader.over == "gone":
        request[OUTCOME] = "disconnected"
        log_disconnect(request, reply)
    elif isinstance(reader.over, Cut):
        request[OUTCOME] = "cut"
    elif isinstance(reply.state, Ended):
        request[OUTCOME] = reply.state.status


def log_disconnect(request: web.Request, reply: Reply) -> None:
    turn = request.app[TURNS].find(reply.id)
    extra: dict[str, object] = {"messageId": reply.id, "piecesStreamed": len(reply.pieces)}
    if turn is not None and turn.total_pieces is not None:
        extra["totalPieces"] = turn.total_pieces
    log.warning("Client disconnected during stream", extra=extra)
