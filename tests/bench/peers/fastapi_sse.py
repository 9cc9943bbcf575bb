"""FastAPI and sse-starlette on uvicorn with uvloop and httptools, access log off.

Events are made by the library. Those of a word are handed to it in one piece, as bytes, so that it sends them
in one write: handing it one by one would cost it twice as much.
"""

import argparse
import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--period-ms", type=float, required=True)
parser.add_argument("--reply", type=Path, required=True)
options = parser.parse_args()
text = options.reply.read_text()
# Each with the white space before it, which is an event of its own.
words = [re.findall(r"\s+|\S+", word) for word in re.findall(r"\s*\S+", text)]
period_s = options.period_ms / 1000
app = FastAPI()


class Question(BaseModel):
    message: str


def event(**data: object) -> bytes:
    return ServerSentEvent(json.dumps(data, separators=(",", ":")), sep="\n").encode()


async def tokens() -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    due = loop.time()
    for word in words:
        due += period_s
        await asyncio.sleep(max(0, due - loop.time()))
        yield b"".join(event(token=part, done=False) for part in word)
    yield event(token="", done=True, fullText=text, chat_id=str(uuid.uuid4()), message_id=str(uuid.uuid4()))


@app.post("/chat/stream")
async def stream(question: Question) -> EventSourceResponse:
    return EventSourceResponse(tokens(), sep="\n")


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        backlog=2048,
    )
