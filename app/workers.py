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

# How often they are looked at.
LOOK_S = 0.05

# What is promised beside STOP_DELAY_S and SHUTDOWN_GRACE_S.
STOP_S = 10.0

# The exit code of one that has said why it cannot start.
CANNOT_START = os.EX_CONFIG


class Workers:
    """Processes of `python -m app worker`, one for each of these environments.

    Each listens by itself (SO_REUSEPORT): the kernel spreads the connections, and a worker is the same server
    as a process alone.
    """

    def __init__(self, environs: Sequence[Mapping[str, str]], *, stop_s: float) -> None:
        self._environs = environs
        self._stop_s = stop_s
        self._stopping = False
        # When those that have not stopped are killed.
        self._kill_at_s = float("inf")
        self._running: dict[int, tuple[subprocess.Popen[bytes], float, Mapping[str, str]]] = {}
        # Those that take nobody's place.
        self._first: set[int] = set()

    def _start(self, environ: Mapping[str, str]) -> None:
        """Start one, as soon as the machine allows it."""
        while not self._stopping:
            try:
                # Its standard input ends with this process, however that ends: the worker stops then. In a session
                # of its own, so that a Ctrl-C on the terminal is for this process, which passes it on as SIGTERM.
                worker = subprocess.Popen(
                    [sys.executable, "-m", "app", "worker"],
                    env=environ,
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as exc:
                # No memory, or too many processes: those that run go on.
                log.error("Worker not started", extra={"cause": str(exc)})
                time.sleep(YOUNG_S)
                continue
            self._running[worker.pid] = (worker, time.monotonic(), environ)
            if self._stopping:
                # The signal came between the decision to start it and its place in the list.
                terminate(worker.pid)
            return

    def run(self) -> None:
        """Start them, keep them running until `stop`, then wait for the last. Blocks.

        Raises:
            StartError: one of the first could not start, and has said why; the others have stopped.
        """
        for environ in self._environs:
            self._start(environ)
        self._first = set(self._running)
        failed = False
        while self._running:
            # Not os.wait, which a signal need not end: it may come just before, or be taken by the thread of the
            # logs, as that of `kill %1` where a Ctrl-Z came before. Its handler would be called after the wait.
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                time.sleep(LOOK_S)
                self._kill_late()
            # As the first process of a container, this one inherits the orphans of others.
            elif pid in self._running:
                failed |= self._has_ended(pid, os.waitstatus_to_exitcode(status))
        if failed:
            raise StartError("a worker cannot start, see above")

    def _has_ended(self, pid: int, code: int) -> bool:
        """Start another in its place; return True if none of the first can start, and so all must stop."""
        worker, started_s, environ = self._running.pop(pid)
        worker.returncode = code
        if worker.stdin is not None:
            worker.stdin.close()
        if self._stopping:
            return False
        if code == CANNOT_START and pid in self._first:
            # A later one is tried again: that the database is away for a while does not end those that run.
            self.stop()
            return True
        log.error("Worker died", extra={"workerPid": pid, "exitCode": code})
        if time.monotonic() - started_s < YOUNG_S:
            time.sleep(YOUNG_S)
        self._start(environ)
        return False

    def _kill_late(self) -> None:
        """Kill those that have not stopped in time: one that is frozen would hold up the stop for ever."""
        if time.monotonic() > self._kill_at_s:
            self._kill_at_s = float("inf")
            for pid in self._running:
                log.error("Worker killed", extra={"workerPid": pid})
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ask all to stop; safe in a signal handler, and if called again."""
        if not self._stopping:
            self._stopping = True
            self._kill_at_s = time.monotonic() + self._stop_s
            for pid in list(self._running):
                terminate(pid)


def terminate(pid: int) -> None:
    # Not Popen.terminate, which would wait for one that has ended, so that `run` would wait for it for ever.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
