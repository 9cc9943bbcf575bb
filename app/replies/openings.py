"""Questions, as they are stored: with their empty replies, once, and after the turns that the model is given."""

from __future__ import annotations

from asyncio import CancelledError
from contextlib import suppress
from typing import Any

from app.models import excerpt
from app.replies.lease import now_s
from app.storage.db import DatabaseAway
from app.storage.store import Caller, OpenedTurn, Store

# An open that other turns of the chat overtake is tried again; each time one of them has made its way.
OPEN_TRIES = 10

# How long an open whose answer was not waited for may still be carried out: a frozen PostgreSQL keeps it.
LATE_OPEN_S = 60.0


class Openings:
    def __init__(self, store: Store) -> None:
        self._store = store
        # Turns of which nobody knows whether they were opened: whose they are, and until when (by
        # `now_s`) they are looked for.
        self._doubtful: dict[str, tuple[Caller, float]] = {}

    async def open(self, caller: Caller, message: str, reply_id: str, **row: Any) -> OpenedTurn:
        """Store a question and an empty reply; `row`: more of what turn_open takes.

        If its answer is lost, the turn is taken back, soon: its client is told that it was not opened.

        Raises:
            DatabaseAway: as it says.
        """
        for _ in range(OPEN_TRIES):
            try:
                opened: OpenedTurn = await self._store.turn_open(
                    **caller._asdict(),
                    **row,
                    reply_id=reply_id,
                    title=excerpt(message, words=8, chars=60),
                    content=message,
                )
            except (DatabaseAway, CancelledError) as exc:
                if not isinstance(exc, DatabaseAway) or exc.sent:
                    self.revoke(caller, reply_id)
                raise
            if not opened.overtaken:
                break
        return opened

    def revoke(self, caller: Caller, reply_id: str) -> None:
        """Take a turn back, soon, if it was opened or still will be."""
        self._doubtful[reply_id] = (caller, late_s())

    async def take_back(self) -> None:
        """Take back what is doubtful, as far as the database allows."""
        with suppress(DatabaseAway):
            for reply_id, (caller, until_s) in list(self._doubtful.items()):
                await self._undo(reply_id, caller, until_s)

    async def _undo(self, reply_id: str, caller: Caller, until_s: float) -> None:
        try:
            undone = await self._store.turn_undo(org_id=caller.org_id, reply_id=reply_id)
        except DatabaseAway:
            self.revoke(caller, reply_id)
            raise
        if undone or now_s() > until_s:
            self._doubtful.pop(reply_id, None)


def late_s() -> float:
    """Return until when, by `now_s`, a statement may be carried out whose answer was not waited for."""
    return now_s() + LATE_OPEN_S
