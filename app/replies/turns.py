"""The turns of this server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from aiohttp import web

from app.errors import stopping
from app.models import Conversation, Model, alternate
from app.replies.lease import Lease
from app.replies.meter import Meter, utf8_length
from app.replies.openings import Openings
from app.replies.reader import Client
from app.replies.reply import Ended, Reply
from app.replies.saves import Saves
from app.replies.tasks import Tasks
from app.replies.turn import Home, Turn
from app.settings import Settings
from app.statuses import FinalStatus
from app.storage.store import Caller, OpenedTurn

# For replies that a stop ends to be stored, and their readers to be told.
LAST_WORDS_S = 2.5


class Turns:
    def __init__(
        self, settings: Settings, openings: Openings, saves: Saves, model: Model, lease: Lease, tasks: Tasks
    ) -> None:
        self.stopping = False
        # How many replies each user has running, or opening.
        self.running: Counter[Caller] = Counter()
        # How many have ended so.
        self.ended: Counter[FinalStatus] = Counter()
        self._settings = settings
        self._openings = openings
        self._saves = saves
        self._model = model
        self._tasks = tasks
        self._new_meter = partial(
            Meter,
            system_bytes=utf8_length(settings.model_system or ""),
            max_tokens=settings.model_max_tokens,
        )
        self._home = Home(lease, saves, tasks, settings.reply_limit_chars, self._over, self._stored)
        self._turns: dict[str, Turn] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def replies(self) -> list[Reply]:
        """Those whose end is not stored yet."""
        return [turn.reply for turn in self._turns.values()]

    @property
    def are_ours(self) -> bool:
        """Whether no other server may have closed them."""
        return self._home.lease.is_valid()

    def find(self, reply_id: str, caller: Caller | None = None) -> Turn | None:
        """Return a turn whose end is not stored yet; with a caller, only if it is theirs."""
        turn = self._turns.get(reply_id)
        return turn if turn is not None and caller in (None, turn.caller) else None

    async def open(
        self,
        caller: Caller,
        message: str,
        reply_id: str,
        client: Client,
        window_s: float | None,
        conversation: Callable[..., Conversation] = Conversation,
        **row: Any,
    ) -> OpenedTurn:
        """Store the question and an empty reply, and let the model answer `client`. `row`: more of turn_open.

        `conversation` makes what the model is given.

        Where nothing was stored, the row says why, and the client has no reply.

        Raises:
            ApiError: 503, this server stops, or the database is away.
        """
        if self.stopping:
            raise stopping()
        self._count(caller, 1)
        try:
            opened = await self._openings.open(caller, message, reply_id, **row)
            if self.stopping and opened.chat_id is not None:
                self._openings.revoke(caller, reply_id, row["replaces"])
                raise stopping()
        except BaseException:
            self._count(caller, -1)
            raise
        if opened.chat_id is None:
            self._count(caller, -1)
            return opened
        prompt = alternate(opened.history, message)
        meter = self._new_meter(prompt, granted=opened.granted)
        turn = self._turns[reply_id] = Turn(caller, reply_id, opened, self._home, meter, window_s=window_s)
        client.attach(turn.reply)
        turn.start(self._model, conversation(prompt, client.reads_along, opened.granted, client.reads_reasoning))
        return opened

    def _over(self, turn: Turn) -> None:
        self._count(turn.caller, -1)

    def _stored(self, turn: Turn) -> None:
        del self._turns[turn.reply.id]
        assert isinstance(turn.reply.state, Ended)
        self.ended[turn.reply.state.status] += 1

    def _count(self, caller: Caller, change: int) -> None:
        self.running[caller] += change
        if not self.running[caller]:
            del self.running[caller]
        if self.running:
            self._idle.clear()
        else:
            self._idle.set()

    async def checkpoint(self) -> None:
        """Store what has grown, of those whose last checkpoint is CHECKPOINT_S ago."""
        before_s = asyncio.get_running_loop().time() - self._settings.checkpoint_s
        due = [turn for turn in self._turns.values() if turn.has_grown and turn.stored_at_s <= before_s]
        await self._saves.store(due)

    async def prove(self) -> None:
        """End what others have closed while this server could not show that it lives.

        Raises:
            DatabaseAway: as it says.
        """
        if self._turns:
            await self._saves.prove(list(self._turns.values()))

    async def settle(self) -> None:
        """Store what is owed, and take back what is doubtful, as far as the database allows."""
        await self._saves.settle()
        await self._openings.take_back()

    async def drain(self, grace_s: float) -> None:
        """Refuse new turns, let those that run end by themselves for `grace_s`, then end the rest.

        Those that would be held for a reader end at once. A second call does nothing.
        """
        if self.stopping:
            return
        self.stopping = True
        for turn in list(self._turns.values()):
            if turn.reply.window_s is not None:
                turn.reply.window_s = 0.0
            if turn.reply.is_held:
                turn.end("disconnected")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        for turn in list(self._turns.values()):
            turn.end("interrupted")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), LAST_WORDS_S)

    async def finish(self, timeout_s: float) -> None:
        """Wait for what is under way; what is owed is tried once more."""
        self._tasks.run(self.settle())
        await self._tasks.finish(timeout_s)


TURNS: web.AppKey[Turns] = web.AppKey("turns", Turns)
