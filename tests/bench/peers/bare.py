"""The reference: a bare asyncio protocol, on uvloop where this server has it, that writes ready-made bytes.

What Python can do at best with one `transport.write` a word: no framework, no JSON, no checks. Due times are
kept exactly. They come in order, because all streams have one period, so that one timer serves them all.
"""

import argparse
import asyncio
import json
import re
import uuid
from collections import deque
from functools import partial
from pathlib import Path

try:
    from uvloop import run
except ImportError:
    from asyncio import run

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(**data: object) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def frames(text: str) -> list[bytes]:
    """Return one chunk for each word: the events of the white space before it and of the word."""
    return [
        chunk("".join(event(token=part, done=False) for part in re.findall(r"\s+|\S+", word)).encode())
        for word in re.findall(r"\s*\S+", text)
    ]


class Pacer:
    """Calls streams when they are due; all have the same period, so the queue is sorted as it grows."""

    def __init__(self, loop: asyncio.AbstractEventLoop, period_s: float) -> None:
        self._loop = loop
        self._period_s = period_s
        self._queue: deque[tuple[float, Stream]] = deque()
        self._armed = False

    def start(self, stream: "Stream") -> None:
        self._queue.append((self._loop.time() + self._period_s, stream))
        self._arm()

    def _arm(self) -> None:
        if self._queue and not self._armed:
            self._armed = True
            self._loop.call_at(self._queue[0][0], self._run)

    def _run(self) -> None:
        self._armed = False
        # uvloop's timers may ring half a millisecond early; waiting for the rest would spin the loop.
        queue, now = self._queue, self._loop.time() + 0.0005
        while queue and queue[0][0] <= now:
            due, stream = queue.popleft()
            if stream.write_next():
                # From the due time, not from now: late timers do not slow the stream.
                queue.append((due + self._period_s, stream))
        self._arm()


class Stream(asyncio.Protocol):
    def __init__(self, pacer: Pacer, text: str, ready: list[bytes]) -> None:
        self._pacer = pacer
        self._text = text
        self._frames = ready
        self._next = 0
        self._received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._next = len(self._frames)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or b"0")
        if len(body) >= length:
            self._received = b""
            self._next = 0
            self._transport.write(HEAD)
            self._pacer.start(self)

    def write_next(self) -> bool:
        """Write one word; return whether there is another."""
        if self._next >= len(self._frames) or self._transport.is_closing():
            return False
        self._transport.write(self._frames[self._next])
        self._next += 1
        if self._next < len(self._frames):
            return True
        done = event(
            token="", done=True, fullText=self._text, chat_id=str(uuid.uuid4()), message_id=str(uuid.uuid4())
        )
        self._transport.write(chunk(done.encode()) + b"0\r\n\r\n")
        return False


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--period-ms", type=float, required=True)
    parser.add_argument("--reply", type=Path, required=True)
    options = parser.parse_args()
    loop = asyncio.get_running_loop()
    text = options.reply.read_text()
    pacer = Pacer(loop, options.period_ms / 1000)
    server = await loop.create_server(
        partial(Stream, pacer, text, frames(text)), "127.0.0.1", options.port, backlog=2048
    )
    await server.serve_forever()


if __name__ == "__main__":
    run(main())
