"""What was said before: a user's chats, a chat's messages."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from app.api.identity import CALLER, parse_uuid, refuse_caller
from app.api.inputs import Place, iso, read_chats_page, read_page, read_words
from app.errors import ApiError, unknown_chat
from app.settings import SETTINGS
from app.storage.store import STORE

# Of the messages in a page, as UTF-8; a longer one is a page by itself.
PAGE_BYTES = 500_000


async def list_chats(request: web.Request) -> web.Response:
    """`GET /chats`: the caller's chats, the last one that was active first."""
    limit, before = read_chats_page(request)
    rows = await request.app[STORE].chat_list(
        **request[CALLER]._asdict(),
        before_at=before and before.updated_at,
        before_id=before and before.chat_id,
        words=read_words(request),
        page_size=limit + 1,
    )
    if not rows:
        refuse_stranger(request)
    chats = [row for row in rows if row.chat_id is not None]
    page = chats[:limit]
    more = str(Place(page[-1].updated_at, page[-1].chat_id)) if len(chats) > limit else None
    return web.json_response({"chats": list(map(describe, page)), "next": more})


def describe(chat: Any) -> dict[str, str]:
    """Return what a client is told of a chat."""
    return {
        "chat_id": chat.chat_id,
        "title": chat.title,
        "created_at": iso(chat.created_at),
        "updated_at": iso(chat.updated_at),
    }


async def list_messages(request: web.Request) -> web.Response:
    """`GET /chats/{chat_id}/messages`: from the chat's end, oldest first within a page."""
    chat = names(request)
    limit, before = read_page(request)
    rows = await request.app[STORE].message_list(**chat, before=before, page_size=limit + 1, page_bytes=PAGE_BYTES)
    first = known(request, rows[0] if rows else None)
    if not first.before_known:
        raise ApiError(404, "Not found", "There is no such message to page before.")
    messages = [
        {
            "message_id": row.message_id,
            "role": row.role,
            "content": row.content,
            "status": row.status,
            "created_at": iso(row.created_at),
        }
        for row in rows
        if row.fits
    ][-limit:]
    more = first.message_id is not None and len(rows) > len(messages)
    return web.json_response({"messages": messages, "next": messages[0]["message_id"] if more else None})


def names(request: web.Request) -> dict[str, str]:
    """Return who is asking, and about which chat, as the statements take it."""
    return request[CALLER]._asdict() | {"chat_id": parse_uuid("chat_id", request.match_info["chat_id"])}


def known(request: web.Request, row: Any | None) -> Any:
    """Return a chat's row.

    Raises:
        ApiError: 403, the user is not in the org; 404, they have no such chat.
    """
    if row is None:
        refuse_stranger(request)
    if row is None or row.chat_id is None:
        raise unknown_chat()
    return row


def refuse_stranger(request: web.Request) -> None:
    """Refuse a caller who is not in the org, unless their first question will make them."""
    if not request.app[SETTINGS].jwt_create_users:
        refuse_caller()
