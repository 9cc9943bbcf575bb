"""SIGTERM, SIGINT and SIGHUP: each is a stop in good order, however often it comes and whenever."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# SIGHUP: the terminal was closed.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def end_at_once() -> None:
    """Have them end the process, without a traceback, for as long as there is nothing to unwind: while it imports.

    Python drops what is raised in a callback of the collector, and an import has many: of 600 starts that were
    told to stop by an exception, 4 went on and served.
    """
    receive(lambda number, frame: os._exit(0))


def receive(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in STOPS:
        # nohup has SIGHUP ignored, and means it.
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


class Signals:
    """At the start they end the process, from `serving` on they do what that says."""

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self._deferred = False
        self._received = False
        receive(self._receive)
        # Where whoever starts this ignores it, children end unseen: it would be ignored here, too.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, they are only noted: what must not be cut short goes here."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            if self._received and self._stop is None:
                self._exit()

    def serving(self, stop: Callable[[], None]) -> None:
        """Have them call `stop`; at once if one has come, and what it raised was dropped."""
        self._stop = stop
        if self._received:
            stop()

    def ignore(self) -> None:
        """Do nothing for any more: it ends.

        Not SIG_IGN: of a signal that has come just before, Python would say with a traceback that it is ignored.
        """
        self._stop = lambda: None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        if self._stop is not None:
            self._stop()
        elif not self._deferred:
            self._exit()

    def _exit(self) -> NoReturn:
        """Unwind the start, and so stop an embedded PostgreSQL."""
        self.ignore()
        sys.exit(0)
