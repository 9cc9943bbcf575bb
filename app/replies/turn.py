"""A reply at its home: a model speaks it; while nobody reads it waits; how it ended is stored, once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from app.models import CLOSE_TIMEOUT_S, Conversation, Model, PushReply, close
from app.models import Reply as ModelReply
from app.replies.lease import Lease
from app.replies.reply import RUNNING, Reply, TooLong, Unread
from app.replies.saves import Saves
from app.replies.tasks import Tasks
from app.statuses import FinalStatus
from app.storage.store import Caller, OpenedTurn

log = logging.getLogger(__name__)

# A model that never waits would keep the event loop to itself.
PIECES_BEFORE_YIELD = 32


class Turn:
    """A question, and the reply to it. `over` is called once, when its place is free for another."""

    def __init__(
        self,
        caller: Caller,
        reply_id: str,
        row: OpenedTurn,
        unread: Unread,
        limit_chars: int,
        *,
        lease: Lease,
        saves: Saves,
        tasks: Tasks,
        over: Callable[[Turn], None],
    ) -> None:
        assert row.chat_id is not None
        self.caller = caller
        self.reply = Reply(
            reply_id,
            row.chat_id,
            row.created_at,
            unread=unread,
            limit_chars=limit_chars,
            on_read=self._read,
            on_unread=self._unread,
        )
        # What the model knew of its length beforehand, for the log.
        self.total_pieces: int | None = None
        # The code points that its row has, and since when (by the event loop's clock).
        self.stored_chars = 0
        self.stored_at_s = asyncio.get_running_loop().time()
        self._lease = lease
        self._saves = saves
        self._tasks = tasks
        self._over = over
        self._is_stream = False
        # In it the model speaks.
        self._task: asyncio.Task[None] | None = None
        # Ends it, unless a reader comes before.
        self._window: asyncio.TimerHandle | None = None
        # Others may have closed the reply: said once they are known not to have.
        self._unsaid: list[str] = []

    @property
    def has_grown(self) -> bool:
        """Whether it has more than its row has."""
        return self.reply.length > self.stored_chars

    def start(self, model: Model, conversation: Conversation) -> None:
        self._is_stream = conversation.stream
        self._task = self._tasks.run(self._speak(model, conversation))

    async def _speak(self, model: Model, conversation: Conversation) -> None:
        """Let the model speak until all is said, or no more is wanted."""
        status: FinalStatus = "complete"
        try:
            pieces = model(conversation)
            self.total_pieces = getattr(pieces, "total_pieces", None)
            if conversation.stream:
                length = getattr(pieces, "text_length", None)
                known = {} if length is None else {"textLength": length}
                log.info("Starting stream", extra={"messageId": self.reply.id, **known})
            try:
                await self._take(pieces)
            finally:
                await close(pieces)
        except TooLong as exc:
            log.warning("Reply too long", extra={"messageId": self.reply.id, "cause": str(exc)})
            status = "failed"
        except (Exception, asyncio.CancelledError):
            # Of a reply that runs, a CancelledError is not ours: what the model waited for was cancelled.
            if self.reply.state is RUNNING:
                said = {"messageId": self.reply.id, "piecesStreamed": len(self.reply.pieces)}
                log.exception("Stream failed" if conversation.stream else "Reply failed", extra=said)
            status = "failed"
        if self.reply.state is RUNNING:
            self.reply.close(status)
            await self._close()

    async def _take(self, pieces: ModelReply) -> None:
        if isinstance(pieces, PushReply):
            while await pieces.push(self._say):
                if not await self._wanted():
                    return
            return
        # Not those that the reply has: of empty pieces there may be any number.
        taken = 0
        async for piece in pieces:
            if not self._say(piece) and not await self._wanted():
                return
            taken += 1
            if taken % PIECES_BEFORE_YIELD == 0:
                await asyncio.sleep(0)

    def _say(self, piece: str) -> bool:
        """Say it, or keep it while others may have closed the reply; return whether the next one is wanted."""
        if self._lease.is_valid():
            return self.reply.say(piece)
        self._unsaid.append(piece)
        return False

    async def _wanted(self) -> bool:
        """Wait until the next piece is wanted; return False if it never will be."""
        while self._unsaid and self.reply.state is RUNNING:
            await self._lease.valid()
            self.reply.say(self._unsaid.pop(0))
        return await self.reply.wanted()

    def end(self, status: FinalStatus) -> None:
        """End it before its model does; one that has ended keeps its end."""
        if self.reply.state is RUNNING:
            self.reply.close(status)
            if self._task is not None:
                self._task.cancel()
                # Again, for a model that takes its time to let go.
                asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._task.cancel)
            self._tasks.run(self._close())

    async def _close(self) -> None:
        self._read()
        try:
            await self._saves.close(self)
        finally:
            self._over(self)

    def ended(self, status: FinalStatus, text: str | None) -> None:
        """It is stored that it ended so; with `text`, if others have stored another one."""
        self.reply.end(status, text)
        said = {
            "messageId": self.reply.id,
            "piecesStreamed": len(self.reply.pieces),
            "totalLength": self.reply.length,
        }
        if status != "complete":
            log.info("Reply ended", extra={**said, "outcome": status})
        elif self._is_stream:
            log.info("Stream completed", extra=said)

    def make_way(self) -> bool:
        """End it for a new question in its chat; return False if it is read, and so goes on."""
        if self.reply.state is RUNNING and self.reply.readers:
            return False
        self.end("disconnected")
        return True

    def _read(self) -> None:
        if self._window is not None:
            self._window.cancel()
            self._window = None

    def _unread(self) -> None:
        window_s = self.reply.unread.window_s
        if window_s == 0:
            self.end("disconnected")
            return
        if self.has_grown:
            self._tasks.run(self._saves.try_store([self]))
        if window_s is not None:
            self._window = asyncio.get_running_loop().call_later(window_s, self.end, "disconnected")
