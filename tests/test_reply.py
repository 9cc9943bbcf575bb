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
from hypothesis.stateful import initialize, invariant, precondition, rule
from state_machine import LIMITS, PAUSE_S, STATUSES, WINDOWS, ReplyMachine, expected

from app.replies.reply import (
    RUNNING,
    Closing,
    Ended,
    FinalStatus,
    Reply,
    TooLong,
    storable,
)


def new_reply(**options: Any) -> Reply:
    return Reply("id", "chat", datetime.now(UTC), **options)


class FakeReader:
    """Sees what it is pushed, and by itself what it has missed."""

    def __init__(self, seen: str = "") -> None:
        self.seen = seen
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


class ReplyByItself(ReplyMachine):
    @initialize(window_s=WINDOWS, limit_chars=LIMITS)
    def begin(self, window_s: float | None, limit_chars: int | None) -> None:
        self.expect(window_s, limit_chars)
        self.loop = asyncio.new_event_loop()
        self.reply = new_reply(
            window_s=window_s, limit_chars=limit_chars, on_read=self._on_read, on_unread=self._on_unread
        )
        self.is_stored = False
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

    def speak(self, piece: str) -> None:
        if self.status is not None:
            assert self.reply.say(piece) is False
        elif self.is_too_long(piece):
            with pytest.raises(TooLong, match=f"longer than {self.limit_chars} characters"):
                self.reply.say(piece)
            # As its driver does.
            self.reply.close("failed")
            self.said(piece)
        else:
            self.said(piece)
            assert self.reply.say(piece) is not self.is_held

    def come(self, seen: str, elsewhere: bool) -> FakeReader:
        reader = FakeReader(seen)
        if self.status is None and not self.readers:
            self.expected_calls.append("read")
        self.expected_wakes[reader] = 0
        self.reply.attach(reader)
        return reader

    def leave(self, reader: FakeReader, abruptly: bool) -> None:
        reader.follows = False
        if self.status is None and self.readers == [reader]:
            self.expected_calls.append("unread")
        self.reply.detach(reader)

    def bring_about(self, status: FinalStatus, elsewhere: bool) -> FinalStatus:
        self.reply.close(status)
        return status

    def actual_text(self) -> str:
        return self.reply.text

    def actual_status(self) -> FinalStatus | None:
        return None if self.reply.state is RUNNING else self.reply.state.status

    def model_waits(self) -> bool:
        return self.reply.is_held

    # What else may happen.

    @rule()
    def think(self) -> None:
        runs = self.status is None
        expected_thoughts = {reader: reader.thoughts + (runs and reader.follows) for reader in self.readers}
        self.reply.think("Hm")
        assert {reader: reader.thoughts for reader in self.readers} == expected_thoughts

    @rule(reader=ReplyMachine.attached, twice=st.booleans())
    def catch_up(self, reader: FakeReader, twice: bool) -> None:
        reader.seen += self.reply.text[len(reader.seen) :]
        reader.follows = reader.keeps_up = True
        for _ in range(1 + twice):
            self.reply.follow(reader)

    @rule(reader=ReplyMachine.attached, takes_last=st.booleans())
    def fall_behind(self, reader: FakeReader, takes_last: bool) -> None:
        reader.keeps_up, reader.takes_last = False, takes_last

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

    @precondition(lambda self: self.status is not None and not self.is_stored)
    @rule(status=STATUSES)
    def end(self, status: FinalStatus) -> None:
        """Stored by then, and not always as its home wished: others may have come first."""
        self.reply.end(Ended(status))
        self.is_stored, self.status = True, status
        for reader in self.readers:
            self.expected_wakes[reader] += 1

    @rule()
    def cut(self) -> None:
        cuts = {reader: [*reader.cuts, "Why."] for reader in self.readers}
        self.reply.cut("Why.")
        assert all(reader.cuts == cuts[reader] for reader in self.readers)

    @precondition(lambda self: self.status is not None)
    @rule(status=STATUSES)
    def close_again(self, status: FinalStatus) -> None:
        with pytest.raises(AssertionError):
            self.reply.close(status)

    @precondition(lambda self: self.is_stored)
    @rule(status=STATUSES)
    def end_again(self, status: FinalStatus) -> None:
        with pytest.raises(AssertionError):
            self.reply.end(Ended(status))

    # What else is so at any time.

    @invariant()
    def its_state_says_whether_its_end_is_stored(self) -> None:
        kind = type(RUNNING) if self.status is None else Ended if self.is_stored else Closing
        assert type(self.reply.state) is kind

    @invariant()
    def its_length_is_known(self) -> None:
        assert self.reply.length == len(self.text)

    @invariant()
    def it_can_be_stored(self) -> None:
        assert not re.search("[\0\ud800-\udfff]", self.reply.text)
        assert storable(self.reply.text) == self.reply.text

    @invariant()
    def readers_are_woken_at_its_end_and_not_before(self) -> None:
        assert {reader: reader.wakes for reader in self.readers} == {
            reader: self.expected_wakes[reader] for reader in self.readers
        }

    @invariant()
    def its_owner_is_told_when_reading_begins_and_ends(self) -> None:
        assert self.calls == self.expected_calls

    @invariant()
    def what_is_wanted_is_known_once_it_is_not_held(self) -> None:
        if self.wanted is not None:
            self._step()
            assert self.wanted.done() is not self.is_held
            if self.wanted.done():
                assert self.wanted.result() is (self.status is None)
                self.wanted = None


ReplyByItself.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestReply = ReplyByItself.TestCase


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
