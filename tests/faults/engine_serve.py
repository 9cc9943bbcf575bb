"""`transformers serve`, mended: a client that leaves while it is being written to goes unnoticed.

Starlette drops the reply's generator where it stands, at a `yield`, and in a cycle: the model speaks on until
Python collects that, which may be at its end, and all others wait. Without this, once in some 200 times.
"""

from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Send
from transformers.cli.transformers import main

stream = StreamingResponse.stream_response


async def stream_and_close(response: StreamingResponse, send: Send) -> None:
    async with aclosing(response.body_iterator):
        await stream(response, send)


StreamingResponse.stream_response = stream_and_close
main()
