"""Real processes for tests: `python -m app`, its log and its terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.error import HTTPError

import psutil
from support import Tenant

ROOT = Path(__file__).parent.parent


class Process:
    """`python -m app` on a port of its own choice, its log read as it comes.

    `under` is the command that starts it, a shell with limits for example.
    """

    def __init__(self, *args: str, under: Sequence[str] = (), **environ: str) -> None:
        keep = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        self.popen = subprocess.Popen(
            [*under, sys.executable, *(args or ("-m", "app"))],
            cwd=ROOT,
            env=keep | {"PORT": "0"} | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # So that a test may send to all of its processes what a terminal would.
            start_new_session=True,
        )
        self.lines: list[dict[str, Any]] = []
        self._queue: Queue[dict[str, Any] | None] = Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout
        for line in self.popen.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def wait_for(self, message: str, timeout_s: float = 40) -> dict[str, Any]:
        """Return the next log line with this message."""
        deadline = time.monotonic() + timeout_s
        while line := self._queue.get(timeout=max(0, deadline - time.monotonic())):
            self.lines.append(line)
            if line["message"] == message:
                return line
        raise AssertionError(f"ended without {message!r}: {self.popen.stderr and self.popen.stderr.read()}")

    def listening(self) -> str:
        return "http://" + str(self.wait_for("Listening")["address"])

    def end(self, timeout_s: float = 20) -> tuple[int, str]:
        """Wait for the end; return the exit code and stderr."""
        assert self.popen.stderr
        code = self.popen.wait(timeout_s)
        self._reader.join()
        while line := self._queue.get():
            self.lines.append(line)
        return code, self.popen.stderr.read()

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        self._reader.join()
        assert self.popen.stdout
        assert self.popen.stderr
        self.popen.stdout.close()
        self.popen.stderr.close()


class Processes:
    def __init__(self) -> None:
        self._all: list[Process] = []

    def __call__(self, *args: str, under: Sequence[str] = (), **environ: str) -> Process:
        self._all.append(Process(*args, under=under, **environ))
        return self._all[-1]

    def close(self) -> None:
        for process in self._all:
            process.close()


def ask(base: str, tenant: Tenant, message: str = "tell a story") -> Any:
    """Start a stream and return the response, unread."""
    request = urllib.request.Request(
        f"{base}/chat/stream",
        json.dumps({"message": message}).encode(),
        tenant.headers | {"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=30)


def has_ended(process: psutil.Process) -> bool:
    # What nobody has waited for yet has ended too.
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def status_of(url: str, tenant: Tenant | None = None) -> int:
    try:
        request = urllib.request.Request(url, headers=tenant.headers if tenant else {})
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except HTTPError as exc:
        with exc:
            return exc.code


def workers_of(process: Process) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.popen.pid).children() if "worker" in child.cmdline()]
