"""`python -m app`, but for its model: an async generator function in place of the simulated one.

Only `OWN_MODEL` is touched, the seam that the README names. Words are slept for as the simulated model
does it, so that the two differ in how a model hands its words over, and in nothing else.

    pull.py PERIOD_MS REPLY    (in a checkout of this server)
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

# The server is that of the folder that this runs in.
sys.path[0] = str(Path.cwd())

from app import __main__ as server  # noqa: E402

PERIOD_S = float(sys.argv[1]) / 1000
REPLY = Path(sys.argv[2]).read_text()
# A word with the white space before it.
WORD = re.compile(r"\s*\S+")


class Clock:
    """One timer for all who sleep until the same millisecond."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sleepers: dict[int, list[asyncio.Future[None]]] = {}

    def sleep_until(self, due_s: float) -> asyncio.Future[None]:
        tick = round(due_s * 1000)
        sleepers = self._sleepers.get(tick)
        if sleepers is None:
            sleepers = self._sleepers[tick] = []
            self._loop.call_at(tick / 1000, self._ring, tick)
        sleeper = self._loop.create_future()
        sleepers.append(sleeper)
        return sleeper

    def _ring(self, tick: int) -> None:
        for sleeper in self._sleepers.pop(tick):
            if not sleeper.done():
                sleeper.set_result(None)


clock: Clock | None = None


async def words(conversation: object) -> AsyncIterator[str]:
    global clock
    clock = clock or Clock()
    due_s = asyncio.get_running_loop().time()
    # Each word a new string, as a real model's are.
    for word in WORD.finditer(REPLY):
        # Due times add up, so that late timers do not slow the reply.
        due_s += PERIOD_S
        await clock.sleep_until(due_s)
        yield word[0]


server.OWN_MODEL = words
sys.argv[1:] = []
# Were the simulated model to speak after all, not a word would come within the window, and the round be void.
os.environ["SIM_DELAY_MS"] = "60000-60000"
server.main()
