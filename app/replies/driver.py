"""What a model says, into its reply: piece by piece, no faster than it is wanted, and only while that is ours."""

from __future__ import annotations

import asyncio

from app.models import Reasoning, Stop, Usage
from app.models import Reply as ModelReply
from app.replies.lease import Lease
from app.replies.meter import Meter
from app.replies.reply import RUNNING, Reply

# A model that never waits would keep the event loop to itself.
PIECES_BEFORE_YIELD = 32


class Driver:
    def __init__(self, reply: Reply, lease: Lease, meter: Meter) -> None:
        self._reply = reply
        self._lease = lease
        self._meter = meter
        # Others may have closed the reply: said once they are known not to have.
        self._unsaid: list[str] = []

    async def take(self, pieces: ModelReply) -> None:
        """Take what the model says until all is said, or no more is wanted.

        Raises:
            TooLong: it said more than a reply may hold.
            BudgetSpent: it said more than the budgets allow.
            Exception: what the model raises.
        """
        # Not isinstance: Python 3.11 takes 8 us to look for all that a protocol has, and 37 where it is not there.
        if hasattr(pieces, "push"):
            while await pieces.push(self._say):
                if not await self._wanted():
                    return
            self._meter.end()
            return
        # Not those that the reply has: of empty pieces there may be any number.
        taken = 0
        async for piece in pieces:
            is_wanted = self._note(piece) if isinstance(piece, Reasoning | Usage | Stop) else self._say(piece)
            if not is_wanted and not await self._wanted():
                return
            taken += 1
            if taken % PIECES_BEFORE_YIELD == 0:
                await asyncio.sleep(0)
        self._meter.end()

    def _say(self, piece: str) -> bool:
        """Say it, or keep it while others may have closed the reply; return whether the next one is wanted."""
        if self._meter.is_clamped:
            self._meter.allow(piece)
        if self._lease.is_valid():
            return self._reply.say(piece)
        self._unsaid.append(piece)
        return False

    def _note(self, piece: Reasoning | Usage | Stop) -> bool:
        self._meter.note(piece)
        if isinstance(piece, Reasoning) and self._lease.is_valid():
            self._reply.think(piece.text)
        return not self._reply.is_held

    async def _wanted(self) -> bool:
        """Wait until the next piece is wanted; return False if it never will be."""
        while self._unsaid and self._reply.state is RUNNING:
            await self._lease.valid()
            self._reply.say(self._unsaid.pop(0))
        return await self._reply.wanted()
