"""The turns that run in this process: watched while they do, paused and resumed."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import datetime
from functools import partial
from math import ceil, inf
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from aiohttp import web

from app.errors import ApiError, stopping
from app.logs import CAME_S
from app.replies.bells import Bells, Call, ReaderId, channel
from app.replies.saves import Saves
from app.replies.sse import ClientGone, EventStream, encode_chunk, encode_numbered_tokens, encode_tokens
from app.storage.db import Conflict, DatabaseAway
from app.storage.store import Caller, FinalStatus, Store

log = logging.getLogger(__name__)

# How often a server shows that it lives, and looks for others that do not: those found missing so often in a row.
GUARD_S = 1.0
GIVE_UP_AFTER = 3

# How fast an old reading of the database's clock ages, each GUARD_S.
CLOCK_DRIFT = 1.05

# How often what is old is forgotten.
SWEEP_S = 60.0

# For a model to stop its work when its turn is interrupted.
MODEL_CLOSE_TIMEOUT_S = 2.0

# For interrupted turns to save their replies and tell their clients.
LAST_WORDS_S = MODEL_CLOSE_TIMEOUT_S + 0.5

# How often a reply that is read at another server is saved there to see; its readers see no shorter gaps.
SHARE_S = 0.05

# How long an open whose answer was not waited for may still be carried out: a frozen PostgreSQL keeps it.
LATE_OPEN_S = 60.0

MINUTE_S = 60.0

# A used ticket lets its reader come back.
TICKET_AGE_S = 3600.0

# For how long the same Idempotency-Key is the same turn.
KEY_AGE_S = 24 * 3600.0

# A server whose client reads a reply here calls again within CALL_AGAIN_S; one that has not is taken for gone.
CALL_AGAIN_S = 1.0
CALL_TIMEOUT_S = 5.0


class Ended(NamedTuple):
    """How a turn ended, and whether that is stored."""

    status: FinalStatus
    stored: bool


def is_connected(transport: asyncio.BaseTransport | None) -> bool:
    return transport is not None and not transport.is_closing()


class Reader:
    """A client of this process who reads a reply along."""

    def __init__(self, request: web.Request, stream: EventStream, reader_id: ReaderId, *, numbered: bool) -> None:
        self.id = reader_id
        self.stream = stream
        self.numbered = numbered
        self._transport = request.transport
        self.over: asyncio.Future[Ended | Literal["left", "replaced"]] = asyncio.get_running_loop().create_future()

    def is_there(self) -> bool:
        return is_connected(self._transport)

    def end(self, how: Ended | Literal["left", "replaced"]) -> None:
        if not self.over.done():
            self.over.set_result(how)


class RemoteReader:
    """A client of another server who reads a reply of this one."""

    def __init__(self, server_id: int, reader_id: ReaderId) -> None:
        self.id = reader_id
        self.server_id = server_id
        self.called_at_s = asyncio.get_running_loop().time()
        self.more = asyncio.Event()
        self.more.set()
        self.task: asyncio.Task[None] | None = None


class Turn:
    """One question and the reply to it, from before `turn_open` to after `turn_close`."""

    def __init__(
        self,
        caller: Caller,
        reply_id: str | None = None,
        *,
        whole: bool = False,
        asker: asyncio.BaseTransport | None = None,
    ) -> None:
        self.caller = caller
        # Asked for as a whole: it goes on whether or not somebody reads along.
        self.whole = whole
        self.reply_id = reply_id or str(uuid4())
        self.chat_id: str
        self.created_at: datetime
        # Everything the model has said, noted before it is written: what a client saw is a prefix of it.
        self.pieces: list[str] = []
        # Its length in code points.
        self.length = 0
        # What the model knew of its length beforehand, for the log.
        self.total_tokens: int | None = None
        self.reader: Reader | None = None
        self.remote: RemoteReader | None = None
        # Nobody reads a streamed reply: no more is asked of the model until somebody does.
        self.paused = False
        self.interrupted_by: FinalStatus | None = None
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        # The connection of who waits for the whole reply: where it closes, the turn ends.
        self._asker = asker
        self._back: asyncio.Future[None] | None = None
        self._relaying = False
        self._cut_off_s = 0.0
        # Its last save is under way, and no other may take its place.
        self.closing = False
        # While paused: its save, whether a reader has tried to come back since, and when none may any more.
        self.saved: asyncio.Future[bool] | None = None
        self.resume_tried = False
        self.window: asyncio.TimerHandle | None = None
        self.resuming = asyncio.Lock()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def reader_id(self) -> ReaderId | None:
        """Who reads it, here or at another server."""
        reader = self.reader or self.remote
        return reader.id if reader is not None else None

    def is_abandoned(self) -> bool:
        return self._asker is not None and self._asker.is_closing()

    async def relay(self, relay: Coroutine[Any, Any, FinalStatus]) -> FinalStatus:
        """Await `relay`, which lets the model speak, and return how that ended; `interrupt` ends it early."""
        task = asyncio.current_task()
        assert task is not None
        if self.interrupted_by is not None:
            relay.close()
            return self.interrupted_by
        self._relaying = True
        try:
            return await relay
        except asyncio.CancelledError:
            if self.interrupted_by is None:
                raise
            while task.cancelling():
                task.uncancel()
            return self.interrupted_by
        finally:
            self._relaying = False

    def interrupt(self, status: FinalStatus) -> None:
        """End the turn with this status where it waits, or before it begins to.

        To be repeated for one that does not end: after the time that its model has to close, it is cut off.
        """
        now_s = asyncio.get_running_loop().time()
        if self.interrupted_by is None:
            self.interrupted_by, self._cut_off_s = status, now_s + MODEL_CLOSE_TIMEOUT_S
        elif now_s < self._cut_off_s:
            return
        if self._relaying and self.task is not None:
            self.task.cancel()

    async def reader_is_back(self) -> None:
        """Wait while the turn is paused."""
        while self.paused:
            self._back = asyncio.get_running_loop().create_future()
            await self._back

    def go_on(self) -> None:
        self.paused = False
        if self.window is not None:
            self.window.cancel()
            self.window = None
        if self._back is not None and not self._back.done():
            self._back.set_result(None)

    def finish(self, ended: Ended) -> None:
        if not self.ended.done():
            self.ended.set_result(ended)
        if self.reader is not None:
            self.reader.end(ended)


class Turns:
    """The running turns."""

    def __init__(
        self,
        store: Store,
        saves: Saves,
        bells: Bells,
        *,
        limit: int,
        user_limit: int,
        user_turns_per_minute: int,
        heartbeat_s: float,
        write_timeout_s: float,
        resume_window_s: float,
    ) -> None:
        self._store = store
        self._saves = saves
        self._bells = bells
        self._limit = limit
        self._user_limit = user_limit
        self._user_turns_per_minute = user_turns_per_minute
        # When each user's last turns were admitted.
        self._admitted: dict[Caller, deque[float]] = {}
        self._heartbeat_s = heartbeat_s
        self._tick_s = min(0.5, heartbeat_s / 10, write_timeout_s / 10)
        self._resume_window_s = resume_window_s
        self.stopping = False
        self.server_id = bells.server_id
        self._running: dict[str, Turn] = {}
        # How many of them each user has.
        self._running_of: Counter[Caller] = Counter()
        # Readers of replies that do not run here, or no more.
        self.followers: set[Reader] = set()
        # Servers whose lock nobody holds, and how often in a row that was so.
        self._missing: dict[int, int] = {}
        # How far the database's clock is ahead of the event loop's, and how long the statement took that told.
        self._clock_ahead_s = 0.0
        self._clock_took_s = inf
        self._none_running = asyncio.Event()
        self._none_running.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        return len(self._running)

    def find(self, reply_id: str) -> Turn | None:
        """Return a turn that runs in this process."""
        turn = self._running.get(reply_id)
        return turn if turn is not None and turn.task is not None else None

    def admit(self, turn: Turn) -> None:
        """Count `turn` as running until it has ended, or is dismissed: a stop waits for it.

        Raises:
            ApiError: 503, the server is stopping, or runs as many turns as it may; 429, its user has as many.
        """
        if self.stopping:
            raise stopping()
        if len(self._running) >= self._limit:
            message = f"The server is busy with {self._limit} replies, its limit; try again."
            raise ApiError(503, "Busy", message, headers={"Retry-After": "5"})
        self._ration(turn.caller)
        self._running[turn.reply_id] = turn
        self._running_of[turn.caller] += 1
        self._none_running.clear()

    def _ration(self, caller: Caller) -> None:
        """Count a turn of this user in this process; a limit of 0 is none."""
        running = self._running_of[caller]
        if self._user_limit and running >= self._user_limit:
            message = f"You have {running} replies running, expected at most {self._user_limit} at once."
            raise ApiError(429, "Too many replies", message, headers={"Retry-After": "1"})
        if self._user_turns_per_minute:
            now_s = asyncio.get_running_loop().time()
            times = self._admitted.setdefault(caller, deque(maxlen=self._user_turns_per_minute))
            if len(times) == times.maxlen and now_s - times[0] < MINUTE_S:
                message = f"You have asked {len(times)} times within a minute, expected at most as often."
                wait_s = ceil(MINUTE_S - (now_s - times[0]))
                raise ApiError(429, "Too many turns", message, headers={"Retry-After": str(wait_s)})
            times.append(now_s)

    def dismiss(self, turn: Turn) -> None:
        if self._running.pop(turn.reply_id, None) is None:
            return
        self._running_of[turn.caller] -= 1
        if not self._running_of[turn.caller]:
            del self._running_of[turn.caller]
        if not self._running:
            self._none_running.set()

    def start(self, turn: Turn, conduct: Coroutine[Any, Any, None]) -> None:
        """Run an admitted turn in a task of its own: it outlives the request that opened it.

        So each token also wakes that task's few frames, and not the dozen of the handler and the middleware.
        """
        turn.task = self._run(conduct)
        turn.task.add_done_callback(lambda _: self.dismiss(turn))

    def attach(self, turn: Turn, reader: Reader, offset: int) -> None:
        """Let `reader` read along from this code point on; who read before is told that they are replaced.

        Of two the one who came later stays: a request may be long on its way, its client back by another one.
        """
        if turn.reader_id is not None and turn.reader_id > reader.id and not turn.ended.done():
            reader.end("replaced")
            return
        self._release(turn, "replaced")
        turn.reader = reader
        try:
            if not reader.is_there():
                raise ClientGone
            if offset < turn.length:
                reader.stream.send(encode_rest(turn.text[offset:], turn.reply_id, offset, reader.numbered))
        except ClientGone:
            self.lose(turn, reader)
            return
        turn.go_on()
        if turn.ended.done():
            reader.end(turn.ended.result())

    def lose(self, turn: Turn, reader: Reader | RemoteReader) -> None:
        """The reader has left: pause the turn, its text saved, for the resume window; without one, end it."""
        if reader not in (turn.reader, turn.remote):
            return
        self._release(turn, "left")
        if turn.whole or turn.closing or turn.interrupted_by is not None:
            return
        if not self._resume_window_s or self.stopping:
            turn.interrupt("disconnected")
            return
        turn.paused = True
        turn.saved, turn.resume_tried = self._save(turn, "disconnected", self._resume_window_s), False
        self._open_window(turn)

    def _release(self, turn: Turn, how: Literal["left", "replaced"]) -> None:
        if turn.reader is not None:
            reader, turn.reader = turn.reader, None
            reader.end(how)
            if reader.stream.is_waiting():
                # Nothing can be said to a client who is behind; and the turn must not wait for it.
                reader.stream.abort()
        if turn.remote is not None:
            remote, turn.remote = turn.remote, None
            if remote.task is not None:
                remote.task.cancel()
            if how == "replaced":
                self._run(self._ring(remote.server_id, how, turn, remote.id))

    async def resume(self, turn: Turn) -> bool:
        """Let a turn that may be paused run again, as soon as a reader is attached; return whether it does.

        Raises:
            DatabaseAway: as it says; the turn stays paused.
        """
        async with turn.resuming:
            if turn.saved is not None and turn.interrupted_by is None and not turn.closing:
                # From here on the save of the pause is not tried again, and the window is a new one.
                turn.resume_tried = True
                self._saves.forget(turn.reply_id)
                self._open_window(turn)
                await turn.saved
                try:
                    resumed = await self._store.turn_resume(
                        org_id=turn.caller.org_id, reply_id=turn.reply_id, server_id=self.server_id
                    )
                except Conflict:
                    resumed = False
                if resumed:
                    turn.saved = None
                else:
                    turn.interrupt("disconnected")
            return turn.interrupted_by is None and not turn.ended.done()

    def _open_window(self, turn: Turn) -> None:
        if turn.window is not None:
            turn.window.cancel()
        loop = asyncio.get_running_loop()
        turn.window = loop.call_later(self._resume_window_s, turn.interrupt, "disconnected")

    def take_call(self, call: Call) -> None:
        """Do what another server asks for a client of its own; that the reply is that client's, it has checked."""
        turn = self.find(call.reply_id)
        if turn is None or turn.closing:
            # Its readers see by themselves how it has ended.
            return
        if call.kind == "stop":
            turn.interrupt("stopped")
            return
        assert call.reader_id is not None
        if call.kind == "left":
            if turn.remote is not None and turn.remote.id == call.reader_id:
                self.lose(turn, turn.remote)
        elif turn.remote is not None and turn.remote.id == call.reader_id:
            turn.remote.called_at_s = asyncio.get_running_loop().time()
        elif turn.reader_id is not None and turn.reader_id > call.reader_id:
            self._run(self._ring(call.server_id, "replaced", turn, call.reader_id))
        elif turn.saved is not None:
            self._run(self._resume_for(turn, call))
        else:
            self._release(turn, "replaced")
            turn.remote = remote = RemoteReader(call.server_id, call.reader_id)
            remote.task = self._run(self._share(turn, remote))
            turn.go_on()

    async def _resume_for(self, turn: Turn, call: Call) -> None:
        with suppress(DatabaseAway):
            if await self.resume(turn):
                self.take_call(call)

    async def _ring(
        self, server_id: int, kind: Literal["said", "replaced"], turn: Turn, reader_id: ReaderId
    ) -> None:
        with suppress(DatabaseAway):
            await self._bells.ring(server_id, kind, turn.reply_id, reader_id)

    async def _share(self, turn: Turn, remote: RemoteReader) -> None:
        """Save what the reply has where a reader at another server sees it, for as long as it is there."""
        while turn.remote is remote:
            await remote.more.wait()
            remote.more.clear()
            with suppress(DatabaseAway):
                await self._store.turn_share(
                    org_id=turn.caller.org_id,
                    reply_id=turn.reply_id,
                    server_id=self.server_id,
                    content=turn.text,
                    channel=channel(remote.server_id),
                    payload=self._bells.payload("said", turn.reply_id, remote.id),
                )
            await asyncio.sleep(SHARE_S)

    async def tell(self, turn: Turn) -> None:
        """Tell a reader at another server that the turn has ended."""
        if turn.remote is not None:
            remote = turn.remote
            self._release(turn, "left")
            await self._ring(remote.server_id, "said", turn, remote.id)

    def close(self, turn: Turn, status: FinalStatus) -> asyncio.Future[bool]:
        """Start to save the reply with its final status; the future tells whether it is stored at first try."""
        turn.closing = True
        saved = turn.saved
        is_stored = saved is not None and saved.done() and saved.result() and not turn.resume_tried
        if saved is not None and is_stored and status == "disconnected" and not self.stopping:
            # Nothing has changed since it was paused.
            return saved
        return self._save(turn, status, None)

    def _save(self, turn: Turn, status: FinalStatus, resume_window_s: float | None) -> asyncio.Future[bool]:
        close = partial(
            self._store.turn_close,
            org_id=turn.caller.org_id,
            reply_id=turn.reply_id,
            server_id=self.server_id,
            content=turn.text,
            status=status,
            resume_window_s=resume_window_s,
        )
        return self._saves.start(turn.reply_id, close)

    def undo(self, turn: Turn) -> None:
        """Take back, in the background, a turn of which nobody knows whether it was opened, or will be.

        Its client is told that it was not, and may ask again.
        """
        undo = partial(
            self._store.turn_undo,
            org_id=turn.caller.org_id,
            reply_id=turn.reply_id,
            server_id=self.server_id,
        )
        self._saves.start(turn.reply_id, undo, look_for_s=LATE_OPEN_S)

    async def watch(self) -> None:
        """Ping silent streams, and see which clients are gone. Runs until cancelled."""
        now_s = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._tick_s)
            for reader in list(self.followers):
                with suppress(ClientGone):
                    reader.stream.look(now_s(), self._heartbeat_s)
            for turn in list(self._running.values()):
                try:
                    self._look(turn, now_s())
                except Exception:
                    log.exception("Watch failed")
                    turn.interrupt("failed")

    def _look(self, turn: Turn, now_s: float) -> None:
        reader, remote = turn.reader, turn.remote
        if reader is not None:
            try:
                there = reader.is_there() and reader.stream.look(now_s, self._heartbeat_s)
            except ClientGone:
                there = False
            if not there:
                self.lose(turn, reader)
        elif remote is not None:
            if now_s - remote.called_at_s > CALL_TIMEOUT_S:
                self.lose(turn, remote)
        elif turn.is_abandoned():
            turn.interrupt("disconnected")
        if turn.interrupted_by is not None:
            # Again, for a model that does not let go.
            turn.interrupt(turn.interrupted_by)

    async def lock(self) -> None:
        """Show that this server lives, and read the database's clock.

        Raises:
            DatabaseAway: as it says.
        """
        now_s = asyncio.get_running_loop().time
        began_s = now_s()
        row = await self._store.server_lock(server_id=self.server_id)
        took_s = now_s() - began_s
        # The shorter it took, the better is known when it was that time there. As clocks drift, an old reading
        # gives way to a worse one.
        self._clock_took_s *= CLOCK_DRIFT
        if took_s <= self._clock_took_s:
            self._clock_took_s = took_s
            self._clock_ahead_s = row.now_s - (began_s + took_s / 2)

    async def guard(self) -> None:
        """Show that this server lives, and close what dead ones left open.

        Raises:
            DatabaseAway: as it says.
        """
        await self.lock()
        given_up = [server_id for server_id, times in self._missing.items() if times >= GIVE_UP_AFTER]
        rows = await self._store.turn_interrupt(given_up=given_up)
        self._missing = {row.server_id: self._missing.get(row.server_id, 0) + 1 for row in rows}
        if closed := sum(row.closed for row in rows):
            log.warning("Closed replies that a dead server left open", extra={"replies": closed})

    def new_reader_id(self, request: web.Request) -> ReaderId:
        return ReaderId(request[CAME_S] + self._clock_ahead_s, secrets.randbits(62))

    async def keep_guard(self) -> None:
        """Guard again and again. Runs until cancelled."""
        await repeat("Guard", self.guard, GUARD_S)

    async def keep_swept(self) -> None:
        """Forget what is old, again and again. Runs until cancelled."""
        await repeat("Sweep", self._sweep, SWEEP_S)

    async def _sweep(self) -> None:
        long_ago_s = asyncio.get_running_loop().time() - MINUTE_S
        for caller in [caller for caller, times in self._admitted.items() if times[-1] < long_ago_s]:
            del self._admitted[caller]
        await self._store.ticket_sweep(age_s=TICKET_AGE_S)
        await self._store.turn_key_sweep(age_s=KEY_AGE_S)

    async def drain(self, grace_s: float) -> None:
        """Refuse new turns, let the running ones end by themselves for `grace_s`, then interrupt the rest.

        Those that nobody reads end at once. A second call does nothing.
        """
        if self.stopping:
            return
        self.stopping = True
        for turn in list(self._running.values()):
            if turn.paused:
                turn.interrupt("disconnected")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_running.wait(), grace_s)
        for turn in list(self._running.values()):
            turn.interrupt("interrupted")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_running.wait(), LAST_WORDS_S)
        # Their models do not let go.
        saves = [(turn, self.close(turn, "interrupted")) for turn in self._running.values()]
        for turn, stored in saves:
            turn.finish(Ended("interrupted", await stored))

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in a task that is held on to until it has ended."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def repeat(name: str, work: Callable[[], Awaitable[None]], period_s: float) -> None:
    """Do it every so often, whatever became of it before. Runs until cancelled."""
    while True:
        await asyncio.sleep(period_s)
        try:
            await work()
        except ApiError:
            # Logged where it happened; the next round tries again.
            continue
        except Exception:
            log.exception(f"{name} failed")


def encode_rest(text: str, reply_id: str, offset: int, numbered: bool) -> bytes:
    """Return the events of the rest of a reply, for a reader who has it up to `offset`."""
    return encode_chunk(encode_numbered_tokens(text, reply_id, offset) if numbered else encode_tokens(text))


def failure(status: FinalStatus, stored: bool) -> str:
    """Return the sentence that tells a client why it does not get a whole, stored reply."""
    what = {
        "complete": "The reply is complete",
        "failed": "The model failed",
        "interrupted": "The server is stopping",
        "disconnected": "The client left",
        "stopped": "The reply was stopped",
    }[status]
    if stored:
        return f"{what}; what it said so far is saved."
    return f"{what}, but it could not be saved."


TURNS: web.AppKey[Turns] = web.AppKey("turns", Turns)
