"""Shows other servers that this one lives, and closes what dead ones left open."""

from __future__ import annotations

import asyncio
import logging

from app.replies.lease import GIVE_UP_AFTER, Lease, now_s
from app.replies.saves import Saves
from app.replies.tasks import Tasks
from app.replies.turns import Turns
from app.storage.db import DatabaseAway
from app.storage.store import Store

# A server that holds its lock, but has not taken it again for so long, is frozen.
SILENCE_S = 5.0

log = logging.getLogger(__name__)


class Guard:
    def __init__(self, turns: Turns, saves: Saves, store: Store, lease: Lease, tasks: Tasks) -> None:
        self._turns = turns
        self._saves = saves
        self._tasks = tasks
        self._store = store
        self._lease = lease
        # Servers whose lock nobody holds, and how often in a row that was so.
        self._missing: dict[int, int] = {}
        self._settling: asyncio.Task[None] | None = None
        # How many replies of dead servers it has closed.
        self.closed = 0

    async def beat(self) -> None:
        """Hold this server's lock: with a connection of its own, whatever the pool is busy with.

        Raises:
            DatabaseAway: as it says.
        """
        asked_at_s = now_s()
        if not (await self._store.server_lock()).locked:
            # A connection that was lost has it still: for its silence others may give this server up.
            return
        if not self._lease.is_valid():
            await self._turns.prove()
        self._lease.renew(asked_at_s)

    async def look(self) -> None:
        """Look at the locks of the others, and begin to store what is owed.

        Raises:
            DatabaseAway: as it says.
        """
        given_up = [server_id for server_id, times in self._missing.items() if times >= GIVE_UP_AFTER]
        try:
            rows = await self._store.turn_interrupt(given_up=given_up, silence_s=SILENCE_S)
        except DatabaseAway:
            self._saves.cut_owed()
            raise
        self._missing = {row.server_id: self._missing.get(row.server_id, 0) + 1 for row in rows}
        if closed := sum(row.closed for row in rows):
            self.closed += closed
            log.warning("Closed replies that a dead server left open", extra={"replies": closed})
        if self._settling is None or self._settling.done():
            # In a task of its own: what it has begun, a stop waits for.
            self._settling = self._tasks.run(self._turns.settle())
