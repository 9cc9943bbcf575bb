"""When the simulated model says it, pushed and pulled: the seam's contract, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from math import inf
from unittest.mock import Mock

import pytest
from virtual import now_ms, virtual_loop, virtually

from app.models import Conversation, Message, PushReply
from app.models.simulated import Simulated, SimulatedReply
from app.models.texts import compose


class Listener:
    """What is said to it, and when; it wants `wants` words at a time, and calls `then` after each."""

    def __init__(self, wants: float = inf, then: Callable[[], object] = lambda: None) -> None:
        self.words: list[str] = []
        self.at_ms: list[float] = []
        self._wants = wants
        self._then = then

    def __call__(self, word: str) -> bool:
        self.words.append(word)
        self.at_ms.append(now_ms())
        self._then()
        return len(self.words) % self._wants != 0


MODEL = Simulated((125, 125), "1")
ASKED = Conversation([Message("user", "Hi")], stream=True)
HI = list(compose(["Hi"], random.Random("1\0Hi")))


def every_125_ms() -> SimulatedReply:
    """Return a reply that says the 39 words of HI. Its delays are exact in binary, and so are all times."""
    return MODEL(ASKED)


@virtually
async def test_only_a_reply_with_a_push_is_a_push_reply() -> None:
    async def model(conversation: Conversation) -> AsyncIterator[str]:
        yield "Hi"

    assert isinstance(Simulated()(ASKED), PushReply)
    assert not isinstance(model(ASKED), PushReply)


@virtually
async def test_pushed_words_are_said_when_they_are_due() -> None:
    listener = Listener()
    assert await every_125_ms().push(listener) is False
    assert listener.words == HI
    assert listener.at_ms == [125 * nth for nth in range(1, 40)]
    assert now_ms() == listener.at_ms[-1]


@virtually
async def test_pulled_words_are_the_same_at_the_same_times() -> None:
    listener = Listener()
    async for word in every_125_ms():
        listener(word)
    assert listener.words == HI
    assert listener.at_ms == [125 * nth for nth in range(1, 40)]


@virtually
async def test_push_goes_on_where_a_pull_has_stopped() -> None:
    reply, listener = every_125_ms(), Listener()
    assert [await anext(reply), await anext(reply)] == HI[:2]
    assert await reply.push(listener) is False
    assert listener.words == HI[2:]
    assert listener.at_ms[0] == 375


@virtually
async def test_length_is_known_beforehand() -> None:
    reply = every_125_ms()
    assert (reply.total_pieces, reply.text_length) == (len(HI), len("".join(HI)))


def test_seed_gives_the_same_text_at_the_same_times() -> None:
    @virtually
    async def run(seed: str) -> Listener:
        listener = Listener()
        await Simulated((10, 30), seed)(ASKED).push(listener)
        return listener

    first, second, other = run("1"), run("1"), run("2")
    assert (first.words, first.at_ms) == (second.words, second.at_ms)
    assert first.at_ms[:5] != other.at_ms[:5]


@virtually
async def test_five_words_take_50_to_150_ms() -> None:
    listener = Listener()
    await Simulated()(ASKED).push(listener)
    assert 50 <= listener.at_ms[4] <= 150


@virtually
async def test_reply_nobody_reads_along_is_one_piece_at_once() -> None:
    listener = Listener()
    assert await MODEL(Conversation(ASKED.messages, stream=False)).push(listener) is False
    assert (listener.words, listener.at_ms) == (["".join(HI)], [0])


@virtually
async def test_words_without_a_delay_are_said_32_in_a_step_of_the_loop() -> None:
    listener, counts = Listener(), set()
    story = Conversation([Message("user", "A story")], stream=True)
    pushed = asyncio.ensure_future(Simulated((0, 0))(story).push(listener))
    while not pushed.done():
        counts.add(len(listener.words))
        await asyncio.sleep(0)
    assert sorted(counts) == [0, 32, 64, 96, 128, 160, 192, 217]
    assert now_ms() == 0


@virtually
async def test_word_that_is_held_is_due_at_most_100_ms_ago() -> None:
    reply, listener = every_125_ms(), Listener(wants=2)
    assert await reply.push(listener) is True
    await asyncio.sleep(10)
    assert listener.at_ms == [125, 250]
    assert await reply.push(listener) is True
    # As if it had been due at 10150, so that the next is at 10275.
    assert listener.at_ms[2:] == [10250, 10275]


@virtually
async def test_hold_that_is_shorter_than_a_delay_slows_nothing() -> None:
    reply, listener = every_125_ms(), Listener(wants=1)
    assert await reply.push(listener) is True
    await asyncio.sleep(0.1)
    assert await reply.push(listener) is True
    assert listener.at_ms == [125, 250]


@virtually
async def test_hold_at_the_last_word_is_told_first_and_the_end_then() -> None:
    reply, listener = every_125_ms(), Listener(wants=len(HI))
    assert await reply.push(listener) is True
    assert await reply.push(listener) is False
    assert await reply.push(listener) is False
    assert listener.words == HI


@virtually
async def test_loop_that_was_blocked_catches_up_100_ms() -> None:
    def block() -> None:
        if len(listener.words) == 1:
            virtual_loop().now_s += 1

    listener = Listener(then=block)
    await Simulated((31.25, 31.25), "1")(ASKED).push(listener)
    # The second had its time before; the third's is 931.
    assert listener.at_ms[:8] == [31, 1031, 1031, 1031, 1031, 1031, 1056, 1087]


@pytest.mark.parametrize("nth", [1, 5, 39])
@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError, ValueError),
        (asyncio.CancelledError, asyncio.CancelledError),
        # As of any generator.
        (StopIteration, RuntimeError),
    ],
)
@virtually
async def test_what_say_raises_ends_that_reply_alone(
    nth: int, raised: type[BaseException], expected: type[BaseException]
) -> None:
    failing, other = Listener(then=Mock(side_effect=[*[None] * (nth - 1), raised])), Listener()
    reply = every_125_ms()
    pushed = asyncio.ensure_future(reply.push(failing))
    others = asyncio.ensure_future(every_125_ms().push(other))
    with pytest.raises(expected):
        await pushed
    assert now_ms() == 125 * nth
    assert await reply.push(failing) is False
    assert await others is False
    assert (failing.words, other.words) == (HI[:nth], HI)


@pytest.mark.parametrize("first", [True, False])
@virtually
async def test_reply_that_is_cancelled_by_another_in_its_tick_says_no_more(first: bool) -> None:
    cancelling, cancelled = Listener(then=lambda: pushed.cancel()), Listener()
    reply = every_125_ms()
    if first:
        pushed = asyncio.ensure_future(reply.push(cancelled))
        await asyncio.sleep(0)
    others = asyncio.ensure_future(every_125_ms().push(cancelling))
    if not first:
        pushed = asyncio.ensure_future(reply.push(cancelled))
    with pytest.raises(asyncio.CancelledError):
        await pushed
    assert await reply.push(cancelled) is False
    assert await others is False
    assert (cancelled.words, cancelling.words) == (HI[:1] if first else [], HI)


@pytest.mark.parametrize("wants", [1, inf])
@pytest.mark.parametrize("raises", [True, False])
@virtually
async def test_reply_whose_say_cancels_it_says_no_more(wants: float, raises: bool) -> None:
    def cancel() -> None:
        pushed.cancel()
        if raises:
            raise ValueError

    listener, other = Listener(wants, then=cancel), Listener()
    reply = every_125_ms()
    pushed = asyncio.ensure_future(reply.push(listener))
    others = asyncio.ensure_future(every_125_ms().push(other))
    with pytest.raises(asyncio.CancelledError):
        await pushed
    assert await reply.push(listener) is False
    assert await others is False
    assert (listener.words, other.words) == (HI[:1], HI)


@virtually
async def test_reply_that_is_closed_before_it_is_pushed_says_nothing() -> None:
    reply, listener = every_125_ms(), Listener()
    await reply.aclose()
    assert await reply.push(listener) is False
    assert listener.words == []
    with pytest.raises(StopAsyncIteration):
        await anext(reply)


@virtually
async def test_reply_that_is_closed_while_it_is_pushed_ends_at_once() -> None:
    reply, listener = every_125_ms(), Listener()
    pushed = asyncio.ensure_future(reply.push(listener))
    await asyncio.sleep(0.2)
    await reply.aclose()
    assert await pushed is False
    assert now_ms() == 200
    await asyncio.sleep(1)
    assert listener.words == HI[:1]


@virtually
async def test_second_push_at_a_time_is_refused_and_the_first_goes_on() -> None:
    reply, listener = every_125_ms(), Listener()
    pushed = asyncio.ensure_future(reply.push(listener))
    await asyncio.sleep(0)
    with pytest.raises(AssertionError, match="expected one at a time"):
        await reply.push(listener)
    assert await pushed is False
    assert listener.words == HI


@virtually
async def test_clock_with_nothing_to_say_does_not_wake_the_loop() -> None:
    loop = virtual_loop()
    assert await every_125_ms().push(Listener()) is False
    assert await every_125_ms().push(Listener(wants=1)) is True
    waits = loop.waits
    await asyncio.sleep(1000)
    assert loop.waits == waits + 1


@virtually
async def test_reply_that_is_cancelled_wakes_the_loop_once_at_most() -> None:
    loop = virtual_loop()
    pushed = asyncio.ensure_future(every_125_ms().push(Listener()))
    await asyncio.sleep(0)
    pushed.cancel()
    await asyncio.sleep(1000)
    assert loop.waits == 2


def test_two_event_loops_one_after_the_other_are_both_answered() -> None:
    model = Simulated((1, 1), "1")

    async def run() -> list[str]:
        return [word async for word in model(ASKED)]

    assert [asyncio.run(run()), asyncio.run(run())] == [HI, HI]
