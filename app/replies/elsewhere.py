"""A reply wherever its home is: found, stopped, asked to make way."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Literal

from aiohttp import web

from app.errors import ApiError, stopping
from app.replies.bells import Bells, Call
from app.replies.mirrors import SEEN_S, Mirrors
from app.replies.reader import Client
from app.replies.remotes import Remotes
from app.replies.reply import Reply
from app.replies.saves import ending
from app.replies.turns import Turns
from app.statuses import FinalStatus
from app.storage.db import DatabaseAway
from app.storage.store import Caller, FoundReply, Store

# How long a home has to answer a call that wants an answer, before it is called again.
ANSWER_S = 1.0
CALLS = 3

# How often a row is looked at that is about to change.
LOOK_AGAIN_S = 0.05


class Elsewhere:
    def __init__(
        self,
        turns: Turns,
        mirrors: Mirrors,
        remotes: Remotes,
        bells: Bells,
        store: Store,
        *,
        timeout_s: float,
    ) -> None:
        self._turns = turns
        self._mirrors = mirrors
        self._remotes = remotes
        self._bells = bells
        self._store = store
        self._timeout_s = timeout_s
        # Who has called a reply's home, and is to be woken when it answers.
        self._asking: list[tuple[str, asyncio.Event]] = []

    def take(self, call: Call) -> None:
        """Do what another server asks, or hear what it answers."""
        if call.kind == "said":
            self._mirrors.hear(call.reply_id)
        elif call.kind == "done":
            for reply_id, answer in self._asking:
                if reply_id == call.reply_id:
                    answer.set()
        else:
            self._remotes.take(call)

    async def attach(self, caller: Caller, reply_id: str, client: Client) -> Reply | None:
        """Let `client` read the caller's reply, wherever it runs or ran; return None if they have no such reply.

        Raises:
            ApiError: 503, the database is away, or it is not known yet whether the reply will stay.
        """
        give_up_at_s = asyncio.get_running_loop().time() + self._timeout_s
        while True:
            turn = self._turns.find(reply_id, caller)
            if turn is not None and self._turns.are_ours:
                client.attach(turn.reply)
                return turn.reply
            row = await self._store.reply_find(**caller._asdict(), reply_id=reply_id)
            if row is None:
                return None
            if row.status != "streaming":
                reply = Reply(reply_id, row.chat_id, row.created_at)
                reply.say(row.content)
                reply.end(ending(row))
                client.attach(reply)
                return reply
            if self._turns.stopping:
                raise stopping()
            if row.server_id != self._bells.server_id:
                return self._mirrors.attach(client, row, reply_id, caller.org_id)
            # Being opened, or ended, or taken back at this very moment; or not shown yet to be ours.
            if asyncio.get_running_loop().time() > give_up_at_s:
                raise DatabaseAway(sent=True)
            await asyncio.sleep(LOOK_AGAIN_S)

    async def stop(self, caller: Caller, reply_id: str) -> FinalStatus | None:
        """End the caller's reply as stopped; return how it ended, by this or before, None if there is none.

        Raises:
            ApiError: 503, the database is away, or the reply's home did not answer.
        """
        turn = self._turns.find(reply_id, caller)
        if turn is not None:
            turn.end("stopped")
            status = await turn.closed()
            if status is None:
                raise DatabaseAway(sent=True)
            if status == "stopped":
                return status
            # Others may have closed it, and deleted it since.
        row = await self._store.reply_find(**caller._asdict(), reply_id=reply_id)
        if row is not None and row.status == "streaming":
            row = await self._ask("stop", row.server_id, caller, reply_id)
        if row is None:
            return None
        if row.status == "streaming":
            message = "The server that has the reply did not answer; try again."
            raise ApiError(503, "Not stopped", message, headers={"Retry-After": "1"})
        return row.status

    async def stop_for_good(self, caller: Caller, reply_id: str) -> None:
        """The same for a reply whose row is about to be deleted: all its readers are told first how it ended.

        Those at other servers see that by the row.
        """
        is_seen = self._turns.find(reply_id, caller) is not None and not self._remotes.has_readers(reply_id)
        await self.stop(caller, reply_id)
        if not is_seen:
            await asyncio.sleep(SEEN_S)

    async def make_way(self, caller: Caller, reply_id: str, home_id: int) -> bool:
        """End a reply that nobody reads, for a new question in its chat; return whether it has ended.

        Raises:
            DatabaseAway: as it says.
        """
        turn = self._turns.find(reply_id, caller)
        if turn is not None:
            return turn.make_way() and await turn.closed() is not None
        row = await self._ask("yield", home_id, caller, reply_id)
        return row is None or row.status != "streaming"

    async def _ask(
        self, kind: Literal["stop", "yield"], home_id: int, caller: Caller, reply_id: str
    ) -> FoundReply | None:
        """Call a reply's home until the reply has ended, or home refuses; return its row, None if it has none."""
        now_s = asyncio.get_running_loop().time
        give_up_at_s = now_s() + CALLS * ANSWER_S
        asking = (reply_id, answer := asyncio.Event())
        self._asking.append(asking)
        try:
            while True:
                answer.clear()
                await self._bells.ring([(home_id, Call(kind, reply_id, self._bells.server_id))])
                with suppress(TimeoutError):
                    await asyncio.wait_for(answer.wait(), ANSWER_S)
                row: FoundReply | None = await self._store.reply_find(**caller._asdict(), reply_id=reply_id)
                refused = kind == "yield" and answer.is_set()
                if row is None or row.status != "streaming" or refused or now_s() > give_up_at_s:
                    return row
                # Home is opening it, or taking it back, and so answers at once that it knows no such reply.
                await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            self._asking.remove(asking)


ELSEWHERE: web.AppKey[Elsewhere] = web.AppKey("elsewhere", Elsewhere)
