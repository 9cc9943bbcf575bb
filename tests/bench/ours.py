"""This server as the bench runs it: the whole product, but for the text that its model says.

Without `--database-url` the database answers from memory, and nothing else is changed: the same middleware,
handlers, turns and logs run. Logs are on, as by default; they go wherever stdout goes.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import sys
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# BENCH_APP: another checkout, so that two versions can be compared in one run.
ROOT = Path(os.environ.get("BENCH_APP") or Path(__file__).parents[2]).resolve()
sys.path.insert(0, str(ROOT))

from app import logs, server  # noqa: E402
from app.__main__ import Signals, listen  # noqa: E402
from app.models import Conversation, Model  # noqa: E402
from app.models import simulated as models  # noqa: E402
from app.models.simulated import Simulated  # noqa: E402
from app.settings import Settings  # noqa: E402
from app.storage.db import Database  # noqa: E402

Opened = namedtuple("Opened", "caller_known chat_known chat_id created_at history running_id")
Closed = namedtuple("Closed", "finished_at")


class MemoryDatabase(Database):
    """Answers the statements of a turn at once; whatever else is asked has no rows."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def listen(self, channel: str, ready: Callable[[], None]) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    async def run(
        self, name: str, params: Mapping[str, Any] | None = None, *, repeatable: bool = False
    ) -> Sequence[Any]:
        if name == "turn_open":
            assert params is not None
            return [Opened(True, True, params["chat_id"] or params["new_chat_id"], datetime.now(UTC), [], None)]
        return [Closed(datetime.now(UTC))] if name == "turn_close" else []

    async def run_on_guard(self, name: str, params: Mapping[str, Any]) -> Sequence[Any]:
        return []


def unpaced(simulated: Model) -> Model:
    """Return the model with a turn of the event loop after each word.

    A real model's words come from a socket, one in a turn of the loop. Without this uvloop would gather many
    words into one system call, and the count of words a second would say nothing about one send a word.
    """

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        async for piece in simulated(conversation):
            yield piece
            if conversation.stream:
                await asyncio.sleep(0)

    return model


async def run(settings: Settings, model: Model, signals: Signals) -> None:
    stop = asyncio.Event()
    signals.on_receipt = stop.set
    await server.serve(server.create_app(settings, model=model), listen(settings), stop)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--period-ms", type=float, required=True)
    parser.add_argument("--reply", type=Path, required=True)
    parser.add_argument("--loop", choices=["uvloop", "asyncio", "any"], default="any")
    parser.add_argument("--database-url")
    options = parser.parse_args()

    signals = Signals()
    words = models.WORD.findall(options.reply.read_text().strip())
    # The simulated model as it is, pacing included; only what it says is what all candidates say.
    models.compose = lambda asked, rng: words
    model: Model = Simulated((options.period_ms, options.period_ms))
    if not options.period_ms:
        model = unpaced(model)
    settings = Settings(port=options.port, database_url=options.database_url or "memory:", seed_demo=True)
    # All that is asked here is asked by one user.
    settings = replace(settings, user_stream_limit=0, user_turns_per_minute=0)
    if not options.database_url:
        server.Database = MemoryDatabase
    logs.configure(settings.log_level)
    uv = options.loop == "uvloop" or (options.loop == "any" and importlib.util.find_spec("uvloop") is not None)
    if uv:
        import uvloop

        uvloop.run(run(settings, model, signals))
    else:
        asyncio.run(run(settings, model, signals))


if __name__ == "__main__":
    main()
