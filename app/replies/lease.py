"""Whether this server may still take its replies for its own (fencing)."""

from __future__ import annotations

import asyncio
import time

# How often a server shows that it lives, and looks for others that do not: those found missing so often in a row
# are given up.
GUARD_S = 1.0
GIVE_UP_AFTER = 3

# Others count three looks, one second apart, and give up with the fourth: so for three seconds after it last held
# its lock, nobody has closed a server's replies. What is left of that is for a word on its way to its reader.
LEASE_S = GIVE_UP_AFTER * GUARD_S - 0.5

# It goes on while a laptop or a virtual machine sleeps, where the system has it.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now_s() -> float:
    """Return seconds by a clock of this machine alone, fit for durations."""
    return time.clock_gettime(_CLOCK)


class Lease:
    """Runs out unless it is renewed. A server that was frozen or cut off finds it run out when it wakes."""

    def __init__(self) -> None:
        self._until_s = float("-inf")
        # How often it has become valid.
        self.terms = 0
        self._renewed = asyncio.Event()

    def is_valid(self) -> bool:
        return now_s() < self._until_s

    def renew(self, asked_at_s: float) -> None:
        """`asked_at_s`: by `now_s`, before the question was sent whose answer says that the lock is held."""
        self.terms += not self.is_valid()
        self._until_s = asked_at_s + LEASE_S
        self._renewed.set()

    async def valid(self) -> None:
        """Wait until it is valid."""
        while not self.is_valid():
            self._renewed.clear()
            await self._renewed.wait()
