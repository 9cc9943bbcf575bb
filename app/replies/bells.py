"""How servers on one database call each other: LISTEN and NOTIFY of PostgreSQL.

A call may be lost, with a connection or with its server. Whoever needs an answer calls again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from app.storage.db import Database
from app.storage.store import Store

log = logging.getLogger(__name__)

LISTEN_AGAIN_S = 0.5


class ReaderId(NamedTuple):
    """A reader of a reply. Of two, the greater one came later."""

    # When its request came, by the database's clock: servers may disagree about the time.
    came_at_s: float
    nonce: int


class Call(NamedTuple):
    """What one server tells another of a reply.

    To the server that has the reply: a reader elsewhere wants to `read` it, again and again, or has `left` it; a
    client wants it to `stop`. From that server: it has `said` more, or another reader has `replaced` this one.
    """

    kind: Literal["read", "left", "stop", "said", "replaced"]
    reply_id: str
    # None of a stop.
    reader_id: ReaderId | None
    # Whom to answer.
    server_id: int


class Follower:
    """A reader here of a reply that runs at another server."""

    def __init__(self, reader_id: ReaderId) -> None:
        self.id = reader_id
        self.more = asyncio.Event()
        self.replaced = False


class Bells:
    """This server's number and its bell, and the bells of the others."""

    def __init__(self, database: Database, store: Store) -> None:
        # Replies carry it; that its lock is held tells other servers that this one lives.
        self.server_id = secrets.randbits(62)
        self._database = database
        self._store = store
        self._followers: dict[ReaderId, Follower] = {}
        self.listening = asyncio.Event()

    async def ring(self, server_id: int, kind: str, reply_id: str, reader_id: ReaderId | None = None) -> None:
        """Call another server.

        Raises:
            DatabaseAway: as it says.
        """
        payload = self.payload(kind, reply_id, reader_id)
        await self._store.server_call(channel=channel(server_id), payload=payload)

    def payload(self, kind: str, reply_id: str, reader_id: ReaderId | None) -> str:
        return json.dumps([kind, reply_id, reader_id, self.server_id])

    def follow(self, reader_id: ReaderId) -> Follower:
        """Return a reader who hears what is said of its reply; to be given back with `forget`."""
        follower = Follower(reader_id)
        self._followers[follower.id] = follower
        return follower

    def forget(self, follower: Follower) -> None:
        del self._followers[follower.id]

    async def answer(self, take: Callable[[Call], Any]) -> None:
        """Hear calls and pass them on to `take`. Runs until cancelled."""
        while True:
            try:
                async for payload in self._database.listen(channel(self.server_id), self.listening.set):
                    try:
                        self._hear(payload, take)
                    except Exception:
                        log.exception("Call failed")
            except OSError:
                # The guard logs that the database is away.
                self.listening.clear()
            await asyncio.sleep(LISTEN_AGAIN_S)

    def _hear(self, payload: str, take: Callable[[Call], Any]) -> None:
        kind, reply_id, reader_id, server_id = json.loads(payload)
        call = Call(kind, reply_id, reader_id and ReaderId(*reader_id), server_id)
        if kind not in ("said", "replaced"):
            take(call)
        elif call.reader_id in self._followers:
            follower = self._followers[call.reader_id]
            follower.replaced = kind == "replaced"
            follower.more.set()


def channel(server_id: int) -> str:
    return f"llm_app_{server_id}"
