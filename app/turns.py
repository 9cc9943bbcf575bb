"""The turns that run in this process: watched while they do, stopped together, saved whatever happens."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

from aiohttp import web

from app.db import DatabaseAway
from app.errors import ApiError
from app.sse import EventStream
from app.store import FinalStatus, Store

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 8.0

# How long an open whose answer was not waited for may still be carried out: a frozen PostgreSQL keeps it.
LATE_OPEN_S = 60.0

# How often a server looks for replies that dead ones left open.
SWEEP_S = 3.0

# For a model to stop its work when its turn is interrupted.
MODEL_CLOSE_TIMEOUT_S = 2.0

# For interrupted turns to save their replies and tell their clients.
LAST_WORDS_S = MODEL_CLOSE_TIMEOUT_S + 0.5


class Turn:
    """One question and the reply to it, from before `turn_open` to after `turn_close`."""

    def __init__(self, request: web.Request, org_id: UUID) -> None:
        self.org_id = org_id
        self.reply_id = uuid4()
        # Everything the model has said, noted before it is written: what a client saw is a prefix of it.
        self.pieces: list[str] = []
        # What the model knew of its length beforehand, for the log.
        self.total_tokens: int | None = None
        self.stream: EventStream | None = None
        self.interrupted_by: FinalStatus | None = None
        self._cut_off_s = 0.0
        self._transport = request.transport
        self._task: asyncio.Task[FinalStatus] | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    async def relay(self, relay: Coroutine[Any, Any, FinalStatus]) -> FinalStatus:
        """Run `relay`, which lets the model speak, and return how that ended; `interrupt` ends it early.

        It runs in a task of its own: each token wakes that task's few frames, and not the dozen of the
        handler and the middleware around it.
        """
        self._task = asyncio.create_task(relay)
        if self.interrupted_by is not None:
            self._task.cancel()
        try:
            return await self._task
        except asyncio.CancelledError:
            if self.interrupted_by is None or not self._task.cancelled():
                raise
            return self.interrupted_by
        finally:
            self._task = None

    def interrupt(self, status: FinalStatus) -> None:
        """End the turn with this status where it waits, or before it begins to.

        To be repeated for one that does not end: after the time that its model has to close, it is cut off.
        """
        now_s = asyncio.get_running_loop().time()
        if self.interrupted_by is None:
            self.interrupted_by, self._cut_off_s = status, now_s + MODEL_CLOSE_TIMEOUT_S
        elif now_s < self._cut_off_s:
            return
        if self._task is not None:
            self._task.cancel()

    def look(self, now_s: float, heartbeat_s: float) -> None:
        """Look after the connection; interrupt the turn if the client is gone."""
        there = self._transport is not None and not self._transport.is_closing()
        if there and self.stream is not None:
            there = self.stream.look(now_s, heartbeat_s)
        if not there:
            self.interrupt("disconnected")


class Turns:
    """The running turns, and the saves of those that ended."""

    def __init__(self, store: Store, *, limit: int, heartbeat_s: float, write_timeout_s: float) -> None:
        self._store = store
        self._limit = limit
        self._heartbeat_s = heartbeat_s
        self._tick_s = min(0.5, heartbeat_s / 10, write_timeout_s / 10)
        self.stopping = False
        # Replies carry it; that its lock is held tells other servers that this one lives.
        self.server_id = secrets.randbits(62)
        self._running: set[Turn] = set()
        self._none_running = asyncio.Event()
        self._none_running.set()
        self._saves: set[asyncio.Task[None]] = set()
        self._last_call = asyncio.Event()

    @property
    def running(self) -> int:
        return len(self._running)

    @asynccontextmanager
    async def run(self, turn: Turn) -> AsyncIterator[None]:
        """Count `turn` as running: it is watched, and a stop waits for it.

        Raises:
            ApiError: 503, the server is stopping, or runs as many turns as it may.
        """
        if self.stopping:
            raise stopping()
        if len(self._running) >= self._limit:
            message = f"The server is busy with {self._limit} replies, its limit; try again."
            raise ApiError(503, "Busy", message, headers={"Retry-After": "5"})
        self._running.add(turn)
        self._none_running.clear()
        try:
            yield
        finally:
            self._running.discard(turn)
            if not self._running:
                self._none_running.set()

    def close(self, turn: Turn, status: FinalStatus) -> asyncio.Future[bool]:
        """Start to save the reply with its final status; the future tells whether it is stored at first try.

        Where it is not, because the database is away, it is tried again until it is. The save goes on
        whether or not somebody waits.
        """
        return self._start_save(turn, status, opened=True)

    def disown(self, turn: Turn) -> None:
        """Close as failed, in the background, a reply of which nobody knows whether it was opened, or will be."""
        self._start_save(turn, "failed", opened=False)

    async def watch(self) -> None:
        """Ping silent streams, and end turns whose client is gone. Runs until cancelled."""
        now_s = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._tick_s)
            for turn in list(self._running):
                try:
                    turn.look(now_s(), self._heartbeat_s)
                except Exception:
                    log.exception("Watch failed")
                    turn.interrupt("failed")

    async def guard(self) -> None:
        """Show that this server lives, and close what dead ones left open.

        Raises:
            DatabaseAway: as it says.
        """
        await self._store.server_lock(server_id=self.server_id)
        if interrupted := await self._store.turn_interrupt():
            log.warning("Closed replies that a dead server left open", extra={"replies": interrupted})

    async def keep_guard(self) -> None:
        """Guard again and again. Runs until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.guard()
            except ApiError:
                # Logged where it happened; the next round tries again.
                continue
            except Exception:
                log.exception("Guard failed")

    async def drain(self, grace_s: float) -> None:
        """Refuse new turns, let the running ones end by themselves for `grace_s`, then interrupt the rest.

        A second call does nothing.
        """
        if self.stopping:
            return
        self.stopping = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_running.wait(), grace_s)
        for turn in list(self._running):
            turn.interrupt("interrupted")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_running.wait(), LAST_WORDS_S)
        for turn in self._running:
            # Its model does not let go.
            self.close(turn, "interrupted")

    async def finish(self, timeout_s: float) -> None:
        """Wait for the saves under way; those that wait for the database are tried once more."""
        self._last_call.set()
        if self._saves:
            await asyncio.wait(self._saves, timeout=timeout_s)

    def _start_save(self, turn: Turn, status: FinalStatus, *, opened: bool) -> asyncio.Future[bool]:
        tried: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        save = asyncio.create_task(self._save(turn, status, opened, tried))
        self._saves.add(save)
        save.add_done_callback(self._saves.discard)
        return tried

    async def _save(self, turn: Turn, status: FinalStatus, opened: bool, tried: asyncio.Future[bool]) -> None:
        """Save until it is saved or the server has no more time; the first try's outcome goes to `tried`."""
        now_s = asyncio.get_running_loop().time
        give_up_at_s = now_s() + (0 if opened else LATE_OPEN_S)
        delay_s = FIRST_RETRY_S
        while True:
            last_call = self._last_call.is_set()
            stored = settled = False
            try:
                stored = await self._store.turn_close(
                    org_id=turn.org_id,
                    reply_id=turn.reply_id,
                    server_id=self.server_id,
                    content=turn.text,
                    status=status,
                )
                settled = stored or now_s() >= give_up_at_s
            except DatabaseAway:
                pass
            except Exception:
                # Not an outage, so the next try would fail as this one did.
                log.exception("Reply not saved", extra={"messageId": str(turn.reply_id)})
                settled = True
            if not tried.done():
                tried.set_result(stored)
            if settled or last_call:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(self._last_call.wait(), delay_s)
            delay_s = min(2 * delay_s, LAST_RETRY_S)


def stopping() -> ApiError:
    return ApiError(503, "Stopping", "The server is stopping; try again.", headers={"Retry-After": "1"})


TURNS: web.AppKey[Turns] = web.AppKey("turns", Turns)
