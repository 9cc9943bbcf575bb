"""aiohttp with aiohttp-sse, on uvloop, access log off.

The library has no way to send two events in one write, so each word but the first costs it two `send`s.
"""

import argparse
import asyncio
import json
import uuid
from pathlib import Path

import uvloop
from aiohttp import web
from aiohttp_sse import EventSourceResponse

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--period-ms", type=float, required=True)
parser.add_argument("--reply", type=Path, required=True)
options = parser.parse_args()
text = options.reply.read_text().strip()
period_s = options.period_ms / 1000


def event(**data: object) -> str:
    return json.dumps(data, separators=(",", ":"))


async def stream(request: web.Request) -> web.StreamResponse:
    if not isinstance((await request.json()).get("message"), str):
        raise web.HTTPBadRequest
    loop = asyncio.get_running_loop()
    response = EventSourceResponse(sep="\n", allow_all_methods=True)
    await response.prepare(request)
    async with response:
        due = loop.time()
        for number, word in enumerate(text.split(" ")):
            due += period_s
            # Unpaced, sleep(0) lets the loop turn: one send a word.
            await asyncio.sleep(max(0, due - loop.time()) if period_s else 0)
            if number:
                await response.send(event(token=" ", done=False))
            await response.send(event(token=word, done=False))
        done = event(token="", done=True, fullText=text, chat_id=str(uuid.uuid4()), message_id=str(uuid.uuid4()))
        await response.send(done)
        response.stop_streaming()
    return response


async def main() -> None:
    app = web.Application()
    app.router.add_post("/chat/stream", stream)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options.port, backlog=2048).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
