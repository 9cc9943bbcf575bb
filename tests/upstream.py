"""A provider whose every byte a test writes, and models that ask it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from app.models import Conversation, Message, Model, ModelError, Piece
from app.models.choice import chosen
from app.settings import Settings

KEY = "sk-test-0123456789abcdef"
QUESTION = "Who wrote the letter to Ophelia?"
ASKED = Conversation([Message("user", QUESTION)], stream=True)

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class Connection:
    """One request to the provider, and what became of its connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = b""
        self.body: dict[str, Any] = {}
        self.reader = reader
        self.writer = writer
        self.reached = asyncio.Event()
        self.read_bytes = 0
        self.left = asyncio.Event()

    async def read_request(self) -> None:
        self.head = await self.reader.readuntil(b"\r\n\r\n")
        [length] = [line for line in self.head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        self.body = json.loads(await self.reader.readexactly(int(length.split(b":")[1])))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def watch(self) -> None:
        """Wait until the other side has closed or reset the connection."""
        with suppress(ConnectionError):
            while data := await self.reader.read(65536):
                self.read_bytes += len(data)
        self.left.set()


async def at_once(check: Callable[[], bool]) -> bool:
    """Return whether it is so within 100 ms. A moment in which nothing here gets to run counts as 10 of them."""
    for _ in range(10):
        if check():
            return True
        await asyncio.sleep(0.01)
    return check()


Answer = bytes | Callable[[Connection], Awaitable[None]]


class Upstream:
    """`answers` are given one after the other, the last again and again; bytes are sent, then the end."""

    def __init__(self, answers: tuple[Answer, ...]) -> None:
        self.connections: list[Connection] = []
        self.url = ""
        self._answers = answers

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        answer = self._answers[min(len(self.connections), len(self._answers) - 1)]
        self.connections.append(connection)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            if not isinstance(answer, bytes):
                await answer(connection)
            else:
                await connection.read_request()
                await connection.send(answer)
        writer.close()


@asynccontextmanager
async def upstream(*answers: Answer, ssl: Any = None) -> AsyncIterator[Upstream]:
    provider = Upstream(answers)
    server = await asyncio.start_server(provider.connected, "127.0.0.1", 0, ssl=ssl)
    provider.url = f"http{'s' if ssl else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()
        for connection in provider.connections:
            connection.writer.transport.abort()


@asynccontextmanager
async def model(wire: str, url: str, **settings: Any) -> AsyncIterator[Model]:
    settings = {"model": f"{wire}:model-1", "model_url": url, "model_key": KEY} | settings
    async with chosen(Settings(**settings)) as model:
        yield model


async def said(model: Model, conversation: Conversation = ASKED) -> tuple[list[Piece], ModelError | None]:
    """Return what a model says, and what it then raises."""
    pieces: list[Piece] = []
    try:
        async for piece in model(conversation):
            pieces.append(piece)
    except ModelError as exc:
        return pieces, exc
    return pieces, None


def text(pieces: list[Piece]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def openai(*texts: str, finish: str | None = "stop", done: bool = True) -> bytes:
    """Return a stream of OpenAI's as it goes over the wire."""
    chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    if finish is not None:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return b"".join(map(sse, chunks)) + (b"data: [DONE]\n\n" if done else b"")


def anthropic(*texts: str, stop: str | None = "end_turn", done: bool = True) -> bytes:
    """Return a stream of Anthropic's as it goes over the wire."""
    chunks: list[Any] = [{"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}}]
    chunks += [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}} for text in texts]
    if stop is not None:
        usage = {"output_tokens": 9}
        chunks.append({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": usage})
    if done:
        chunks.append({"type": "message_stop"})
    return b"".join(map(sse, chunks))


STREAMS = {"openai": openai, "anthropic": anthropic}


def sse(event: Any) -> bytes:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
