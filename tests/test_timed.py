"""How long models take: the times are noted, and nothing else changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from support import Clock

from app.models import Conversation, Message, Model, Piece, PushReply, Reasoning, Stop, Usage
from app.models.simulated import Simulated
from app.models.timed import Histogram, Timings, timed

STREAM = Conversation([Message("user", "Hi")], stream=True)
WHOLE = Conversation([Message("user", "Hi")], stream=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("app.models.timed.perf_counter", clock)
    return clock


@pytest.fixture
def timings() -> Timings:
    """Each whole second is counted by itself."""
    timings = Timings()
    timings.first, timings.gaps = Histogram(range(1, 10)), Histogram(range(1, 10))
    return timings


def noted(times: Histogram) -> list[int]:
    """Return the times, shortest first."""
    return [time_s for time_s, count in enumerate([*times.counts], 1) for _ in range(count)]


def takes(clock: Clock, *said: tuple[float, Piece]) -> Model:
    """Return a model that takes so long for each piece."""

    async def model(conversation: Conversation) -> AsyncIterator[Piece]:
        for time_s, piece in said:
            clock.now_s += time_s
            yield piece

    return model


class Pushed(PushReply):
    """Takes a second for its first piece, then 2, then 3..."""

    def __init__(self, clock: Clock) -> None:
        self.text_length, self.total_pieces = 6, 3
        self.closed = False
        self._clock = clock
        self._said = 0

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        raise AssertionError("pulled, expected to be pushed")

    async def aclose(self) -> None:
        self.closed = True

    async def push(self, say: Callable[[str], bool]) -> bool:
        while self._said < 3:
            self._said += 1
            self._clock.now_s += self._said
            if not say("ab"):
                return True
        return False


async def test_first_piece_and_gaps_of_a_pulled_reply(clock: Clock, timings: Timings) -> None:
    said: list[tuple[float, Piece]] = [
        (0, Usage(3, 0)),
        (2, Reasoning("Hm")),
        (3, "a"),
        (4, "b"),
        (0, Stop("end")),
    ]
    pieces = [piece async for piece in timed(takes(clock, *said), timings)(STREAM)]
    assert pieces == [piece for _, piece in said]
    assert (noted(timings.first), noted(timings.gaps)) == ([2], [3, 4])
    assert (timings.first.sum_s, timings.gaps.sum_s) == (2, 7)


async def test_time_for_which_a_pulled_reply_is_held_is_no_gap(clock: Clock, timings: Timings) -> None:
    async for _ in timed(takes(clock, (1, "a"), (2, "b")), timings)(STREAM):
        clock.now_s += 100
    assert (noted(timings.first), noted(timings.gaps)) == ([1], [2])


async def test_first_piece_and_gaps_of_a_pushed_reply_without_what_it_is_held_for(
    clock: Clock, timings: Timings
) -> None:
    inner = Pushed(clock)
    reply = timed(lambda _: inner, timings)(STREAM)
    assert isinstance(reply, PushReply)
    taken: list[str] = []

    def say(piece: str) -> bool:
        taken.append(piece)
        return len(taken) != 2

    assert await reply.push(say)
    clock.now_s += 100
    assert not await reply.push(say)
    assert taken == ["ab"] * 3
    assert (noted(timings.first), noted(timings.gaps)) == ([1], [2, 3])
    await reply.aclose()
    assert inner.closed


async def test_reply_that_fails_before_its_first_piece_has_taken_no_time(clock: Clock, timings: Timings) -> None:
    reply = timed(takes(clock), timings)(STREAM)
    assert [piece async for piece in reply] == []
    assert (noted(timings.first), noted(timings.gaps)) == ([], [])


async def test_reply_of_which_only_the_whole_counts_is_not_timed(clock: Clock, timings: Timings) -> None:
    assert [piece async for piece in timed(takes(clock, (1, "a"), (1, "b")), timings)(WHOLE)] == ["a", "b"]
    assert (noted(timings.first), noted(timings.gaps)) == ([], [])


async def test_simulated_reply_is_still_pushed_and_says_its_length() -> None:
    timings, said = Timings(), list[str]()
    reply = timed(Simulated((0, 0)), timings)(STREAM)

    def say(word: str) -> bool:
        said.append(word)
        return True

    assert isinstance(reply, PushReply)
    pushed: Awaitable[bool] = reply.push(say)
    assert not await pushed
    assert getattr(reply, "total_pieces", None) == len(said)
    assert getattr(reply, "text_length", None) == len("".join(said))
    assert (sum(timings.first.counts), sum(timings.gaps.counts)) == (1, len(said) - 1)


@pytest.mark.parametrize(("time_s", "counts"), [(0, [1, 0, 0]), (1, [1, 0, 0]), (1.5, [0, 1, 0]), (9, [0, 0, 1])])
def test_time_is_counted_at_the_first_bound_that_it_does_not_exceed(time_s: float, counts: list[int]) -> None:
    times = Histogram([1, 2])
    times.observe(time_s)
    assert (times.counts, times.sum_s) == (counts, time_s)
