"""A reply: what was said, who reads it, how it ended. Pure: it knows no socket, no model, no database.

At its home a model feeds it (`turn`), at another server its row does (`mirrors`); a reader cannot tell which.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from app.statuses import Cut, FinalStatus, Reason, Usage

SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
HIGH_SURROGATE = re.compile("[\ud800-\udbff]\\Z")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Running:
    """More may be said."""


@dataclass(frozen=True, slots=True)
class Ending:
    status: FinalStatus
    reason: Reason | None = None
    usage: Usage | None = None
    # Of a busy provider: what it said, to whoever waits at the reply's home. Not stored.
    retry_after_s: float | None = None


class Closing(Ending):
    """No more is said; it is being stored that it ended so."""


class Ended(Ending):
    """It is stored that it ended so, and so it stays."""


RUNNING = Running()


class Reader(Protocol):
    """Who reads a reply: a client of this process, or another server for clients of its own."""

    def push(self, piece: str) -> bool:
        """Take what is being said; return whether it takes the next piece too."""

    def think(self, text: str) -> bool:
        """Take what the model thinks aloud; return whether it takes what comes next."""

    def wake(self) -> None:
        """Something has happened to the reply: look at it."""

    def cut(self, why: Cut) -> None:
        """Read no more, though the reply may go on."""


class TooLong(Exception):
    """More was said than a reply may hold."""


class Reply:
    """`on_read` is called when the first reader comes, `on_unread` when the last one leaves, while it runs.

    `window_s`: for how long it waits for a reader while it has none, before it ends; None: it goes on without one.
    """

    def __init__(
        self,
        reply_id: str,
        chat_id: str,
        created_at: datetime,
        *,
        window_s: float | None = None,
        limit_chars: int | None = None,
        on_read: Callable[[], None] = lambda: None,
        on_unread: Callable[[], None] = lambda: None,
    ) -> None:
        self.id = reply_id
        self.chat_id = chat_id
        self.created_at = created_at
        self.window_s = window_s
        self.state: Running | Closing | Ended = RUNNING
        # In code points.
        self.length = 0
        # Everything that was said, noted before it is sent: what a client saw is a prefix of it.
        self.pieces: list[str] = []
        # The first half of a surrogate pair whose second is in the piece to come.
        self._half = ""
        self._limit_chars = limit_chars
        self._on_read = on_read
        self._on_unread = on_unread
        self.readers: list[Reader] = []
        # Those of them who have all that was said.
        self._live: list[Reader] = []
        self._awaited: asyncio.Future[None] | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_held(self) -> bool:
        """Whether its model is to wait, because nobody reads."""
        return self.window_s is not None and not self.readers and self.state is RUNNING

    def say(self, piece: str) -> bool:
        """Add a piece, and push it to its readers; return whether the next one is wanted now.

        What is said after the end is dropped.

        Raises:
            TooLong: as it says.
        """
        if self.state is not RUNNING:
            return False
        if self._half or not piece.isascii() or "\0" in piece:
            piece = self._storable(piece)
        if piece:
            self._add(piece)
        return bool(self.readers) or self.window_s is None

    def _add(self, piece: str) -> None:
        length = self.length + len(piece)
        if self._limit_chars is not None and length > self._limit_chars:
            # With the rest of its piece.
            self._half = ""
            raise TooLong(f"the reply is longer than {self._limit_chars} characters")
        self.length = length
        self.pieces.append(piece)
        self._live = [reader for reader in self._live if reader.push(piece)]

    def _storable(self, piece: str) -> str:
        """Return `piece` as PostgreSQL can hold it; a half at its end is kept for the next one."""
        piece = self._half + piece
        self._half = piece[-1:] if HIGH_SURROGATE.search(piece) else ""
        return storable(piece[:-1] if self._half else piece)

    def think(self, text: str) -> None:
        """Show what its model thinks aloud to those who read along; it is no part of the reply.

        What is thought after the end is dropped: some of them have the last event by then.
        """
        if self.state is not RUNNING:
            return
        self._live = [reader for reader in self._live if reader.think(text)]

    def attach(self, reader: Reader) -> None:
        self.readers.append(reader)
        if len(self.readers) == 1 and self.state is RUNNING:
            self._on_read()
            self._wake_model()

    def follow(self, reader: Reader) -> None:
        """Push to an attached reader, who has all that was said, what will be."""
        if reader not in self._live:
            self._live.append(reader)

    def detach(self, reader: Reader) -> None:
        self.readers.remove(reader)
        if reader in self._live:
            self._live.remove(reader)
        if not self.readers and self.state is RUNNING:
            self._on_unread()

    async def wanted(self) -> bool:
        """Wait while it is held; return whether more may be said."""
        while self.is_held:
            self._awaited = asyncio.get_running_loop().create_future()
            await self._awaited
        return self.state is RUNNING

    def close(
        self, status: FinalStatus, reason: Reason | None = None, *, retry_after_s: float | None = None
    ) -> None:
        """Let no more be said: it is to be stored that it ended so."""
        assert self.state is RUNNING
        if self._half:
            self._half = ""
            with suppress(TooLong):
                self._add("\ufffd")
        self.state = Closing(status, reason, retry_after_s=retry_after_s)
        self._wake_model()

    def end(self, ended: Ended, text: str | None = None) -> None:
        """It is stored that it ended so; with `text`, if others have stored another one."""
        assert not isinstance(self.state, Ended)
        if text is not None:
            self.pieces, self.length = [text], len(text)
        self.state = ended
        # No event is to come. Who gave the callbacks mostly holds the reply, too: freed without the collector.
        self._on_read = self._on_unread = lambda: None
        for reader in self.readers:
            reader.wake()

    def cut(self, why: Cut) -> None:
        """Send its readers away: it may go on, but they are not to wait for it here."""
        for reader in self.readers:
            reader.cut(why)

    def _wake_model(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)


def storable(text: str) -> str:
    """Return `text` as PostgreSQL can hold it: surrogate pairs joined, U+FFFD for NUL and lone surrogates."""
    if UNSTORABLE.search(text) is None:
        return text
    text = SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return UNSTORABLE.sub("\ufffd", text)
