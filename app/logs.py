"""Logs: one JSON object a line on stdout, each with the id of its request.

A thread writes them: who reads them may stall, and would hold up the event loop with a pipe that is full.
"""

from __future__ import annotations

import json
import logging
import os
import select
import threading
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pythonjsonlogger.core import merge_record_extra
from pythonjsonlogger.json import JsonFormatter

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# Why a request was refused, for the "Request completed" line: short, and never what it said.
ERROR: web.RequestKey[str] = web.RequestKey("error", str)

# How a stream ended, for the same line.
OUTCOME: web.RequestKey[str] = web.RequestKey("outcome", str)

# What a whole reply has cost, for the same line. (A line of its own would be 3 % of the CPU of such a turn.)
USAGE: web.RequestKey[dict[str, Any]] = web.RequestKey("usage", dict)

PID = os.getpid()
LEVELS = {"WARNING": "warn", "CRITICAL": "error"}

STDOUT, STDERR = 1, 2

# Lines that wait for their reader, about 3 MB. Those beyond are dropped, and counted.
WAITING_LINES = 10_000

# Lines are written so soon after the first of them: to wake the thread for each costs more than the line.
GATHER_S = 0.02

# Lines that are written at once. A pipe takes so much in one piece (PIPE_BUF), so that those of several processes
# are not mixed.
PIECE_BYTES = 4096

# At the end, for a reader that stalls.
FLUSH_S = 1.0
SAY_S = 1.0


class Formatter(JsonFormatter):
    """Keys in a fixed order: timestamp, level, message, requestId, pid, then what the line adds."""

    # Not process_log_record, which is given all of it in another order: that took 10 us more, 1.5 % of a turn.
    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        level, at = record.levelname, datetime.fromtimestamp(record.created, UTC)
        log_data |= {
            "timestamp": at.isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": LEVELS.get(level, level.lower()),
            "message": record.message,
            "requestId": request_id.get(),
            "pid": PID,
        }
        merge_record_extra(record, log_data, self.reserved_attrs)
        if exception := message_dict.pop("exc_info", None):
            log_data["exception"] = exception
        log_data |= message_dict

    # JsonFormatter makes a new encoder for each line.
    jsonify_log_record = json.JSONEncoder(default=str).encode  # type: ignore[assignment]


class Lines(QueueHandler):
    """Formats lines where they are logged, and has a thread write them."""

    def __init__(self) -> None:
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        super().__init__(self._lines)
        self.setFormatter(Formatter())
        self.addFilter(quiet_bad_http)
        # Those for which the queue had no room, those that could not be written, and those of both that a line has
        # told of. The first is counted by whoever logs, the others in the thread.
        self._dropped = self._unwritten = self._told = 0
        self._thread = threading.Thread(target=self._write, name="logs", daemon=True)
        self._thread.start()

    def prepare(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode()

    def enqueue(self, record: bytes) -> None:  # type: ignore[override]
        if self._lines.qsize() < WAITING_LINES:
            self._lines.put_nowait(record)
        else:
            self._dropped += 1

    def finish(self) -> None:
        """Write what waits, for at most FLUSH_S."""
        self._lines.put_nowait(None)
        self._thread.join(FLUSH_S)

    def _write(self) -> None:
        last = False
        while not last:
            lines = [self._lines.get()]
            if lines[0] is not None:
                time.sleep(GATHER_S)
            while not self._lines.empty():
                lines.append(self._lines.get())
            last = None in lines
            for piece in pieces(line for line in lines if line is not None):
                if not write(STDOUT, b"".join(piece)):
                    self._unwritten += len(piece)
            # Those that are missing are missing here.
            missing = self._dropped + self._unwritten - self._told
            if missing and write(STDOUT, self.prepare(dropped(missing))):
                self._told += missing


def pieces(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield them in lists that are written at once."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > PIECE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield piece


def write(number: int, data: bytes) -> bool:
    """Write all of it; return False if that cannot be: the reader is gone, the disk is full."""
    while data:
        try:
            data = data[os.write(number, data) :]
        except BlockingIOError:
            # Others share the pipe, and made it so.
            select.select([], [number], [])
        except OSError:
            return False
    return True


def dropped(lines: int) -> logging.LogRecord:
    record = {"name": __name__, "levelname": "WARNING", "msg": "Log lines dropped", "lines": lines}
    return logging.makeLogRecord(record)


def quiet_bad_http(record: logging.LogRecord) -> bool:
    """Make aiohttp's traceback of a malformed request one warning without the peer's bytes.

    aiohttp answers those itself, before any handler, and logs the offending line: it may hold a message.
    """
    if record.exc_info and isinstance(record.exc_info[1], (HttpProcessingError, web.RequestPayloadError)):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = "Malformed HTTP request", ()
        record.exc_info = record.exc_text = None
    return True


def configure(level: str) -> Lines:
    """Send all logs of `level` (debug, info, warn, error) and above to stdout, until `finish` is called."""
    lines = Lines()
    logging.basicConfig(level=level.upper(), handlers=[lines], force=True)
    logging.captureWarnings(True)
    # What no line shows need not be found out for each (Logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for chatty in ("yoyo", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return lines


def say(text: str) -> None:
    """Write to the terminal; wait no longer than SAY_S for it."""
    # In a thread: it may be a pipe that is full, or closed.
    thread = threading.Thread(target=write, args=(STDERR, text.encode()), daemon=True)
    thread.start()
    thread.join(SAY_S)
