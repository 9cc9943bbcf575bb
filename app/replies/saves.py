"""What is yet to be stored of replies that have ended, or are paused: none is lost while the database is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from app.storage.db import DatabaseAway

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 8.0


class Saves:
    """Each goes on whether or not somebody waits, and is tried again until it is stored."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._latest: dict[str, asyncio.Task[None]] = {}
        self._last_call = asyncio.Event()

    def start(
        self, reply_id: str, save: Callable[[], Awaitable[object]], *, look_for_s: float = 0.0
    ) -> asyncio.Future[bool]:
        """Start a save, which takes the place of an earlier one; the future tells whether its first try succeeded.

        `save` returns something true if it found its reply. One that may be yet to come is looked for again and
        again, for `look_for_s` after the database was last away.
        """
        tried: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._save(reply_id, save, look_for_s, tried))
        self._latest[reply_id] = task
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return tried

    def forget(self, reply_id: str) -> None:
        """Try the save under way not again: its reply goes on."""
        self._latest.pop(reply_id, None)

    async def finish(self, timeout_s: float) -> None:
        """Wait for the saves under way; those that wait for the database are tried once more."""
        self._last_call.set()
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)

    async def _save(
        self, reply_id: str, save: Callable[[], Awaitable[object]], look_for_s: float, tried: asyncio.Future[bool]
    ) -> None:
        this = asyncio.current_task()
        now_s = asyncio.get_running_loop().time
        give_up_at_s = now_s() + look_for_s
        delay_s = FIRST_RETRY_S
        while True:
            last_call = self._last_call.is_set()
            stored = settled = False
            try:
                stored = bool(await save())
                settled = stored or now_s() >= give_up_at_s
            except DatabaseAway:
                give_up_at_s = now_s() + look_for_s
            except Exception:
                # Not an outage, so the next try would fail as this one did.
                log.exception("Reply not saved", extra={"messageId": reply_id})
                settled = True
            if not tried.done():
                tried.set_result(stored)
            if settled or last_call:
                break
            if self._latest.get(reply_id) is this:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._last_call.wait(), delay_s)
                delay_s = min(2 * delay_s, LAST_RETRY_S)
            if self._latest.get(reply_id) is not this:
                return
        if self._latest.get(reply_id) is this:
            del self._latest[reply_id]
