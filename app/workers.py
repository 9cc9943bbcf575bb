"""Several processes on one port: started, started again when they die, and stopped together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from app.errors import StartError

log = logging.getLogger(__name__)

# A worker that dies sooner is not started again at once: what killed it is likely still there.
YOUNG_S = 1.0

# The exit code of one that has said why it cannot start.
CANNOT_START = os.EX_CONFIG


class Workers:
    """Processes of `python -m app worker`, one for each of these environments.

    Each listens by itself (SO_REUSEPORT): the kernel spreads the connections, and a worker is the same server
    as a process alone.
    """

    def __init__(self, environs: Sequence[Mapping[str, str]]) -> None:
        self._environs = environs
        self._stopping = False
        self._running: dict[int, tuple[subprocess.Popen[bytes], float, Mapping[str, str]]] = {}
        # Those that take nobody's place.
        self._first: set[int] = set()

    def _start(self, environ: Mapping[str, str]) -> int:
        # Its standard input ends with this process, however that ends: the worker stops then. In a session of its
        # own, so that a Ctrl-C on the terminal is for this process, which passes it on as SIGTERM.
        worker = subprocess.Popen(
            [sys.executable, "-m", "app", "worker"],
            env=environ,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._running[worker.pid] = (worker, time.monotonic(), environ)
        if self._stopping:
            # The signal came between the decision to start it and its place in the list.
            terminate(worker.pid)
        return worker.pid

    def run(self) -> None:
        """Start them, keep them running until `stop`, then wait for the last. Blocks.

        Raises:
            StartError: one of the first could not start, and has said why; the others have stopped.
        """
        self._first = {self._start(environ) for environ in self._environs if not self._stopping}
        failed = False
        while self._running:
            pid, status = os.wait()
            if pid not in self._running:
                # As the first process of a container, this one inherits the orphans of others.
                continue
            worker, started_s, environ = self._running.pop(pid)
            worker.returncode = os.waitstatus_to_exitcode(status)
            if worker.stdin is not None:
                worker.stdin.close()
            if self._stopping:
                continue
            if worker.returncode == CANNOT_START and pid in self._first:
                # A later one is tried again: that the database is away for a while does not end those that run.
                failed = True
                self.stop()
                continue
            log.error("Worker died", extra={"workerPid": pid, "exitCode": worker.returncode})
            if time.monotonic() - started_s < YOUNG_S:
                time.sleep(YOUNG_S)
            if not self._stopping:
                self._start(environ)
        if failed:
            raise StartError("a worker cannot start, see above")

    def stop(self) -> None:
        """Ask all to stop; safe in a signal handler, and if called again."""
        if not self._stopping:
            self._stopping = True
            for pid in list(self._running):
                terminate(pid)


def terminate(pid: int) -> None:
    # Not Popen.terminate, which would wait for one that has ended, so that `run` would wait for it for ever.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
