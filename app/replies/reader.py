"""The clients of this process who read a reply: as events, or as a whole."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import AnyStr, Literal

from aiohttp import web

from app.errors import ApiError
from app.replies.events import (
    cut_event,
    encode_numbered_tokens,
    encode_reasoning,
    first_event,
    last_event,
    lost_event,
    tokens_chunk,
)
from app.replies.reply import Ended, Reply
from app.replies.sse import ClientGone, EventStream, encode_chunk
from app.settings import Settings
from app.statuses import Cut
from app.storage.store import Caller

log = logging.getLogger(__name__)

# So much of a reply is encoded at once for a client who is behind, and so bounds what waits for them.
CATCH_UP_CHARS = 65_536


# What ended the reading, other than the reply's end; None: nothing did.
Over = Cut | Literal["gone"] | None


class Client:
    """Reads one reply for the client of a request, and leaves with its connection."""

    reads_along = True
    reads_reasoning = False

    def __init__(self, request: web.Request) -> None:
        self.over: Over = None
        self.reply: Reply | None = None
        self._transport = request.transport
        # Done once there is something to look at. (An Event would take three times the memory of a future.)
        self._woken = asyncio.get_running_loop().create_future()

    def attach(self, reply: Reply) -> None:
        self.reply = reply
        reply.attach(self)

    def push(self, piece: str) -> bool:
        return False

    def think(self, text: str) -> bool:
        return False

    def wake(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)

    def cut(self, why: Cut) -> None:
        self._end(why)

    def leave(self) -> None:
        self._end("gone")

    def _end(self, over: Over) -> None:
        self.over = self.over or over
        self.wake()

    async def _news(self) -> None:
        await self._woken
        self._woken = asyncio.get_running_loop().create_future()

    def look(self, now_s: float) -> bool:
        """Return whether the client is still there. `now_s`: by a clock for durations."""
        return self._transport is not None and not self._transport.is_closing()


class WholeReader(Client):
    """Waits for the end."""

    reads_along = False

    async def read(self, reply: Reply) -> Ended | Cut | Literal["gone"]:
        while self.over is None:
            if isinstance(reply.state, Ended):
                return reply.state
            await self._news()
        return self.over


class EventReader(Client):
    """Is sent what is said as events, in the very step in which it is said.

    One who is behind is sent it from their own task, and holds up nobody.
    """

    def __init__(
        self,
        request: web.Request,
        settings: Settings,
        *,
        numbered: bool,
        full_text: bool = True,
        reasoning: bool = False,
    ) -> None:
        super().__init__(request)
        self.stream = EventStream(request, settings)
        self._request = request
        self._numbered = numbered
        # Whether the event `done` repeats the whole reply.
        self._full_text = full_text
        self.reads_reasoning = reasoning
        # The code points that the client has been sent.
        self._offset = 0

    def push(self, piece: str) -> bool:
        return self._try(self._send, piece)

    def think(self, text: str) -> bool:
        # One who is behind misses it: it is kept nowhere.
        return not self.reads_reasoning or self._try(self.stream.send, encode_chunk(encode_reasoning(text)))

    def _try(self, send: Callable[[AnyStr], bool], said: AnyStr) -> bool:
        try:
            # Who is to read no more may have the last event by now, and be waited for until they have read it.
            if self.over is None and send(said):
                return True
        except ClientGone:
            self.leave()
        self.wake()
        return False

    def _send(self, text: str) -> bool:
        if self._numbered:
            assert self.reply is not None
            chunk = encode_chunk(encode_numbered_tokens(text, self.reply.id, self._offset))
        else:
            chunk = tokens_chunk(text)
        self._offset += len(text)
        return self.stream.send(chunk)

    def look(self, now_s: float) -> bool:
        try:
            return super().look(now_s) and self.stream.look(now_s)
        except ClientGone:
            return False

    async def read(self, reply: Reply, offset: int) -> None:
        """Send the reply from `offset` (code points) to its end, or until something else ends the reading."""
        self._offset = offset
        self.stream.headers["x-chat-id"], self.stream.headers["x-message-id"] = reply.chat_id, reply.id
        try:
            await self.stream.prepare(self._request)
            if self._numbered:
                # Who loses the connection before the next token comes back with its id, and does not ask again.
                self.stream.send(encode_chunk(first_event(reply, offset)))
            while self.over is None:
                await self.stream.drain()
                if self._offset < reply.length:
                    self._send(reply.text[self._offset : self._offset + CATCH_UP_CHARS])
                elif isinstance(reply.state, Ended):
                    await self.stream.write_eof(self._last_event(reply, reply.state))
                    return
                else:
                    if self._offset == reply.length:
                        reply.follow(self)
                    await self._news()
            if isinstance(self.over, Cut):
                await self.stream.write_eof(cut_event(self.over))
        except ClientGone:
            self.leave()

    def _last_event(self, reply: Reply, ended: Ended) -> bytes:
        if self._offset > reply.length:
            return lost_event(self._offset, reply.length)
        return last_event(reply, ended, numbered=self._numbered, full_text=self._full_text)


class Readers:
    """The clients who read, each until they have the last event."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.user_reader_limit
        self._clients: set[Client] = set()
        self._count: Counter[Caller] = Counter()
        self._period_s = min(0.5, settings.heartbeat_s / 10, settings.write_timeout_s / 10)

    @property
    def count(self) -> int:
        return len(self._clients)

    @contextmanager
    def reading(self, caller: Caller, client: Client) -> Iterator[None]:
        """Look after a client; in the end it is detached from what it was attached to.

        Raises:
            ApiError: 429, its user reads as much as they may at once.
        """
        reads = self._count[caller]
        if 0 < self._limit <= reads:
            message = f"You have {reads} streams open, expected at most {self._limit} at once."
            raise ApiError(429, "Too many streams", message, headers={"Retry-After": "1"})
        self._count[caller] += 1
        self._clients.add(client)
        try:
            yield
        finally:
            self._clients.discard(client)
            self._count[caller] -= 1
            if not self._count[caller]:
                del self._count[caller]
            if client.reply is not None:
                client.reply.detach(client)

    async def watch(self) -> None:
        """Ping silent streams, and see which clients are gone. Runs until cancelled."""
        now_s = asyncio.get_running_loop().time
        # Stands still while this process does: then nobody could read, and it is no reason to let them go.
        awake_s, looked_at_s = 0.0, now_s()
        while True:
            await asyncio.sleep(self._period_s)
            awake_s += min(now_s() - looked_at_s, 2 * self._period_s)
            looked_at_s = now_s()
            for client in list(self._clients):
                try:
                    there = client.look(awake_s)
                except Exception:
                    log.exception("Watch failed")
                    there = False
                if not there:
                    client.leave()


READERS: web.AppKey[Readers] = web.AppKey("readers", Readers)
