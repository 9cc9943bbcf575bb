"""Several processes on one port: started, started again when they die, and stopped together."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)

# A worker that dies sooner is not started again at once: what killed it is likely still there.
YOUNG_S = 1.0


class Workers:
    """`count` processes of `python -m app worker`, with this environment.

    Each listens by itself (SO_REUSEPORT): the kernel spreads the connections, and a worker is the same server
    as a process alone.
    """

    def __init__(self, count: int, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._stopping = False
        self._running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        for _ in range(count):
            self._start()

    def _start(self) -> None:
        # Its standard input ends with this process, however that ends: the worker stops then.
        worker = subprocess.Popen(
            [sys.executable, "-m", "app", "worker"], env=self._environ, stdin=subprocess.PIPE
        )
        self._running[worker.pid] = (worker, time.monotonic())
        if self._stopping:
            # The signal came between the decision to start it and its place in the list.
            worker.terminate()

    def run(self) -> None:
        """Keep them running until `stop`, then wait for the last. Blocks."""
        while self._running:
            pid, status = os.wait()
            if pid not in self._running:
                # As the first process of a container, this one inherits the orphans of others.
                continue
            worker, started_s = self._running.pop(pid)
            worker.returncode = os.waitstatus_to_exitcode(status)
            if worker.stdin is not None:
                worker.stdin.close()
            if self._stopping:
                continue
            log.error("Worker died", extra={"workerPid": pid, "exitCode": worker.returncode})
            if time.monotonic() - started_s < YOUNG_S:
                time.sleep(YOUNG_S)
            if not self._stopping:
                self._start()

    def stop(self) -> None:
        """Ask all to stop; safe in a signal handler."""
        self._stopping = True
        for worker, _ in list(self._running.values()):
            worker.terminate()
