"""SIGTERM, SIGINT and SIGHUP: each is a stop in good order, however often it comes and whenever."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# SIGHUP: the terminal was closed.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """At the start they end the process, later they do what `on_receipt` says."""

    def __init__(self) -> None:
        self.on_receipt: Callable[[], None] | None = None
        self._deferred = False
        self._received = False
        for number in STOPS:
            # nohup has SIGHUP ignored, and means it.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, they are only noted: what must not be cut short goes here."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            if self._received and self.on_receipt is None:
                self._exit()

    def ignore(self) -> None:
        """Take none any more: it ends. Python's own end would give them back their power to kill."""
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        if self.on_receipt is not None:
            self.on_receipt()
        elif not self._deferred:
            self._exit()

    def _exit(self) -> NoReturn:
        """Unwind the start, and so stop an embedded PostgreSQL."""
        self.ignore()
        sys.exit(0)
