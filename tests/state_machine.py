"""What may happen to a reply, in any order, and what must be so at any time.

It is the same for a reply by itself (test_reply.py) and for those of two servers (faults/test_two_servers.py).
"""

from __future__ import annotations

from typing import Any, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from app.statuses import FinalStatus

PAUSE_S = 20.0
WINDOWS = st.sampled_from([PAUSE_S, None, 0.0])
LIMITS = st.sampled_from([None, 1, 8])
STATUSES = st.sampled_from(["complete", "disconnected", "failed", "interrupted", "stopped"])

# Surrogate halves, both of one character among them, NUL, white space, and what is none of these.
RAW = st.text(st.sampled_from("a é四🙂\n\0\ud83d\ude42\udbff\udc00"), max_size=6)


def expected(raw: str) -> tuple[str, str]:
    """Return what is stored of `raw`, and the half at its end that waits for the other one, or "". By hand."""
    stored, half = "", ""
    for char in raw:
        if half and "\udc00" <= char <= "\udfff":
            stored += chr(0x10000 + (ord(half) - 0xD800) * 0x400 + ord(char) - 0xDC00)
            half = ""
            continue
        stored += "\ufffd" if half else ""
        half = char if "\ud800" <= char <= "\udbff" else ""
        if not half:
            stored += "\ufffd" if char == "\0" or "\udc00" <= char <= "\udfff" else char
    return stored, half


class AnyReader(Protocol):
    # With what they had before they came.
    seen: str

    @property
    def follows(self) -> bool:
        """Whether they are to have seen all that was said."""


class ReplyMachine(RuleBasedStateMachine):
    """Any events, beside what is expected of them. Its heirs make them happen, and look at what is."""

    attached = Bundle("attached")

    # It is closed no sooner than so much was said: there is more to see before.
    chars_before_close = 5

    def expect(self, window_s: float | None, limit_chars: int | None) -> None:
        """Expect a new reply, which nobody reads yet."""
        self.window_s, self.limit_chars = window_s, limit_chars
        self.raw = self.text = ""
        # None: it runs.
        self.status: FinalStatus | None = None
        self.readers: list[Any] = []

    # What an heir does, and sees.

    def speak(self, piece: str) -> None:
        """Let the model say it; if the reply takes it, call `said`."""
        raise NotImplementedError

    def come(self, seen: str, elsewhere: bool) -> AnyReader:
        """Let somebody read on who has seen this, at the reply's home or elsewhere."""
        raise NotImplementedError

    def leave(self, reader: Any, abruptly: bool) -> None:
        raise NotImplementedError

    def bring_about(self, status: FinalStatus, elsewhere: bool) -> FinalStatus | None:
        """Do what may end a running reply so; return how it ends by that, or None."""
        raise NotImplementedError

    def settle(self) -> None:
        """Let all come about that is to come of what has happened."""

    def actual_text(self) -> str:
        raise NotImplementedError

    def actual_status(self) -> FinalStatus | None:
        raise NotImplementedError

    def model_waits(self) -> bool:
        raise NotImplementedError

    # What is expected of it.

    @property
    def is_held(self) -> bool:
        return self.status is None and self.window_s is not None and not self.readers

    def said(self, piece: str) -> None:
        """A running reply was said a piece."""
        if self.is_too_long(piece):
            # Half a character that was said before is dropped with it.
            self.raw = self.text
            self.closed("failed")
        else:
            self.raw += piece
            self.text, _ = expected(self.raw)

    def is_too_long(self, piece: str) -> bool:
        stored, _ = expected(self.raw + piece)
        return self.limit_chars is not None and len(stored) > self.limit_chars

    def left(self, reader: AnyReader) -> None:
        self.readers.remove(reader)
        if self.status is None and not self.readers and self.window_s == 0:
            self.closed("disconnected")

    def closed(self, status: FinalStatus) -> None:
        self.status = status
        self.text, half = expected(self.raw)
        if half and self.limit_chars != len(self.text):
            self.text += "\ufffd"

    # What may happen.

    @rule(pieces=st.lists(RAW, min_size=1, max_size=4))
    def say(self, pieces: list[str]) -> None:
        for piece in pieces:
            self.speak(piece)
        self.settle()

    @rule(target=attached, offset=st.integers(0, 12), elsewhere=st.booleans())
    def attach(self, offset: int, elsewhere: bool) -> AnyReader:
        reader = self.come(self.text[:offset], elsewhere)
        self.readers.append(reader)
        self.settle()
        return reader

    @rule(reader=consumes(attached), abruptly=st.booleans())
    def detach(self, reader: AnyReader, abruptly: bool) -> None:
        if reader in self.readers:
            self.leave(reader, abruptly)
            self.left(reader)
            self.settle()

    @precondition(lambda self: self.status is None and len(self.raw) >= self.chars_before_close)
    @rule(status=STATUSES, elsewhere=st.booleans())
    def close(self, status: FinalStatus, elsewhere: bool) -> None:
        ends_as = self.bring_about(status, elsewhere)
        if ends_as is not None:
            self.closed(ends_as)
        self.settle()

    # What is so at any time.

    @invariant()
    def it_has_one_end(self) -> None:
        assert self.actual_status() == self.status

    @invariant()
    def it_has_what_was_said(self) -> None:
        assert self.actual_text() == self.text
        assert self.limit_chars is None or len(self.text) <= self.limit_chars

    @invariant()
    def readers_have_seen_the_beginning_of_it(self) -> None:
        for reader in self.readers:
            assert self.text.startswith(reader.seen)
            assert reader.seen == self.text or not reader.follows

    @invariant()
    def its_model_waits_exactly_while_it_is_held(self) -> None:
        assert self.model_waits() is self.is_held
