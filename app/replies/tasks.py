"""Work that nobody waits for: until the server stops, or again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

from app.errors import ApiError

CANCEL_AGAIN_S = 0.5

log = logging.getLogger(__name__)


class Tasks:
    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in a task that is held on to: the event loop itself would let it be collected."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def finish(self, timeout_s: float) -> None:
        """Wait for what is under way."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)


@asynccontextmanager
async def in_background(works: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run each in a task of its own, until the block is left; they have ended then."""
    tasks = {asyncio.create_task(work) for work in works}
    yield
    while tasks:
        for task in tasks:
            task.cancel()
        # Again: wait_for of Python 3.11, on which aiopg builds, forgets a cancellation that comes with its result.
        _, tasks = await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)


async def repeat(work: Callable[[], Awaitable[None]], every_s: float) -> None:
    """Do it every so often, whatever became of it before. Runs until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await work()
        except ApiError:
            # Logged where it happened; the next round tries again.
            continue
        except Exception:
            log.exception("Background work failed")
