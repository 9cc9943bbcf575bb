"""What is stored of replies, as they grow and as they end; nothing of it is lost while the database is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from app.replies.reply import Closing, Ended, Reply
from app.statuses import AWAY, TAKEN_BACK, FinalStatus, Usage
from app.storage.db import DatabaseAway, StatementRefused
from app.storage.store import Caller, FoundReply, Store

log = logging.getLogger(__name__)

# So much text is stored by one statement: it is made and sent in one step of the event loop.
BATCH_CHARS = 1_000_000


class Turn(Protocol):
    """What there is to store."""

    caller: Caller
    reply: Reply
    stored_chars: int
    stored_notes: int
    stored_at_s: float

    @property
    def notes(self) -> int: ...
    def usage(self) -> Usage: ...
    def end(self, status: FinalStatus) -> None: ...
    def ended(self, ended: Ended, text: str | None) -> None: ...


class Saves:
    def __init__(self, store: Store) -> None:
        self._store = store
        # Those whose end could not be stored yet.
        self._owed: list[Turn] = []
        # One checkpoint at a time, so that no text is overtaken by an earlier one.
        self._order = asyncio.Lock()

    async def store(self, turns: Iterable[Turn], bells: Sequence[tuple[str, str]] = ()) -> None:
        """Store what replies have so far, and ring `bells` (channel, payload) once all of it is stored.

        Those that others have closed end as their row says.

        Raises:
            DatabaseAway: as it says.
        """
        async with self._order:
            # Those, too, whose end is being stored: who is told that they have said something looks at the row.
            *full, last = batches(turn for turn in turns if not isinstance(turn.reply.state, Ended))
            for batch in full:
                await self._store_texts(batch)
            if last or bells:
                await self._store_texts(last, bells)

    async def _store_texts(self, batch: Sequence[Turn], bells: Sequence[tuple[str, str]] = ()) -> None:
        texts, at_s = {turn.reply.id: turn.reply.text for turn in batch}, asyncio.get_running_loop().time()
        usages, notes = [turn.usage() for turn in batch], [turn.notes for turn in batch]
        try:
            row = await self._store.turn_checkpoint(
                org_ids=[turn.caller.org_id for turn in batch],
                reply_ids=list(texts),
                contents=list(texts.values()),
                inputs=[usage.input for usage in usages],
                outputs=[usage.output for usage in usages],
                channels=[channel for channel, _ in bells],
                payloads=[payload for _, payload in bells],
            )
        except (StatementRefused, ValueError):
            # One of the texts is refused; it is to keep no other from being stored.
            log.exception("Replies not saved", extra={"replies": len(batch)})
            if len(batch) == 1:
                batch[0].end("failed")
            for turn in batch if len(batch) > 1 else ():
                await self._store_texts([turn])
            if batch and bells:
                await self._store_texts([], bells)
            return
        saved = set(row.saved)
        for turn, noted in zip(batch, notes, strict=True):
            if turn.reply.id in saved:
                turn.stored_chars, turn.stored_notes, turn.stored_at_s = len(texts[turn.reply.id]), noted, at_s
            else:
                turn.end("interrupted")

    async def try_store(self, turns: Iterable[Turn], bells: Sequence[tuple[str, str]] = ()) -> None:
        """The same where the next one will do as well."""
        with suppress(DatabaseAway):
            await self.store(turns, bells)

    async def prove(self, turns: Sequence[Turn]) -> None:
        """End the replies that others have closed.

        Raises:
            DatabaseAway: as it says.
        """
        rows = await self._store.turn_prove(
            org_ids=[turn.caller.org_id for turn in turns], reply_ids=[turn.reply.id for turn in turns]
        )
        running = {row.id for row in rows}
        for turn in turns:
            if turn.reply.id not in running:
                turn.end("interrupted")

    async def close(self, turn: Turn) -> None:
        """Store how a reply has ended, and tell its readers; if that cannot be, owe it."""
        try:
            ended, text = await self._store_end(turn)
        except Exception as exc:
            if not isinstance(exc, DatabaseAway):
                log.exception("Reply not saved", extra={"messageId": turn.reply.id})
            log.error("Reply not stored yet", extra={"messageId": turn.reply.id})
            self._owed.append(turn)
            turn.reply.cut(AWAY)
        else:
            turn.ended(ended, text)

    async def _store_end(self, turn: Turn) -> tuple[Ended, str | None]:
        """Store how a reply ended, unless others have closed it; return how it ended for good.

        And with what text, if that is another than it has here.
        """
        reply, usage = turn.reply, turn.usage()
        assert isinstance(reply.state, Closing)
        ended = Ended(reply.state.status, reply.state.reason, usage, reply.state.retry_after_s)
        row = {
            "org_id": turn.caller.org_id,
            "reply_id": reply.id,
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "is_estimated": usage.estimated,
        }
        try:
            if await self._store.turn_close(**row, content=reply.text, status=ended.status, reason=ended.reason):
                return ended, None
        except (StatementRefused, ValueError):
            # The next try would fail as this one did.
            log.exception("Reply not saved", extra={"messageId": reply.id})
            await self._store.turn_close(**row, content=None, status="failed", reason=None)
        found = await self._store.reply_find(**turn.caller._asdict(), reply_id=reply.id)
        if found is None:
            # Deleted by hand: its readers are told so, and nobody can be told otherwise.
            reply.cut(TAKEN_BACK)
            return Ended("failed"), None
        if found.status == "streaming":
            raise DatabaseAway(sent=True)
        return ending(found), found.content if found.content != reply.text else None

    def cut_owed(self) -> None:
        """Keep nobody waiting for an end that cannot be stored yet."""
        for turn in self._owed:
            turn.reply.cut(AWAY)

    async def settle(self) -> None:
        """Store what is owed, as far as the database allows."""
        owed, self._owed = self._owed, []
        await asyncio.gather(*map(self.close, owed))


def ending(row: FoundReply) -> Ended:
    """Return how a reply ended that runs no more, as its row says."""
    assert row.status != "streaming"
    usage = None
    if row.input_tokens is not None and row.output_tokens is not None:
        usage = Usage(row.input_tokens, row.output_tokens, bool(row.is_estimated))
    return Ended(row.status, row.reason, usage)


def batches(turns: Iterable[Turn]) -> Iterator[list[Turn]]:
    """Yield them in lists of up to BATCH_CHARS of text and one turn more; the last one may be empty."""
    batch: list[Turn] = []
    chars = 0
    for turn in turns:
        batch.append(turn)
        chars += turn.reply.length
        if chars > BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    yield batch
