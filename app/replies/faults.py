"""A stream that is broken on purpose, as the knobs of its reply say: what networks and proxies do to streams."""

from __future__ import annotations

import asyncio
import codecs
import json
import logging
from collections import Counter, deque

from aiohttp import web

from app.models.knobs import Fault, Knobs
from app.replies.sse import PING, ClientGone, EventStream, decode_chunk, encode_chunk, reset
from app.settings import Settings

log = logging.getLogger(__name__)

# How long a connection may be dead.
HANG_S = 300.0

# Nothing tells who writes nothing that the peer has left.
LOOK_S = 0.1

# A stream's packets that are cut as small as is asked for; the rest is as it comes.
SMALL_PACKETS = 100_000

# A comment, a field that is none, one without a value, a block that holds no more than that.
NOISE = b": noise\nnoise: noise\nnoise\n\n"

encode_raw_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Faults:
    """What is still to happen to the streams of a reply at this server."""

    def __init__(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self._happened: Counter[str] = Counter()

    def take(self, name: str, at: int | None = None) -> bool:
        """Return whether it is to happen once more, and at this event if one is given; it then has."""
        fault: Fault | None = getattr(self.knobs, name)
        if fault is None or at not in (None, fault.at) or self._happened[name] == fault.times:
            return False
        self._happened[name] += 1
        log.info("Stream broken on purpose", extra={"fault": name})
        return True


class FaultyStream(EventStream):
    """What is sent waits for `drain`: so the reader's own task is held up, and nobody else."""

    def __init__(self, request: web.Request, settings: Settings, faults: Faults) -> None:
        super().__init__(request, settings)
        self._faults = faults
        self._knobs = faults.knobs
        # Events, without the blank line after each.
        self._unsent: deque[bytes] = deque()
        self._events_sent = 0
        self._packets_sent = 0
        self._last_id = b""
        self._is_first = True
        # Not even pings are sent, and that is no reason to let the peer go.
        self._is_silent = False

    def send(self, chunk: bytes) -> bool:
        if chunk is PING:
            # It comes between events, where nothing waits.
            return super().send(encode_chunk(self._encode(decode_chunk(PING))))
        self._unsent.extend(decode_chunk(chunk).split(b"\n\n")[:-1])
        return False

    async def drain(self) -> None:
        await self._send_unsent()
        if self._knobs.burst:
            # What is said meanwhile is sent together.
            await self._keep_silent(self._knobs.burst)

    async def write_eof(self, data: bytes = b"") -> None:
        if data and not self._faults.take("cut"):
            self.send(encode_chunk(data))
        await self._send_unsent()
        await super().write_eof()

    def look(self, now_s: float) -> bool:
        return self._is_silent or super().look(now_s)

    async def _send_unsent(self) -> None:
        self._open_transport()
        await self._break()
        while self._unsent:
            await self._send_packets(self._encode(self._shape(self._unsent.popleft())))
            self._events_sent += 1
            await self._break()
        await super().drain()

    async def _send_packets(self, data: bytes) -> None:
        size = self._knobs.chop if self._packets_sent < SMALL_PACKETS else None
        for start in range(0, len(data), size or len(data)):
            super().send(encode_chunk(data[start : start + (size or len(data))]))
            self._packets_sent += 1
            await super().drain()
            if size:
                # Others have their turn, and each write may go out by itself; the kernel may still join some.
                await asyncio.sleep(0)

    def _shape(self, event: bytes) -> bytes:
        """Return what is sent for an event, its blank line with it."""
        knobs, (*event_id, data) = self._knobs, event.split(b"\n")
        if knobs.utf8:
            data = b"data: " + encode_raw_json(json.loads(data[6:])).encode()
        shaped = b"\n".join([*event_id, data])
        if knobs.big and self._events_sent == 0 and self._faults.take("big"):
            # Blanks after JSON are part of it.
            shaped = shaped.ljust(knobs.big.at - 2)
        shaped += b"\n\n"
        if self._faults.take("dup", self._events_sent + 1):
            shaped += shaped
        if knobs.noise:
            # The id of the event before: with the one to come, a client that is cut off here would miss its event.
            # An empty one says that there is none, as in a stream without ids.
            known = self._last_id or (b"" if event_id else b"id")
            shaped = NOISE + (known and known + b"\n\n") + b"\n" + shaped
            self._last_id = b"".join(event_id)
        return shaped

    def _encode(self, text: bytes) -> bytes:
        if self._knobs.bom and self._is_first:
            text = codecs.BOM_UTF8 + text
        self._is_first = False
        return text.replace(b"\n", b"\r\n") if self._knobs.crlf else text

    async def _break(self) -> None:
        """Let happen what is to happen after so many events.

        Raises:
            ClientGone: nothing more is to be sent.
        """
        if self._faults.take("fin", self._events_sent):
            await super().drain()
            self._open_transport().close()
            raise ClientGone
        if self._faults.take("rst", self._events_sent):
            await super().drain()
            reset(self._open_transport())
            raise ClientGone
        if self._faults.take("hang", self._events_sent):
            await super().drain()
            await self._keep_silent(HANG_S)
            self._open_transport().abort()
            raise ClientGone

    async def _keep_silent(self, for_s: float) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + for_s
        self._is_silent = True
        try:
            while (left_s := until_s - loop.time()) > 0:
                self._open_transport()
                await asyncio.sleep(min(left_s, LOOK_S))
        finally:
            self._is_silent = False

    def _open_transport(self) -> asyncio.Transport:
        if self._transport is None or self._transport.is_closing():
            raise ClientGone
        return self._transport
