"""The other servers: they read replies of this one for clients of their own, or want something of them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from app.replies.bells import Bells, Call, bell
from app.replies.reply import Ended
from app.replies.saves import Saves
from app.replies.tasks import Tasks
from app.replies.turn import Turn
from app.replies.turns import Turns
from app.statuses import Cut
from app.storage.db import DatabaseAway

log = logging.getLogger(__name__)

# A server that mirrors a reply calls each second; one that has not for so long is taken for gone.
MIRROR_SILENCE_S = 5.0

# How often replies that are read elsewhere are stored there to see: ten statements a second, for however many.
SHARE_S = 0.1


class RemoteReader:
    """Another server, which mirrors a reply of this one."""

    def __init__(self, turn: Turn, server_id: int, remotes: Remotes) -> None:
        self.turn = turn
        self.server_id = server_id
        self._remotes = remotes
        self._silence: asyncio.TimerHandle | None = None
        turn.reply.attach(self)
        turn.reply.follow(self)

    def push(self, piece: str) -> bool:
        self._remotes.tell(self)
        return True

    def think(self, text: str) -> bool:
        # No row has it.
        return True

    def wake(self) -> None:
        self._remotes.tell(self)

    def cut(self, why: Cut) -> None:
        """Its clients are told what the row says, by their own server."""

    def hear(self) -> None:
        """It has called."""
        if self._silence is not None:
            self._silence.cancel()
        self._silence = asyncio.get_running_loop().call_later(MIRROR_SILENCE_S, self._remotes.lose, self)

    def leave(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self.turn.reply.detach(self)


class Remotes:
    def __init__(self, turns: Turns, saves: Saves, bells: Bells, tasks: Tasks) -> None:
        self._turns = turns
        self._saves = saves
        self._bells = bells
        self._tasks = tasks
        self._readers: dict[tuple[str, int], RemoteReader] = {}
        # Those who have not been told yet of what has happened.
        self._untold: set[RemoteReader] = set()
        self._news = asyncio.Event()

    def take(self, call: Call) -> None:
        """Do what another server asks for its clients; that the reply is theirs, it has checked."""
        turn = self._turns.find(call.reply_id)
        key = (call.reply_id, call.server_id)
        if call.kind in ("stop", "yield"):
            self._tasks.run(self._end(turn, call))
        elif call.kind == "left" and key in self._readers:
            self.lose(self._readers[key])
        elif call.kind == "read" and turn is not None:
            if key not in self._readers:
                self._readers[key] = RemoteReader(turn, call.server_id, self)
            self._readers[key].hear()
            # Each time: what it was told before may be lost.
            self.tell(self._readers[key])

    async def _end(self, turn: Turn | None, call: Call) -> None:
        """End a reply as `stopped`, or for a new question in its chat if nobody reads it; answer in any case."""
        if turn is not None:
            if call.kind == "stop":
                turn.end("stopped")
            if call.kind == "stop" or turn.make_way():
                await turn.closed()
        with suppress(DatabaseAway):
            await self._bells.ring([(call.server_id, Call("done", call.reply_id, self._bells.server_id))])

    def has_readers(self, reply_id: str) -> bool:
        return any(read_id == reply_id for read_id, _ in self._readers)

    def tell(self, reader: RemoteReader) -> None:
        """Let its server know, soon, what has been said or how it ended."""
        self._untold.add(reader)
        self._news.set()

    def lose(self, reader: RemoteReader) -> None:
        del self._readers[reader.turn.reply.id, reader.server_id]
        self._untold.discard(reader)
        reader.leave()

    async def keep_told(self) -> None:
        """Store what is read elsewhere, and ring there, again and again. Runs until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._tell_all()
            except Exception:
                log.exception("Remotes failed")
            await asyncio.sleep(SHARE_S)

    async def _tell_all(self) -> None:
        untold, self._untold = self._untold, set()
        said = [
            bell(reader.server_id, Call("said", reader.turn.reply.id, self._bells.server_id)) for reader in untold
        ]
        # Of one that ends while this is under way, they are told the next time.
        over = [reader for reader in untold if isinstance(reader.turn.reply.state, Ended)]
        await self._saves.try_store({reader.turn for reader in untold if reader.turn.has_grown}, said)
        for reader in over:
            if reader in self._readers.values():
                self.lose(reader)
