"""Replies that are read at another server than their home: here they grow as their rows do.

A mirror serves all the clients of this process who read the reply. It calls home again and again for as long as
there are any, and looks at the row when home answers; that the row says how the reply ended is all that ends it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Literal

from aiohttp import web

from app.replies.bells import Bells, Call
from app.replies.lease import now_s
from app.replies.reader import Client
from app.replies.reply import RUNNING, Reply
from app.replies.saves import ending
from app.statuses import AWAY, TAKEN_BACK, Cut
from app.storage.db import DatabaseAway
from app.storage.store import FoundReply, Store

log = logging.getLogger(__name__)

# How often a mirror calls home, and looks at the row though nobody rang.
CALL_AGAIN_S = 1.0

# How often rows are looked at; readers see no shorter gaps.
LOOK_S = 0.1

# By then each mirror has looked at its row, also where the bell was lost.
SEEN_S = CALL_AGAIN_S + 3 * LOOK_S

# How long home has to answer, and a row to have what its reply has: who has just read at home knows of more.
ANSWER_S = 2.0


class Mirror:
    def __init__(self, reply: Reply, org_id: str, home_id: int) -> None:
        self.reply = reply
        self.org_id = org_id
        self.home_id = home_id
        # The row was looked at after home had answered: it has what the reply had by then.
        self.answered = asyncio.Event()
        # None yet.
        self.called_at_s = float("-inf")


class Mirrors:
    def __init__(self, store: Store, bells: Bells) -> None:
        self._store = store
        self._bells = bells
        self._mirrors: dict[str, Mirror] = {}
        # Those whose row is to be looked at, and whether because their home says so.
        self._rung: dict[str, bool] = {}
        self._news = asyncio.Event()

    @property
    def count(self) -> int:
        """How many replies are read here whose home is elsewhere."""
        return len(self._mirrors)

    def attach(self, client: Client, row: FoundReply, reply_id: str, org_id: str) -> Reply:
        """Let a client read a reply that runs at another server."""
        mirror = self._mirrors.get(reply_id)
        if mirror is None:
            reply = Reply(reply_id, row.chat_id, row.created_at, on_unread=self._news.set)
            reply.say(row.content)
            mirror = self._mirrors[reply_id] = Mirror(reply, org_id, row.server_id)
        client.attach(mirror.reply)
        self._news.set()
        return mirror.reply

    async def is_known(self, reply: Reply) -> bool:
        """Wait for a reply's home to say that it has the reply; return False if it may yet be taken back."""
        mirror = self._mirrors.get(reply.id)
        if mirror is None or mirror.reply is not reply or reply.length:
            return True
        try:
            return await asyncio.wait_for(mirror.answered.wait(), ANSWER_S)
        except TimeoutError:
            return False

    async def is_shorter(self, reply: Reply, offset: int) -> bool:
        """Return whether a reply has less than `offset`; where that is not known yet, it is not said to."""
        mirror = self._mirrors.get(reply.id)
        if mirror is not None and mirror.reply is reply:
            # An answer from before may be as old as the row.
            mirror.answered.clear()
            for _ in range(round(ANSWER_S / LOOK_S)):
                if reply.length >= offset or reply.state is not RUNNING:
                    break
                await asyncio.sleep(LOOK_S)
            return reply.length < offset and mirror.answered.is_set()
        return reply.length < offset

    def hear(self, reply_id: str) -> None:
        """A reply's home says that its row is to be looked at."""
        mirror = self._mirrors.get(reply_id)
        if mirror is not None:
            self._rung[reply_id] = True
            self._news.set()

    def cut(self, why: Cut) -> None:
        for mirror in self._mirrors.values():
            mirror.reply.cut(why)

    async def leave(self) -> None:
        """Tell homes that nobody here reads their replies any longer, as far as the database allows."""
        if self._mirrors:
            with suppress(DatabaseAway):
                await self._bells.ring([self._call_to("left", mirror) for mirror in self._mirrors.values()])

    async def keep_up(self) -> None:
        """Call, look, forget, again and again. Runs until cancelled."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), CALL_AGAIN_S if self._mirrors else None)
            self._news.clear()
            try:
                await self._call()
                await self._look()
            except DatabaseAway:
                self.cut(AWAY)
            except Exception:
                log.exception("Mirrors failed")
                self.cut(AWAY)
            await asyncio.sleep(LOOK_S)

    async def _call(self) -> None:
        calls = []
        for mirror in list(self._mirrors.values()):
            if not mirror.reply.readers:
                del self._mirrors[mirror.reply.id]
                calls.append(self._call_to("left", mirror))
            elif now_s() - mirror.called_at_s >= CALL_AGAIN_S:
                mirror.called_at_s = now_s()
                calls.append(self._call_to("read", mirror))
                self._rung.setdefault(mirror.reply.id, False)
        if calls:
            await self._bells.ring(calls)

    def _call_to(self, kind: Literal["read", "left"], mirror: Mirror) -> tuple[int, Call]:
        return mirror.home_id, Call(kind, mirror.reply.id, self._bells.server_id)

    async def _look(self) -> None:
        """See what the rows have more than their mirrors, and which replies have ended."""
        rung, self._rung = self._rung, {}
        mirrors = [self._mirrors[reply_id] for reply_id in rung if reply_id in self._mirrors]
        if not mirrors:
            return
        rows = await self._store.reply_look(
            org_ids=[mirror.org_id for mirror in mirrors],
            reply_ids=[mirror.reply.id for mirror in mirrors],
            lengths=[mirror.reply.length for mirror in mirrors],
        )
        found = {row.id: row for row in rows}
        for mirror in mirrors:
            row = found.get(mirror.reply.id)
            if row is None:
                mirror.reply.cut(TAKEN_BACK)
                continue
            mirror.reply.say(row.more)
            if row.status != "streaming":
                del self._mirrors[mirror.reply.id]
                mirror.reply.end(ending(row))
            if rung[mirror.reply.id] or row.status != "streaming":
                mirror.answered.set()
            # Those, too, who have more than the reply had.
            for reader in mirror.reply.readers:
                reader.wake()


MIRRORS: web.AppKey[Mirrors] = web.AppKey("mirrors", Mirrors)
