"""A reply at its home: a model speaks it; while nobody reads it waits; how it ended is stored, once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from app.models import CLOSE_TIMEOUT_S, Conversation, Model, ModelError, close
from app.replies.driver import Driver
from app.replies.lease import Lease
from app.replies.meter import BudgetSpent, Meter
from app.replies.reply import RUNNING, Ended, Reply, TooLong
from app.replies.saves import Saves
from app.replies.tasks import Tasks
from app.statuses import FinalStatus, Reason, Usage
from app.storage.store import Caller, OpenedTurn

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Home:
    """What the turns of a server share."""

    lease: Lease
    saves: Saves
    tasks: Tasks
    # Code points.
    reply_limit: int
    # Called once with each turn: when its place is free for another...
    over: Callable[[Turn], None]
    # ...and when its row says how it ended.
    stored: Callable[[Turn], None]


class Turn:
    """A question, and the reply to it."""

    def __init__(
        self, caller: Caller, reply_id: str, row: OpenedTurn, home: Home, meter: Meter, *, window_s: float | None
    ) -> None:
        assert row.chat_id is not None
        self.caller = caller
        self.reply = Reply(
            reply_id,
            row.chat_id,
            row.created_at,
            window_s=window_s,
            limit_chars=home.reply_limit,
            on_read=self._read,
            on_unread=self._unread,
        )
        # What the model knew of its length beforehand, for the log.
        self.total_pieces: int | None = None
        # The code points that its row has, and since when (by the event loop's clock).
        self.stored_chars = 0
        self.stored_notes = 0
        self.stored_at_s = asyncio.get_running_loop().time()
        self._home = home
        self._meter = meter
        self._driver = Driver(self.reply, home.lease, meter)
        self._is_stream = False
        # In it the model speaks, and closes the reply once all is said.
        self._task: asyncio.Task[None] | None = None
        # In it the reply is closed that is ended before.
        self._ending: asyncio.Task[None] | None = None
        # Ends it, unless a reader comes before.
        self._window: asyncio.TimerHandle | None = None

    @property
    def has_grown(self) -> bool:
        """Whether it has more than its row has, or has cost more."""
        return self.reply.length > self.stored_chars or self.notes > self.stored_notes

    def start(self, model: Model, conversation: Conversation) -> None:
        self._is_stream = conversation.stream
        self._task = self._home.tasks.run(self._speak(model, conversation))

    async def _speak(self, model: Model, conversation: Conversation) -> None:
        """Let the model speak until all is said, or no more is wanted."""
        status: FinalStatus = "complete"
        reason: Reason | None = None
        retry_after_s: float | None = None
        try:
            pieces = model(conversation)
            self.total_pieces = getattr(pieces, "total_pieces", None)
            if conversation.stream:
                length = getattr(pieces, "text_length", None)
                known = {} if length is None else {"textLength": length}
                log.info("Starting stream", extra={"messageId": self.reply.id, **known})
            try:
                await self._driver.take(pieces)
            finally:
                await close(pieces)
            reason = self._meter.reason
            if reason == "budget":
                status = "failed"
        except BudgetSpent:
            status, reason = "failed", "budget"
        except (TooLong, ModelError) as exc:
            log.warning("Reply failed", extra={"messageId": self.reply.id, "cause": str(exc)})
            status, reason = "failed", getattr(exc, "reason", None)
            retry_after_s = getattr(exc, "retry_after_s", None)
        except (Exception, asyncio.CancelledError):
            # Of a reply that runs, a CancelledError is not ours: what the model waited for was cancelled.
            if self.reply.state is RUNNING:
                said = {"messageId": self.reply.id, "piecesStreamed": len(self.reply.pieces)}
                log.exception("Stream failed" if conversation.stream else "Reply failed", extra=said)
            status = "failed"
        if self.reply.state is RUNNING:
            self.reply.close(status, reason, retry_after_s=retry_after_s)
            await self._close()

    def end(self, status: FinalStatus) -> None:
        """End it before its model does; one that has ended keeps its end."""
        if self.reply.state is RUNNING:
            self.reply.close(status)
            if self._task is not None:
                self._task.cancel()
                # Again, for a model that takes its time to let go.
                asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._task.cancel)
            self._ending = self._home.tasks.run(self._close())

    async def closed(self) -> FinalStatus | None:
        """Wait until it is stored how it ended, and return that; None if it cannot be stored yet."""
        closing = self._ending or self._task
        assert closing is not None
        await asyncio.wait([closing])
        return self.reply.state.status if isinstance(self.reply.state, Ended) else None

    async def _close(self) -> None:
        self._read()
        try:
            await self._home.saves.close(self)
        finally:
            self._home.over(self)

    @property
    def notes(self) -> int:
        """How often its model has said something beside text."""
        return self._meter.notes

    def usage(self) -> Usage:
        """Return what it has cost so far."""
        return self._meter.usage(self.reply.text)

    def ended(self, ended: Ended, text: str | None) -> None:
        """It is stored that it ended so; with `text`, if others have stored another one."""
        self.reply.end(ended, text)
        self._home.stored(self)
        said: dict[str, object] = {"messageId": self.reply.id, "piecesStreamed": len(self.reply.pieces)}
        said |= {"totalLength": self.reply.length, "usage": ended.usage and ended.usage._asdict()}
        if ended.status != "complete":
            log.info("Reply ended", extra={**said, "outcome": ended.reason or ended.status})
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

    def _unread(self) -> None:
        window_s = self.reply.window_s
        if window_s == 0:
            self.end("disconnected")
            return
        if self.has_grown:
            self._home.tasks.run(self._home.saves.try_store([self]))
        if window_s is not None:
            self._wait(window_s)

    def _wait(self, window_s: float, term: int | None = None) -> None:
        """Wait for a reader, then end it; wait again if the lease ran out: who came back was made to wait, too."""
        lease = self._home.lease
        if lease.is_valid() and lease.terms == term:
            self.end("disconnected")
        else:
            self._window = asyncio.get_running_loop().call_later(window_s, self._wait, window_s, lease.terms)
