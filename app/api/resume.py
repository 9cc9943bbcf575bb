"""Readers of a reply, from its beginning or its middle, wherever it runs; and Stop."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import NoReturn

from aiohttp import web

from app.api.identity import CALLER, parse_uuid
from app.errors import ApiError, stopping, undone
from app.logs import OUTCOME
from app.replies.bells import Bells, Follower
from app.replies.sse import ClientGone, EventStream, encode_chunk, encode_event, encode_id
from app.replies.turns import CALL_AGAIN_S, TURNS, Reader, Turn, encode_rest, failure, is_connected
from app.settings import SETTINGS
from app.storage.db import DatabaseAway
from app.storage.store import STORE, FinalStatus, FoundReply

log = logging.getLogger(__name__)

BELLS: web.AppKey[Bells] = web.AppKey("bells", Bells)

LAST_EVENT_ID = re.compile(r"([0-9a-f-]{36}):([0-9]{1,9})(:end)?", re.ASCII)

LOOK_AGAIN_S = 0.2


def read_last_event_id(value: str) -> tuple[str, int, bool]:
    """Return the reply, the code points that its reader has, and whether that is all.

    Raises:
        ApiError: 400, it is not an id of ours.
    """
    match = LAST_EVENT_ID.fullmatch(value)
    if match is None:
        raise ApiError(400, "Bad event id", "Last-Event-ID is expected as <message_id>:<code points seen>.")
    return parse_uuid("Last-Event-ID", match[1]), int(match[2]), match[3] is not None


async def resume(request: web.Request) -> web.StreamResponse:
    """`GET /chat/stream/{message_id}?offset=N`: the rest of a reply, as events with ids."""
    offset = request.query.get("offset", "0")
    if not (offset.isascii() and offset.isdigit() and len(offset) < 10):
        raise ApiError(400, "Bad offset", f"offset is {offset[:20]!r}, expected a number of code points.")
    reply_id = parse_uuid("message_id", request.match_info["message_id"])
    return await read_reply(request, reply_id, int(offset), numbered=True)


async def stop(request: web.Request) -> web.Response:
    """`DELETE /chat/stream/{message_id}`: end a reply; answer with how it ended, by this or before."""
    reply_id = parse_uuid("message_id", request.match_info["message_id"])
    org_id, user_id = request[CALLER]
    turn = request.app[TURNS].find(reply_id)
    if turn is not None and turn.caller == request[CALLER]:
        turn.interrupt("stopped")
        ended = await asyncio.shield(turn.ended)
        if not ended.stored:
            raise ApiError(503, "Database unavailable", failure(*ended), headers={"Retry-After": "1"})
    row = await request.app[STORE].reply_stop(org_id=org_id, user_id=user_id, reply_id=reply_id)
    if row is None:
        refuse_reply()
    status = row.status
    if status in ("streaming", "stopped"):
        # Of a paused one, its server still has the model's stream.
        await request.app[BELLS].ring(row.server_id, "stop", reply_id)
    give_up_at_s = asyncio.get_running_loop().time() + request.app[SETTINGS].db_timeout_s
    while status == "streaming":
        if asyncio.get_running_loop().time() > give_up_at_s:
            message = "The server that has the reply did not answer; try again."
            raise ApiError(503, "Not stopped", message, headers={"Retry-After": "1"})
        await asyncio.sleep(LOOK_AGAIN_S / 4)
        found = await request.app[STORE].reply_find(org_id=org_id, user_id=user_id, reply_id=reply_id)
        if found is None:
            refuse_reply()
        status = found.status
    return web.json_response({"message_id": reply_id, "status": status})


async def connect(request: web.Request, chat_id: str, reply_id: str, offset: int, *, numbered: bool) -> Reader:
    """Send the headers of an event stream that goes on at `offset`.

    Of a client that is gone by now, `Turns.attach` will take note.
    """
    stream = EventStream(
        request,
        headers={"x-chat-id": chat_id, "x-message-id": reply_id},
        write_timeout_s=request.app[SETTINGS].write_timeout_s,
    )
    try:
        await stream.prepare(request)
        if numbered:
            # Sets the last event id without an event: an EventSource that loses the connection before the next
            # token comes back with it, and does not ask again.
            stream.send(encode_chunk(encode_id(f"{reply_id}:{offset}")))
    except ClientGone:
        stream.abort()
    return Reader(request, stream, request.app[TURNS].new_reader_id(request), numbered=numbered)


async def read_along(request: web.Request, turn: Turn, reader: Reader) -> web.StreamResponse:
    """Wait until the reader has all, or is no more; write the last event."""
    over = await reader.over
    if over == "left":
        request[OUTCOME] = "disconnected"
        log_disconnect(turn)
        return reader.stream
    if over == "replaced":
        request[OUTCOME] = over
        last = replaced_event()
    else:
        request[OUTCOME] = over.status
        last = last_event(reader, turn.chat_id, turn.reply_id, turn.text, *over)
    if not await write_last(request, reader, last):
        log_disconnect(turn)
    return reader.stream


async def write_last(request: web.Request, reader: Reader, last: bytes) -> bool:
    """Write the last event, and return whether the client was there to take it."""
    followers = request.app[TURNS].followers
    # A turn that has ended looks after its reader no more.
    followers.add(reader)
    try:
        await reader.stream.write_eof(last)
    except ClientGone:
        return False
    finally:
        followers.discard(reader)
    return True


async def read_reply(
    request: web.Request, reply_id: str, offset: int, *, numbered: bool, asked: bool = False
) -> web.StreamResponse:
    """Write the rest of a reply as events, wherever it runs or ran.

    Where there is no more and never will be, the answer is 204; but not to a client who has `asked`.

    Raises:
        ApiError: 404, the caller has no such reply; 409, it has no such offset; 503, the database is away.
    """
    turns = request.app[TURNS]
    org_id, user_id = request[CALLER]
    turn = turns.find(reply_id)
    if turn is not None and turn.caller == request[CALLER]:
        if offset > turn.length:
            refuse_offset(offset, turn.length)
        if await turns.resume(turn):
            reader = await connect(request, turn.chat_id, reply_id, offset, numbered=numbered)
            turns.attach(turn, reader, offset)
            return await read_along(request, turn, reader)
        await asyncio.shield(turn.ended)
    row = await request.app[STORE].reply_find(org_id=org_id, user_id=user_id, reply_id=reply_id)
    if row is None:
        if asked:
            raise undone()
        refuse_reply()
    ended = row.status not in ("streaming", "complete") and not row.resumable
    if ended and offset == len(row.content) and not asked:
        return web.Response(status=204)
    return await follow(request, row, reply_id, offset, numbered=numbered)


async def follow(
    request: web.Request, row: FoundReply, reply_id: str, offset: int, *, numbered: bool
) -> web.StreamResponse:
    """Write the rest of a reply that has ended, or runs at another server."""
    reader: Reader | None = None
    turns, bells = request.app[TURNS], request.app[BELLS]
    follower = bells.follow(turns.new_reader_id(request))
    async with aclosing(states(request, row, reply_id, follower)) as stored:
        try:
            async for row in stored:
                if reader is None:
                    if offset > len(row.content):
                        if is_open(row) and turns.stopping:
                            # Its server may have more.
                            raise stopping()
                        refuse_offset(offset, len(row.content))
                    reader = await connect(request, row.chat_id, reply_id, offset, numbered=numbered)
                    turns.followers.add(reader)
                if offset < len(row.content):
                    waits = reader.stream.send(encode_rest(row.content[offset:], reply_id, offset, numbered))
                    offset = len(row.content)
                    if waits:
                        drained = asyncio.ensure_future(reader.stream.drain())
                        while not (await asyncio.wait({drained}, timeout=CALL_AGAIN_S))[0]:
                            with suppress(DatabaseAway):
                                await bells.ring(row.server_id, "read", reply_id, follower.id)
                        await drained
        except ClientGone:
            request[OUTCOME] = "disconnected"
            log.warning("Client disconnected during stream")
            await leave(bells, row, reply_id, follower)
            reader = reader or await connect(request, row.chat_id, reply_id, offset, numbered=numbered)
            return reader.stream
        except Replaced:
            reader = reader or await connect(request, row.chat_id, reply_id, offset, numbered=numbered)
            request[OUTCOME] = "replaced"
            last = replaced_event()
        except ApiError:
            if reader is None:
                raise
            last = cut_short_event("The database did not answer.")
        else:
            assert reader is not None
            if row.status == "streaming" or row.resumable:
                await leave(bells, row, reply_id, follower)
                last = cut_short_event("This server is stopping.")
            else:
                request[OUTCOME] = row.status
                last = last_event(reader, row.chat_id, reply_id, row.content, row.status, stored=True)
        finally:
            bells.forget(follower)
            if reader is not None:
                turns.followers.discard(reader)
    if not await write_last(request, reader, last):
        log.warning("Client disconnected during stream")
    return reader.stream


async def leave(bells: Bells, row: FoundReply, reply_id: str, follower: Follower) -> None:
    """Tell the server that has a reply that it is no longer read."""
    if is_open(row):
        with suppress(DatabaseAway):
            await bells.ring(row.server_id, "left", reply_id, follower.id)


class Replaced(Exception):
    """Another reader has taken over the reply."""


async def states(
    request: web.Request, row: FoundReply, reply_id: str, follower: Follower
) -> AsyncGenerator[FoundReply, None]:
    """Yield a reply as it grows at another server, and as it is in the end.

    Raises:
        ClientGone, Replaced: as they say.
        ApiError: 503, the database is away, or the reply's turn was taken back.
    """
    bells, store = request.app[BELLS], request.app[STORE]
    org_id, user_id = request[CALLER]
    now_s = asyncio.get_running_loop().time
    called_at_s = now_s()
    answered = False
    if is_open(row):
        await bells.ring(row.server_id, "read", reply_id, follower.id)
    while is_open(row) and not request.app[TURNS].stopping:
        try:
            await asyncio.wait_for(follower.more.wait(), LOOK_AGAIN_S)
        except TimeoutError:
            pass
        else:
            answered = True
            follower.more.clear()
        if follower.replaced:
            raise Replaced
        if not is_connected(request.transport):
            raise ClientGone
        found = await store.reply_find(org_id=org_id, user_id=user_id, reply_id=reply_id)
        if found is None:
            raise undone()
        row = found
        if answered and is_open(row):
            yield row
        if now_s() - called_at_s > CALL_AGAIN_S:
            called_at_s = now_s()
            await bells.ring(row.server_id, "read", reply_id, follower.id)
    yield row


async def wait_for_reply(request: web.Request, reply_id: str) -> dict[str, str]:
    """Return the body of `POST /chat` for a reply that an earlier request has asked for, once it has ended."""
    org_id, user_id = request[CALLER]
    turn = request.app[TURNS].find(reply_id)
    if turn is not None:
        await asyncio.shield(turn.ended)
    while True:
        row = await request.app[STORE].reply_find(org_id=org_id, user_id=user_id, reply_id=reply_id)
        if row is None:
            raise undone()
        if row.status != "streaming":
            break
        if request.app[TURNS].stopping:
            raise stopping()
        if not is_connected(request.transport):
            raise ApiError(499, "Client closed request", "The client left.")
        await asyncio.sleep(LOOK_AGAIN_S)
    if row.status != "complete":
        raise ApiError(502, "Reply failed", failure(row.status, stored=True))
    return reply_body(row.chat_id, reply_id, row.content, row.created_at)


def reply_body(chat_id: str, reply_id: str, text: str, created_at: datetime) -> dict[str, str]:
    """Return the body of `POST /chat`."""
    return {
        "chat_id": chat_id,
        "message_id": reply_id,
        "reply": text,
        "created_at": iso(created_at),
    }


def is_open(row: FoundReply) -> bool:
    return row.status == "streaming" or row.resumable


def last_event(reader: Reader, chat_id: str, reply_id: str, text: str, status: FinalStatus, stored: bool) -> bytes:
    """Return the event that ends a stream. Who comes back with its id is told that there is no more."""
    event_id = f"{reply_id}:{len(text)}:end" if reader.numbered else None
    if status != "complete" or not stored:
        return error_event(
            "Stopped" if status == "stopped" else "Stream failed", failure(status, stored), event_id
        )
    done = {
        "token": "",
        "done": True,
        "fullText": text,
        "chat_id": chat_id,
        "message_id": reply_id,
        "chars": len(text),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return encode_event(done, event_id)


def error_event(error: str, message: str, event_id: str | None = None) -> bytes:
    return encode_event({"error": error, "message": message}, event_id)


def cut_short_event(why: str) -> bytes:
    """Return the event that ends a stream before its reply has ended."""
    return error_event("Cut short", f"{why} The reply may go on: come back for the rest.")


def replaced_event() -> bytes:
    return error_event("Replaced", "Another reader has taken over this reply.")


def log_disconnect(turn: Turn) -> None:
    extra = {"tokensStreamed": len(turn.pieces)}
    if turn.total_tokens is not None:
        extra["totalTokens"] = turn.total_tokens
    log.warning("Client disconnected during stream", extra=extra)


def refuse_reply() -> NoReturn:
    raise ApiError(404, "Not found", "There is no such reply.")


def refuse_offset(offset: int, length: int) -> NoReturn:
    raise ApiError(409, "Bad offset", f"offset is {offset}, expected at most {length}, what the reply has.")


def iso(moment: datetime) -> str:
    """Return `moment` in UTC with milliseconds (RFC 3339), as JavaScript's toISOString does."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
