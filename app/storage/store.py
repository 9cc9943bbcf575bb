"""What is stored: one method for each file in `sql/`, of the same name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol
from uuid import UUID

from aiohttp import web

from app.storage.db import Database

FinalStatus = Literal["complete", "disconnected", "failed", "interrupted", "stopped"]

DEMO_ORG_ID = UUID("00000000-0000-0000-0000-000000000001")
DEMO_USER_ID = UUID("00000000-0000-0000-0000-000000000002")


class Caller(NamedTuple):
    """A user and the org that they act in. Whether they belong together, each SQL statement checks."""

    org_id: UUID
    user_id: UUID


class OpenedTurn(Protocol):
    caller_known: bool
    chat_known: bool
    chat_id: UUID | None
    created_at: datetime
    history: list[dict[str, Any]]
    running_id: UUID | None


class FoundReply(Protocol):
    chat_id: UUID
    content: str
    status: Literal["streaming"] | FinalStatus
    created_at: datetime
    server_id: int
    resumable: bool


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
        key: str | None,
        asked: bytes,
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
            "key": key,
            "asked": asked,
        }
        row: OpenedTurn = (await self._run("turn_open", params))[0]
        return row

    async def turn_by_key(self, *, org_id: UUID, user_id: UUID, key: str, asked: bytes) -> Any | None:
        params = {"org_id": org_id, "user_id": user_id, "key": key, "asked": asked}
        return next(iter(await self._run("turn_by_key", params, repeatable=True)), None)

    async def turn_close(
        self,
        *,
        org_id: UUID,
        reply_id: UUID,
        server_id: int,
        content: str,
        status: FinalStatus,
        resume_window_s: float | None,
    ) -> bool:
        params = {
            "org_id": org_id,
            "reply_id": reply_id,
            "server_id": server_id,
            "content": content,
            "status": status,
            "resume_window_s": resume_window_s,
        }
        return bool(await self._run("turn_close", params, repeatable=True))

    async def turn_undo(self, *, org_id: UUID, reply_id: UUID, server_id: int) -> bool:
        params = {"org_id": org_id, "reply_id": reply_id, "server_id": server_id}
        return bool(await self._run("turn_undo", params, repeatable=True))

    async def turn_resume(self, *, org_id: UUID, reply_id: UUID, server_id: int) -> bool:
        params = {"org_id": org_id, "reply_id": reply_id, "server_id": server_id}
        return bool(await self._run("turn_resume", params, repeatable=True))

    async def turn_share(
        self, *, org_id: UUID, reply_id: UUID, server_id: int, content: str, channel: str, payload: str
    ) -> None:
        params = {
            "org_id": org_id,
            "reply_id": reply_id,
            "server_id": server_id,
            "content": content,
            "channel": channel,
            "payload": payload,
        }
        await self._run("turn_share", params, repeatable=True)

    async def reply_find(self, *, org_id: UUID, user_id: UUID, reply_id: UUID) -> FoundReply | None:
        params = {"org_id": org_id, "user_id": user_id, "reply_id": reply_id}
        return next(iter(await self._run("reply_find", params, repeatable=True)), None)

    async def reply_stop(self, *, org_id: UUID, user_id: UUID, reply_id: UUID) -> Any | None:
        params = {"org_id": org_id, "user_id": user_id, "reply_id": reply_id}
        return next(iter(await self._run("reply_stop", params, repeatable=True)), None)

    async def turn_interrupt(self, *, given_up: Sequence[int]) -> Sequence[Any]:
        return await self._run("turn_interrupt", {"given_up": list(given_up)}, repeatable=True)

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

    async def ticket_issue(
        self, *, hash: bytes, org_id: UUID, user_id: UUID, message: str, chat_id: UUID | None
    ) -> bool:
        params = {"hash": hash, "org_id": org_id, "user_id": user_id, "message": message, "chat_id": chat_id}
        return bool(await self._run("ticket_issue", params))

    async def ticket_use(self, *, hash: bytes, reply_id: UUID, lifetime_s: float) -> Any | None:
        params = {"hash": hash, "reply_id": reply_id, "lifetime_s": lifetime_s}
        return next(iter(await self._run("ticket_use", params)), None)

    async def ticket_holder(self, *, hash: bytes, reply_id: UUID) -> Any | None:
        rows = await self._run("ticket_holder", {"hash": hash, "reply_id": reply_id}, repeatable=True)
        return next(iter(rows), None)

    async def ticket_sweep(self, *, age_s: float) -> None:
        await self._run("ticket_sweep", {"age_s": age_s}, repeatable=True)

    async def turn_key_sweep(self, *, age_s: float) -> None:
        await self._run("turn_key_sweep", {"age_s": age_s}, repeatable=True)

    async def server_call(self, *, channel: str, payload: str) -> None:
        await self._run("server_call", {"channel": channel, "payload": payload}, repeatable=True)

    async def server_lock(self, *, server_id: int) -> Any:
        return (await self._guard("server_lock", {"server_id": server_id}))[0]

    async def demo_seed(self) -> None:
        await self._run("demo_seed", {"org_id": DEMO_ORG_ID, "user_id": DEMO_USER_ID}, repeatable=True)

    async def database_ping(self) -> None:
        await self._run("database_ping", repeatable=True)


UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> str:
    """Return `text` as PostgreSQL can hold it: U+FFFD in place of NUL and of lone surrogates."""
    return UNSTORABLE.sub("\ufffd", text)


STORE: web.AppKey[Store] = web.AppKey("store", Store)
