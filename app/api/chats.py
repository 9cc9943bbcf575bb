"""One chat as a whole: renamed, deleted, exported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion11

from app.api.history import PAGE_BYTES, describe, known, names, refuse_stranger
from app.api.identity import CALLER
from app.api.inputs import PAGE_SIZE_LIMIT, iso, read_title
from app.errors import ApiError, unknown_chat
from app.logs import OUTCOME
from app.replies.elsewhere import ELSEWHERE
from app.replies.reader import READERS, Client
from app.replies.sse import encode_json, reset
from app.settings import SETTINGS
from app.statuses import Usage
from app.storage.store import STORE

# Questions that are asked meanwhile may keep a chat from being deleted.
DELETE_TRIES = 3

# So much is written at a time; a client has WRITE_TIMEOUT_S to read it.
WRITE_BYTES = 65_536


async def rename(request: web.Request) -> web.Response:
    """`PATCH /chats/{chat_id}`: give it another title."""
    title = await read_title(request)
    row = await request.app[STORE].chat_rename(**names(request), title=title)
    return web.json_response(describe(known(request, row)))


async def delete(request: web.Request) -> web.Response:
    """`DELETE /chats/{chat_id}`: with all that is in it, unless a reply that runs cannot be stopped."""
    chat = names(request)
    for _ in range(DELETE_TRIES):
        row = await request.app[STORE].chat_delete(**chat)
        if not row.caller_known:
            refuse_stranger(request)
        if row.running_id is not None:
            await request.app[ELSEWHERE].stop_for_good(request[CALLER], row.running_id)
        elif not row.overtaken:
            # Also where there is none: it may have been deleted by this very request, sent before.
            return web.Response(status=204)
    message = "New questions are asked in the chat again and again; try again."
    raise ApiError(503, "Not stopped", message, headers={"Retry-After": "1"})


async def export(request: web.Request) -> web.StreamResponse:
    """`GET /chats/{chat_id}/export`: the chat, then each of its messages, as lines of JSON."""
    chat = names(request)
    first = describe(known(request, await request.app[STORE].chat_find(**chat)))
    response = web.StreamResponse(
        headers={
            "Content-Type": "application/x-ndjson",
            "Content-Disposition": f'attachment; filename="chat-{chat["chat_id"]}.jsonl"',
        }
    )
    if request.version < HttpVersion11:
        response.force_close()
    with request.app[READERS].reading(request[CALLER], Client(request)):
        is_whole = False
        try:
            await response.prepare(request)
            await write(request, response, encode_line(first))
            async for page in pages(request, chat):
                await write(request, response, b"".join(map(encode_message, page)))
            await in_time(request, response.write_eof())
            is_whole = True
        except (ConnectionError, TimeoutError):
            request[OUTCOME] = "disconnected"
        except ApiError:
            request[OUTCOME] = "cut"
        finally:
            # HTTP/1.0 has no other sign of it.
            if not is_whole and request.transport is not None:
                reset(request.transport)
    return response


async def pages(request: web.Request, chat: dict[str, str]) -> AsyncIterator[Sequence[Any]]:
    """Yield a chat's messages, in order, a page at a time: however long it is, one page is in memory.

    Raises:
        ApiError: the database is away; or what was yielded last is deleted, and what follows is another chat.
    """
    after = None
    while True:
        page = await request.app[STORE].message_export(
            **chat, after=after, page_size=PAGE_SIZE_LIMIT, page_bytes=PAGE_BYTES
        )
        if not page:
            raise unknown_chat()
        after = page[-1].message_id
        if after is None:
            return
        yield page


async def write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Write as fast as the client reads.

    Raises:
        ConnectionError, TimeoutError: it has left, or reads no more.
    """
    for start in range(0, len(data), WRITE_BYTES):
        await in_time(request, response.write(data[start : start + WRITE_BYTES]))


async def in_time(request: web.Request, writing: Awaitable[None]) -> None:
    """Wait for a write: the last one, too, waits for a client who reads no more."""
    async with asyncio.timeout(request.app[SETTINGS].write_timeout_s):
        await writing


def encode_message(row: Any) -> bytes:
    message = {"message_id": row.message_id, "role": row.role, "content": row.content, "status": row.status}
    if row.role == "assistant" and row.status == "complete":
        message["stop"] = row.reason or "end"
    elif row.reason is not None:
        message["reason"] = row.reason
    if row.input_tokens is not None:
        message["usage"] = Usage(row.input_tokens, row.output_tokens, row.is_estimated)._asdict()
    finished_at = None if row.finished_at is None else iso(row.finished_at)
    return encode_line(message | {"created_at": iso(row.created_at), "finished_at": finished_at})


def encode_line(value: dict[str, Any]) -> bytes:
    return f"{encode_json(value)}\n".encode("ascii")
