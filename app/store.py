"""What is stored: one method for each file in `sql/`, of the same name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol
from uuid import UUID

from aiohttp import web

from app.db import Database

FinalStatus = Literal["complete", "disconnected", "failed", "interrupted"]

DEMO_ORG_ID = UUID("00000000-0000-0000-0000-000000000001")
DEMO_USER_ID = UUID("00000000-0000-0000-0000-000000000002")


class OpenedTurn(Protocol):
    caller_known: bool
    chat_id: UUID | None
    created_at: datetime
    history: list[dict[str, Any]]


class Store:
    """The rows each statement returns are described in its file. All methods raise what `Database.run` does."""

    def __init__(self, database: Database) -> None:
        self._run = database.run
        self._guard = database.run_on_guard
        methods = {name for name, value in vars(Store).items() if callable(value) and name[0] != "_"}
        if odd := methods ^ database.statement_names:
            raise RuntimeError(f"sql/ and Store do not match: {', '.join(sorted(odd))}")

    async def turn_open(
        self,
        *,
        org_id: UUID,
        user_id: UUID,
        chat_id: UUID | None,
        new_chat_id: UUID,
        title: str,
        question_id: UUID,
        reply_id: UUID,
        content: str,
        server_id: int,
        history_limit: int,
    ) -> OpenedTurn:
        params = {
            "org_id": org_id,
            "user_id": user_id,
            "chat_id": chat_id,
            "new_chat_id": new_chat_id,
            "title": title,
            "question_id": question_id,
            "reply_id": reply_id,
            "content": content,
            "server_id": server_id,
            "history_limit": history_limit,
        }
        row: OpenedTurn = (await self._run("turn_open", params))[0]
        return row

    async def turn_close(
        self, *, org_id: UUID, reply_id: UUID, server_id: int, content: str, status: FinalStatus
    ) -> bool:
        params = {
            "org_id": org_id,
            "reply_id": reply_id,
            "server_id": server_id,
            "content": content,
            "status": status,
        }
        return bool(await self._run("turn_close", params, repeatable=True))

    async def turn_interrupt(self) -> int:
        return len(await self._run("turn_interrupt", repeatable=True))

    async def chat_list(
        self, *, org_id: UUID, user_id: UUID, before: UUID | None, page_size: int
    ) -> Sequence[Any]:
        params = {"org_id": org_id, "user_id": user_id, "before": before, "page_size": page_size}
        return await self._run("chat_list", params, repeatable=True)

    async def message_list(
        self, *, org_id: UUID, user_id: UUID, chat_id: UUID, before: UUID | None, page_size: int
    ) -> Sequence[Any]:
        params = {
            "org_id": org_id,
            "user_id": user_id,
            "chat_id": chat_id,
            "before": before,
            "page_size": page_size,
        }
        return await self._run("message_list", params, repeatable=True)

    async def server_lock(self, *, server_id: int) -> None:
        await self._guard("server_lock", {"server_id": server_id})

    async def demo_seed(self) -> None:
        await self._run("demo_seed", {"org_id": DEMO_ORG_ID, "user_id": DEMO_USER_ID}, repeatable=True)

    async def database_ping(self) -> None:
        await self._run("database_ping", repeatable=True)


UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> str:
    """Return `text` as PostgreSQL can hold it: U+FFFD in place of NUL and of lone surrogates."""
    return UNSTORABLE.sub("\ufffd", text)


STORE: web.AppKey[Store] = web.AppKey("store", Store)
