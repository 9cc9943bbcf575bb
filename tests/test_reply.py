"""A reply by itself: with no socket, no model and no database."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from app.replies.reply import (
    RUNNING,
    Closing,
    Ended,
    FinalStatus,
    Reply,
    TooLong,
    storable,
)

PAUSE_S = 20.0
STATUSES = st.sampled_from(["complete", "disconnected", "failed", "interrupted", "stopped"])

# Surrogate halves, both of one character among them, NUL, and what is none of these.
RAW = st.text(st.sampled_from("a é四🙂\0\ud83d\ude42\udbff\udc00"), max_size=6)


def new_reply(**options: Any) -> Reply:
    return Reply("id", "chat", datetime.now(UTC), **options)


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


class FakeReader:
    """Sees what it is pushed, and by itself what it has missed."""

    def __init__(self) -> None:
        self.seen = ""
        self.follows = False
        # What it answers to the next push.
        self.keeps_up = True
        # Whether it sees a piece with which it falls behind: a client that waits for the whole does not.
        self.takes_last = True
        self.wakes = self.thoughts = 0
        self.cuts: list[str] = []

    def push(self, piece: str) -> bool:
        assert self.follows, "nothing is pushed to a reader who is behind"
        if self.keeps_up or self.takes_last:
            self.seen += piece
        self.follows = self.keeps_up
        return self.keeps_up

    def think(self, text: str) -> bool:
        assert self.follows, "nothing is pushed to a reader who is behind"
        self.thoughts += 1
        self.follows = self.keeps_up
        return self.keeps_up

    def wake(self) -> None:
        self.wakes += 1

    def cut(self, why: str) -> None:
        self.cuts.append(why)


class ReplyMachine(RuleBasedStateMachine):
    """Any events, in any order, beside what is expected of them."""

    attached = Bundle("attached")

    @initialize(window_s=st.sampled_from([PAUSE_S, None, 0.0]), limit_chars=st.sampled_from([None, 1, 8]))
    def begin(self, window_s: float | None, limit_chars: int | None) -> None:
        self.loop = asyncio.new_event_loop()
        self.window_s, self.limit_chars = window_s, limit_chars
        self.reply = new_reply(
            window_s=window_s, limit_chars=limit_chars, on_read=self._on_read, on_unread=self._on_unread
        )
        self.raw = self.text = ""
        self.state = "running"
        self.status: FinalStatus | None = None
        self.readers: list[FakeReader] = []
        self.calls: list[str] = []
        self.expected_calls: list[str] = []
        self.expected_wakes: dict[FakeReader, int] = {}
        self.wanted: asyncio.Task[bool] | None = None

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            if self.wanted is not None:
                self.wanted.cancel()
                self._step()
            self.loop.close()

    def _on_read(self) -> None:
        self.calls.append("read")

    def _on_unread(self) -> None:
        self.calls.append("unread")
        if self.window_s == 0:
            self.reply.close("disconnected")

    def _step(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))

    def _closed(self, status: FinalStatus) -> None:
        self.state, self.status = "closing", status
        stored, half = expected(self.raw)
        self.text = stored
        if half and self.limit_chars != len(stored):
            self.text += "\ufffd"

    @property
    def is_held(self) -> bool:
        return self.state == "running" and self.window_s is not None and not self.readers

    # What may happen.

    @rule(pieces=st.lists(RAW, min_size=1, max_size=4))
    def say(self, pieces: list[str]) -> None:
        for piece in pieces:
            self._say(piece)

    def _say(self, piece: str) -> None:
        stored, _ = expected(self.raw + piece)
        if self.state != "running":
            assert self.reply.say(piece) is False
        elif self.limit_chars is not None and len(stored) > self.limit_chars:
            with pytest.raises(TooLong, match=f"longer than {self.limit_chars} characters"):
                self.reply.say(piece)
            # As its driver does.
            self.raw = self.text
            self.reply.close("failed")
            self._closed("failed")
        else:
            self.raw += piece
            self.text = stored
            assert self.reply.say(piece) is not self.is_held

    @rule()
    def think(self) -> None:
        expected_thoughts = {reader: reader.thoughts + reader.follows for reader in self.readers}
        self.reply.think("Hm")
        assert {reader: reader.thoughts for reader in self.readers} == expected_thoughts

    @rule(target=attached)
    def attach(self) -> FakeReader:
        reader = FakeReader()
        if self.state == "running" and not self.readers:
            self.expected_calls.append("read")
        self.readers.append(reader)
        self.expected_wakes[reader] = 0
        self.reply.attach(reader)
        return reader

    @rule(reader=attached, twice=st.booleans())
    def catch_up(self, reader: FakeReader, twice: bool) -> None:
        reader.seen += self.reply.text[len(reader.seen) :]
        reader.follows = reader.keeps_up = True
        for _ in range(1 + twice):
            self.reply.follow(reader)

    @rule(reader=attached, takes_last=st.booleans())
    def fall_behind(self, reader: FakeReader, takes_last: bool) -> None:
        reader.keeps_up, reader.takes_last = False, takes_last

    @rule(reader=consumes(attached))
    def detach(self, reader: FakeReader) -> None:
        self.readers.remove(reader)
        reader.follows = False
        was_running = self.state == "running"
        self.reply.detach(reader)
        if was_running and not self.readers:
            self.expected_calls.append("unread")
            if self.window_s == 0:
                self._closed("disconnected")

    @precondition(lambda self: self.wanted is None)
    @rule()
    def want(self) -> None:
        self.wanted = self.loop.create_task(self.reply.wanted())

    @precondition(lambda self: self.wanted is not None)
    @rule()
    def stop_wanting(self) -> None:
        self.wanted.cancel()
        self._step()
        self.wanted = None

    # Not too soon: there is more to see before it.
    @precondition(lambda self: self.state == "running" and len(self.raw) > 4)
    @rule(status=STATUSES)
    def close(self, status: FinalStatus) -> None:
        self.reply.close(status)
        self._closed(status)

    @precondition(lambda self: self.state == "closing")
    @rule(status=STATUSES)
    def end(self, status: FinalStatus) -> None:
        """Stored by then, and not always as its home wished: others may have come first."""
        self.reply.end(Ended(status))
        self.state, self.status = "ended", status
        for reader in self.readers:
            self.expected_wakes[reader] += 1

    @rule()
    def cut(self) -> None:
        cuts = {reader: [*reader.cuts, "Why."] for reader in self.readers}
        self.reply.cut("Why.")
        assert all(reader.cuts == cuts[reader] for reader in self.readers)

    @precondition(lambda self: self.state != "running")
    @rule(status=STATUSES)
    def close_again(self, status: FinalStatus) -> None:
        with pytest.raises(AssertionError):
            self.reply.close(status)

    @precondition(lambda self: self.state == "ended")
    @rule(status=STATUSES)
    def end_again(self, status: FinalStatus) -> None:
        with pytest.raises(AssertionError):
            self.reply.end(Ended(status))

    # What is so at any time.

    @invariant()
    def it_has_one_end(self) -> None:
        states = {"running": RUNNING, "closing": Closing, "ended": Ended}
        if self.state == "running":
            assert self.reply.state is RUNNING
        else:
            assert self.reply.state == states[self.state](self.status)

    @invariant()
    def it_has_what_was_said(self) -> None:
        assert self.reply.text == self.text
        assert self.reply.length == len(self.text)
        assert self.limit_chars is None or self.reply.length <= self.limit_chars

    @invariant()
    def it_can_be_stored(self) -> None:
        assert not re.search("[\0\ud800-\udfff]", self.reply.text)
        assert storable(self.reply.text) == self.reply.text

    @invariant()
    def readers_have_seen_the_beginning_of_it(self) -> None:
        for reader in self.readers:
            assert self.text.startswith(reader.seen)
            assert reader.seen == self.text or not reader.follows

    @invariant()
    def readers_are_woken_at_its_end_and_not_before(self) -> None:
        assert {reader: reader.wakes for reader in self.readers} == {
            reader: self.expected_wakes[reader] for reader in self.readers
        }

    @invariant()
    def its_owner_is_told_when_reading_begins_and_ends(self) -> None:
        assert self.calls == self.expected_calls

    @invariant()
    def its_model_waits_exactly_while_it_is_held(self) -> None:
        assert self.reply.is_held is self.is_held
        if self.wanted is not None:
            self._step()
            assert self.wanted.done() is not self.is_held
            if self.wanted.done():
                assert self.wanted.result() is (self.state == "running")
                self.wanted = None


ReplyMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestReply = ReplyMachine.TestCase


def halves(text: str) -> str:
    """Return `text` as a JSON of ASCII has it that is decoded half by half."""
    code_units = text.encode("utf-16-be")
    return "".join(chr(code_units[i] << 8 | code_units[i + 1]) for i in range(0, len(code_units), 2))


def cut_up(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in itertools.pairwise(edges)]


CUTS = st.lists(st.integers(0, 10**6), max_size=20)


@given(st.text(), CUTS)
def test_text_may_be_cut_anywhere_even_in_the_middle_of_a_character(text: str, cuts: list[int]) -> None:
    reply = new_reply()
    for piece in cut_up(halves(text), cuts):
        reply.say(piece)
    reply.close("complete")
    assert reply.text == text.replace("\0", "\ufffd")


@given(st.text(st.characters(exclude_categories=())), CUTS)
def test_text_is_the_same_however_it_was_cut(raw: str, cuts: list[int]) -> None:
    reply = new_reply()
    for piece in cut_up(raw, cuts):
        reply.say(piece)
    reply.close("complete")
    stored, half = expected(raw)
    assert reply.text == storable(raw) == stored + ("\ufffd" if half else "")


def test_half_that_json_has_is_joined_with_the_other_one() -> None:
    reply = new_reply()
    for token in (json.loads(r'"a\ud83d"'), "", json.loads(r'"\ude42b"')):
        reply.say(token)
    assert reply.pieces == ["a", "🙂b"]


def test_reply_that_is_too_long_keeps_what_it_had() -> None:
    reply, reader = new_reply(limit_chars=5), FakeReader()
    reply.attach(reader)
    reader.follows = True
    reply.follow(reader)
    reply.say("1234")
    with pytest.raises(TooLong, match="longer than 5 characters"):
        reply.say("56")
    assert (reply.text, reply.length, reader.seen) == ("1234", 4, "1234")
    reply.say("5")
    assert reply.text == reader.seen == "12345"


def test_half_of_a_piece_that_is_too_long_is_dropped_with_it() -> None:
    reply = new_reply(limit_chars=5)
    reply.say("1")
    with pytest.raises(TooLong):
        reply.say("23456\ud83d")
    reply.close("failed")
    assert reply.text == "1"


def test_half_at_the_end_of_a_reply_that_is_full_is_dropped() -> None:
    reply = new_reply(limit_chars=1)
    reply.say("1\ud83d")
    reply.close("complete")
    assert reply.text == "1"


def test_half_at_the_end_reaches_the_readers() -> None:
    reply, reader = new_reply(), FakeReader()
    reply.attach(reader)
    reader.follows = True
    reply.follow(reader)
    reply.say("1\ud83d")
    assert reader.seen == "1"
    reply.close("complete")
    assert reader.seen == reply.text == "1\ufffd"


async def test_what_is_wanted_is_known_at_once_while_it_is_read() -> None:
    reply = new_reply(window_s=PAUSE_S)
    reply.attach(FakeReader())
    assert await reply.wanted() is True
    reply.close("stopped")
    assert await reply.wanted() is False
