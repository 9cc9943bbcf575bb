"""How servers on one database call each other: LISTEN and NOTIFY of PostgreSQL.

A call may be lost, with a connection or with its server. Whoever needs an answer calls again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from app.storage.db import Database
from app.storage.store import Store

log = logging.getLogger(__name__)

LISTEN_AGAIN_S = 0.5


class Call(NamedTuple):
    """What one server tells another of a reply.

    To the reply's home: clients there `read` it, said again and again, or have `left` it; a client wants it to
    `stop`; a new question wants it to `yield` unless it is read. From its home: something was `said`, or it has
    ended; what was asked for is `done`, or refused.
    """

    kind: Literal["read", "left", "stop", "yield", "said", "done"]
    reply_id: str
    # Whom to answer.
    server_id: int


class Bells:
    def __init__(self, database: Database, store: Store, server_id: int) -> None:
        self.listening = asyncio.Event()
        self._database = database
        self._store = store
        self.server_id = server_id

    async def ring(self, calls: Sequence[tuple[int, Call]]) -> None:
        """Call servers, each by its number.

        Raises:
            DatabaseAway: as it says.
        """
        bells = [bell(server_id, call) for server_id, call in calls]
        await self._store.server_call(
            channels=[channel for channel, _ in bells], payloads=[payload for _, payload in bells]
        )

    async def hear(self, take: Callable[[Call], None]) -> None:
        """Hear calls, and pass them on to `take`. Runs until cancelled."""
        while True:
            try:
                async for payload in self._database.listen(channel(self.server_id), self.listening.set):
                    try:
                        take(Call(*json.loads(payload)))
                    except Exception:
                        log.exception("Call failed")
            except OSError:
                # The guard logs that the database is away.
                self.listening.clear()
            await asyncio.sleep(LISTEN_AGAIN_S)


def bell(server_id: int, call: Call) -> tuple[str, str]:
    """Return the channel and the payload of a call to a server."""
    return channel(server_id), json.dumps(call)


def channel(server_id: int) -> str:
    return f"llm_app_{server_id}"
