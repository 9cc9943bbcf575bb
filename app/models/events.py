"""The events of a provider's stream: bytes in, JSON objects out.

The format is WHATWG HTML, 9.2.6 "Interpreting an event stream", and what servers make of it: some put no blank
line between two events, or none after the last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from app.models import ModelError

# An event that is longer is none. The longest ones that servers really send hold a megabyte.
EVENT_LIMIT_BYTES = 2 * 1024 * 1024

# No model takes so many tokens; a number beyond is a provider's mistake, and would fit in no row.
MAX_TOKENS = 100_000_000

LINE_END = re.compile(rb"\r\n|\n|\r")

Event = dict[str, Any]

# What OpenAI's streams end with, which is no JSON.
DONE: Event = {"[DONE]": True}


class Events:
    """Cut anywhere, the same stream gives the same events."""

    def __init__(self) -> None:
        # Of a line whose end is still to come.
        self._line = bytearray()
        # Of an event that is no whole JSON yet.
        self._data: list[str] = []
        self._held_bytes = 0
        self._name = ""
        self._is_first_line = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that a part of the stream makes whole.

        Raises:
            ModelError: an event is not a JSON object, or too long.
        """
        starts_with_lf = self._after_cr and chunk.startswith(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        *ended, rest = LINE_END.split(chunk[1:] if starts_with_lf else chunk)
        for end in ended:
            yield from self._take(self._hold(end))
            self._line.clear()
        self._hold(rest)

    def end(self) -> Iterator[Event]:
        """Yield what is whole of an event that the stream has ended in; the rest is dropped."""
        yield from self._take(self._line)
        event = parse("\n".join(self._data))
        if event is not None:
            yield self._named(event)

    def _hold(self, part: bytes) -> bytearray:
        """Add to the line, and return it."""
        self._line += part
        self._held_bytes += len(part)
        if self._held_bytes > EVENT_LIMIT_BYTES:
            raise ModelError(f"an event is longer than {EVENT_LIMIT_BYTES} bytes")
        return self._line

    def _take(self, line: bytearray) -> Iterator[Event]:
        text = line.decode("utf-8", "replace")
        if self._is_first_line:
            text, self._is_first_line = text.removeprefix("\ufeff"), False
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            event = parse(value) if not self._data else None
            if event is None:
                self._data.append(value)
                # What it holds is to be counted until the event ends.
                return
            yield self._named(event)
        elif name == "event":
            self._name = value
        elif not text:
            yield from self._blank()
        if not self._data:
            self._held_bytes = 0

    def _blank(self) -> Iterator[Event]:
        data, self._data = "\n".join(self._data), []
        if data.strip():
            event = parse(data)
            if event is None and self._name != "error":
                raise ModelError("an event is not a JSON object", passing=True)
            yield self._named(event if event is not None else {"error": data})
        self._name = ""

    def _named(self, event: Event) -> Event:
        return {"error": event} if self._name == "error" and "error" not in event else event


def parse(data: str) -> Event | None:
    """Return the JSON object that the data of an event are, None if they are none."""
    if data.strip() == "[DONE]":
        return DONE
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def count(tokens: Any) -> int | None:
    """Return a number of tokens, None for what is none."""
    return tokens if type(tokens) is int and 0 <= tokens <= MAX_TOKENS else None
