"""Server-sent events: their form, and the response that carries them.

The format is WHATWG HTML, 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Coroutine, Mapping
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import HttpVersion11, StreamWriter
from multidict import CIMultiDict

from app.settings import Settings

# Built once: json.dumps() with separators makes a new encoder at every call.
encode_json = json.JSONEncoder(separators=(",", ":")).encode


def encode_event(payload: Mapping[str, object], event_id: str | None = None) -> bytes:
    """Return one event as ASCII bytes, ending in a blank line. An id is to be of ours: it is not escaped."""
    numbered = "" if event_id is None else f"id: {event_id}\n"
    return f"{numbered}data: {encode_json(payload)}\n\n".encode("ascii")


def encode_chunk(data: bytes) -> bytes:
    """Return `data` as one chunk of a body (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def decode_chunk(chunk: bytes) -> bytes:
    return chunk[chunk.index(b"\n") + 1 : -2]


NO_HEADERS: CIMultiDict[str] = CIMultiDict()

# Without a blank line after it: several clients make an empty message of that.
PING = encode_chunk(b": ping\n")


# Closed so, a socket sends RST in place of FIN: SO_LINGER, for 0 seconds.
NO_LINGER = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Break a connection off, so that its peer takes no part for the whole."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    transport.abort()


class ClientGone(ConnectionResetError):
    """The peer closed, reset or no longer reads the connection."""


class EventStream(web.StreamResponse):
    """A response of server-sent events.

    Its methods raise `ClientGone` for whatever aiohttp raises when the peer is gone: a plain ConnectionError from
    a drain, ClientConnectionResetError from a write. So a ConnectionError of a model is never mistaken for it.
    """

    def __init__(self, request: web.Request, settings: Settings) -> None:
        super().__init__(
            headers={
                "Content-Type": "text/event-stream",
                # Middlewares that compress hold a stream back until it ends, unless told not to transform it.
                "Cache-Control": "no-cache, no-transform",
                "X-Accel-Buffering": "no",
            }
        )
        if request.version < HttpVersion11:
            # The end of the connection is the end of the stream. aiohttp would keep one open whose client
            # asks for keep-alive, and the client would wait for ever.
            self.force_close()
        elif request.keep_alive:
            self.headers["Connection"] = "keep-alive"
        self._write_timeout_s = settings.write_timeout_s
        self._heartbeat_s = settings.heartbeat_s
        self._writer: StreamWriter | None = None
        self._transport: asyncio.Transport | None = None
        # In a drain, or in the last write.
        self._waiting = False
        self._sends = 0
        self._progress: tuple[int, int] | None = None
        self._progress_at_s = 0.0

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        try:
            writer = await super().prepare(request)
        except ConnectionError as exc:
            raise ClientGone from exc
        if isinstance(writer, StreamWriter) and self._writer is None:
            self._writer = writer
            self._transport = writer.transport
            self._protocol = writer.protocol
            self._chunked = writer.chunked
            # They are sent: a kilobyte for each stream that runs.
            self._headers = NO_HEADERS
        return writer

    def send(self, chunk: bytes) -> bool:
        """Write one chunk in one piece; return whether the peer keeps up, or else `drain` is to be awaited.

        This is what StreamResponse.write does, less its general case (compression, lengths, headers still to be
        sent), which cost 3 of the 34 us of CPU that a word took before.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ClientGone
        transport.write(chunk if self._chunked else decode_chunk(chunk))
        self._sends += 1
        return not self._protocol.writing_paused

    async def drain(self) -> None:
        """Wait until the peer has read most of what was sent."""
        assert self._writer is not None
        await self._wait(self._writer.drain())

    async def write_eof(self, data: bytes = b"") -> None:
        await self._wait(super().write_eof(data))

    async def _wait(self, write: Coroutine[Any, Any, None]) -> None:
        self._waiting = True
        try:
            await write
        except ConnectionError as exc:
            raise ClientGone from exc
        self._waiting = False

    def look(self, now_s: float) -> bool:
        """Look after an open connection between its writes; return whether the peer still reads it.

        Sends a ping where nothing was sent for the heartbeat, and aborts the connection where a write has waited
        for the write timeout while the peer read nothing.
        """
        transport = self._transport
        if transport is None:
            # Not prepared yet.
            return True
        # While a write waits, what is left of it shrinks only as the peer reads.
        progress = (self._sends, transport.get_write_buffer_size())
        if progress != self._progress:
            self._progress, self._progress_at_s = progress, now_s
        elif self._waiting:
            if now_s - self._progress_at_s >= self._write_timeout_s:
                transport.abort()
                return False
        elif now_s - self._progress_at_s >= self._heartbeat_s:
            # One whole chunk in one call that never waits: it needs no lock.
            self.send(PING)
        return True
