"""Questions, as they are stored: with their empty replies, once, and after the turns that the model is given."""

from __future__ import annotations

from asyncio import CancelledError
from contextlib import suppress
from typing import Any, NamedTuple

from app.models import excerpt
from app.replies.lease import now_s
from app.storage.db import DatabaseAway
from app.storage.store import Caller, OpenedTurn, Store

# An open that other turns of the chat overtake is tried again; each time one of them has made its way.
OPEN_TRIES = 10

# How long an open whose answer was not waited for may still be carried out: a frozen PostgreSQL keeps it.
LATE_OPEN_S = 60.0

# Of a reply that nobody was told of.
END: dict[str, Any] = {
    **{"content": None, "status": "interrupted", "reason": None},
    **{"input_tokens": 0, "output_tokens": 0, "is_estimated": False},
}


class Doubt(NamedTuple):
    """A turn of which nobody knows whether it was opened."""

    caller: Caller
    # Whether others are gone for it.
    replaces: bool
    # Until when, by `now_s`, it is looked for.
    until_s: float


class Openings:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._doubtful: dict[str, Doubt] = {}

    async def open(
        self, caller: Caller, message: str, reply_id: str, *, replaces: str | None, **row: Any
    ) -> OpenedTurn:
        """Store a question and an empty reply; `row`: more of what turn_open takes.

        If its answer is lost, the turn is taken back, soon: its client is told that it was not opened. One that
        replaces others ends as interrupted instead.

        Raises:
            DatabaseAway: as it says.
        """
        for _ in range(OPEN_TRIES):
            try:
                opened: OpenedTurn = await self._store.turn_open(
                    **caller._asdict(),
                    **row,
                    reply_id=reply_id,
                    replaces=replaces,
                    title=excerpt(message, words=8, chars=60),
                    content=message,
                )
            except (DatabaseAway, CancelledError) as exc:
                if not isinstance(exc, DatabaseAway) or exc.sent:
                    self.revoke(caller, reply_id, replaces)
                raise
            if not opened.overtaken:
                break
        return opened

    def revoke(self, caller: Caller, reply_id: str, replaces: str | None) -> None:
        """Take a turn back, soon, if it was opened or still will be."""
        self._doubtful[reply_id] = Doubt(caller, replaces is not None, now_s() + LATE_OPEN_S)

    async def take_back(self) -> None:
        """Take back what is doubtful, as far as the database allows."""
        with suppress(DatabaseAway):
            for reply_id, doubt in list(self._doubtful.items()):
                await self._undo(reply_id, doubt)

    async def _undo(self, reply_id: str, doubt: Doubt) -> None:
        ours = {"org_id": doubt.caller.org_id, "reply_id": reply_id}
        try:
            if doubt.replaces:
                # What was there before it cannot be put back, and without the question there would be neither.
                undone = await self._store.turn_close(**ours, **END)
            else:
                undone = await self._store.turn_undo(**ours)
        except DatabaseAway:
            self._doubtful[reply_id] = doubt._replace(until_s=now_s() + LATE_OPEN_S)
            raise
        if undone or now_s() > doubt.until_s:
            self._doubtful.pop(reply_id, None)
