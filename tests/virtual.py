"""Virtual time: what is a matter of timers is tested to the millisecond, on any machine."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

# As on a machine that has run for a while.
BEGAN_S = 1000.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when it waits for a timer, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = BEGAN_S
        # How often it has waited for a timer.
        self.waits = 0
        self._poll = self._selector.select
        self._selector.select = self._select

    def time(self) -> float:
        return self.now_s

    def _select(self, timeout: float | None = None) -> list[Any]:
        if timeout:
            self.now_s += timeout
            self.waits += 1
        return self._poll(0)


def virtually(work: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """Run `work` on a virtual loop of its own: its times are exact, and it takes none."""

    @functools.wraps(work)
    def run(*args: Any, **params: Any) -> Any:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(work(*args, **params))

    return run


def virtual_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def now_ms() -> float:
    """Return how long the virtual loop has run."""
    return round((virtual_loop().now_s - BEGAN_S) * 1000, 3)
