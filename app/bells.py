"""How servers on one database call each other: LISTEN and NOTIFY of PostgreSQL.

A call may be lost, with a connection or with its server. Whoever needs an answer calls again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from typing import Any, Literal
from uuid import UUID

from app.db import Database
from app.store import Store

log = logging.getLogger(__name__)

Call = Literal["read", "leave", "stop", "said"]

LISTEN_AGAIN_S = 0.5


class Bells:
    """This server's number and its bell, and the bells of the others.

    read, leave, stop: a client of the caller reads this server's reply, has left it, wants it to stop.
    said: there is more of the reply that a client here reads.
    """

    def __init__(self, database: Database, store: Store) -> None:
        # Replies carry it; that its lock is held tells other servers that this one lives.
        self.server_id = secrets.randbits(62)
        self._database = database
        self._store = store
        self._waiting: dict[UUID, set[asyncio.Event]] = {}
        self.listening = asyncio.Event()

    async def ring(self, server_id: int, call: Call, reply_id: UUID) -> None:
        """Call another server.

        Raises:
            DatabaseAway: as it says.
        """
        await self._store.server_call(channel=channel(server_id), payload=self.payload(call, reply_id))

    def payload(self, call: Call, reply_id: UUID) -> str:
        return json.dumps({"call": call, "reply": str(reply_id), "from": self.server_id})

    def wait_for(self, reply_id: UUID) -> asyncio.Event:
        """Return an event that is set when more of a reply is there; to be given back with `forget`."""
        event = asyncio.Event()
        self._waiting.setdefault(reply_id, set()).add(event)
        return event

    def forget(self, reply_id: UUID, event: asyncio.Event) -> None:
        waiting = self._waiting[reply_id]
        waiting.discard(event)
        if not waiting:
            del self._waiting[reply_id]

    async def answer(self, take: Callable[[Call, UUID, int], Any]) -> None:
        """Hear calls and pass them on to `take`. Runs until cancelled."""
        while True:
            try:
                async for payload in self._database.listen(channel(self.server_id), self.listening.set):
                    self._hear(payload, take)
            except OSError:
                # The guard logs that the database is away.
                self.listening.clear()
            except Exception:
                log.exception("Bell failed")
            await asyncio.sleep(LISTEN_AGAIN_S)

    def _hear(self, payload: str, take: Callable[[Call, UUID, int], Any]) -> None:
        said = json.loads(payload)
        reply_id = UUID(said["reply"])
        if said["call"] == "said":
            for event in self._waiting.get(reply_id, ()):
                event.set()
        else:
            take(said["call"], reply_id, said["from"])


def channel(server_id: int) -> str:
    return f"llm_app_{server_id}"
