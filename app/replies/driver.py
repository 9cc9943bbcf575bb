"""What a model says, into its reply: piece by piece, no faster than it is wanted, and only while that is ours."""

from __future__ import annotations

import asyncio

from app.models import PushReply, Reasoning, Stop, Usage
from app.models import Reply as ModelReply
from app.replies.lease import Lease
from app.replies.reply import RUNNING, Reply

# A model that never waits would keep the event loop to itself.
PIECES_BEFORE_YIELD = 32


class Driver:
    def __init__(self, reply: Reply, lease: Lease) -> None:
        self._reply = reply
        self._lease = lease
        # Others may have closed the reply: said once they are known not to have.
        self._unsaid: list[str] = []

    async def take(self, pieces: ModelReply) -> None:
        """Take what the model says until all is said, or no more is wanted.

        Raises:
            TooLong: it said more than a reply may hold.
            Exception: what the model raises.
        """
        if isinstance(pieces, PushReply):
            while await pieces.push(self._say):
                if not await self._wanted():
                    return
            return
        # Not those that the reply has: of empty pieces there may be any number.
        taken = 0
        async for piece in pieces:
            if isinstance(piece, (Reasoning, Usage, Stop)):
                continue
            if not self._say(piece) and not await self._wanted():
                return
            taken += 1
            if taken % PIECES_BEFORE_YIELD == 0:
                await asyncio.sleep(0)

    def _say(self, piece: str) -> bool:
        """Say it, or keep it while others may have closed the reply; return whether the next one is wanted."""
        if self._lease.is_valid():
            return self._reply.say(piece)
        self._unsaid.append(piece)
        return False

    async def _wanted(self) -> bool:
        """Wait until the next piece is wanted; return False if it never will be."""
        while self._unsaid and self._reply.state is RUNNING:
            await self._lease.valid()
            self._reply.say(self._unsaid.pop(0))
        return await self._reply.wanted()
