"""The pool by itself: connections are made, lost and closed when the test says so, and it sets the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.storage.pool import Pool, PoolClosed, Session

TIMEOUT_S = 5.0


class Connection:
    """As aiopg's. Closing it twice is an error: by then another may have its file descriptor."""

    def __init__(self) -> None:
        self.closed = False
        self._closings = 0

    def close(self) -> None:
        self._closings += 1
        assert self._closings == 1
        self.closed = True

    def lose(self) -> None:
        """Be closed by the database."""
        self.closed = True


class Rig:
    """A pool, those who take connections from it, and the database and the clock that they know."""

    def __init__(self, size: int = 1, *, forgetful: bool = False) -> None:
        self.pool = Pool(self._connect, size=size, timeout_s=TIMEOUT_S)
        # A cancellation that comes together with the connection is forgotten, as wait_for of Python 3.11 does it.
        self._forgetful = forgetful
        # What each attempt to connect waits for.
        self.attempts: list[asyncio.Future[None]] = []
        self.made: list[Session] = []
        self.now_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._loop.time = lambda: self.now_s  # type: ignore[method-assign]

    async def _connect(self) -> Session:
        attempt = self._loop.create_future()
        self.attempts.append(attempt)
        try:
            await attempt
        except asyncio.CancelledError:
            if attempt.cancelled() or not self._forgetful:
                raise
        finally:
            self.attempts.remove(attempt)
        self.made.append(Session(Connection(), None))  # type: ignore[arg-type]
        return self.made[-1]

    @property
    def open(self) -> int:
        return sum(not session.connection.closed for session in self.made)

    def answer(self, error: Exception | None = None) -> None:
        """Let the oldest attempt to connect succeed, or fail."""
        attempt = next(attempt for attempt in self.attempts if not attempt.done())
        if error is None:
            attempt.set_result(None)
        else:
            attempt.set_exception(error)

    async def taker(self) -> asyncio.Task[Session]:
        """Begin to take a connection, as far as that goes by itself."""
        task = asyncio.create_task(self.pool.take())
        await settle()
        return task

    async def take(self) -> Session:
        """Take a connection, made if none is free."""
        task = await self.taker()
        if self.attempts:
            self.answer()
            await settle()
        return task.result()

    async def at(self, when_s: float, *events: Callable[[], Any]) -> None:
        """Let it become this time, with these events a moment before that, in one turn of the event loop."""
        for number, event in enumerate(events):
            self._loop.call_at(when_s - 0.001 * (len(events) - number), event)
        self.now_s = when_s
        await settle()


async def settle() -> None:
    """Let all happen that needs no more than turns of the event loop: a few for each of those who wait."""
    for _ in range(50):
        await asyncio.sleep(0)


def outcome(task: asyncio.Task[Session]) -> Any:
    """Return what a taker has got: a session, an exception's class, or None while it waits."""
    if not task.done():
        return None
    if task.cancelled():
        return asyncio.CancelledError
    return type(task.exception()) if task.exception() else task.result()


async def test_connection_that_was_used_last_is_used_next() -> None:
    rig = Rig(size=3)
    first, second, third = [await rig.take() for _ in range(3)]
    for session in (second, third, first):
        rig.pool.give_back(session)
    assert [await rig.take() for _ in range(3)] == [first, third, second]
    assert len(rig.made) == 3


async def test_connection_that_is_free_is_taken_without_waiting() -> None:
    rig = Rig()
    rig.pool.give_back(await rig.take())
    coroutine = rig.pool.take()
    with pytest.raises(StopIteration):
        coroutine.send(None)


async def test_no_more_than_its_size_are_made_and_those_who_wait_are_served_in_turn() -> None:
    rig = Rig(size=2)
    first, second = await rig.take(), await rig.take()
    waiting = [await rig.taker() for _ in range(3)]
    assert (rig.attempts, rig.pool.used) == ([], {first, second})
    rig.pool.give_back(second)
    rig.pool.give_back(first)
    await settle()
    assert [outcome(task) for task in waiting[:2]] in ([first, second], [second, first])
    assert outcome(waiting[2]) is None
    rig.pool.give_back(first)
    await settle()
    assert outcome(waiting[2]) == first
    assert len(rig.made) == 2


async def test_newcomer_does_not_overtake_those_who_wait() -> None:
    rig = Rig()
    session = await rig.take()
    waiting = await rig.taker()
    rig.pool.give_back(session)
    newcomer = await rig.taker()
    assert (outcome(waiting), outcome(newcomer)) == (session, None)
    rig.pool.give_back(session)
    await settle()
    assert outcome(newcomer) == session


async def test_connections_are_made_at_the_same_time() -> None:
    rig = Rig(size=2)
    takers = [await rig.taker() for _ in range(3)]
    assert len(rig.attempts) == 2
    rig.answer()
    rig.answer()
    await settle()
    assert [task.done() for task in takers] == [True, True, False]


async def test_wait_ends_with_the_timeout_and_not_before() -> None:
    rig = Rig()
    session = await rig.take()
    task = await rig.taker()
    await rig.at(TIMEOUT_S - 0.1)
    assert outcome(task) is None
    await rig.at(TIMEOUT_S)
    assert outcome(task) is TimeoutError
    rig.pool.give_back(session)
    assert await rig.take() == session


async def test_attempt_that_hangs_ends_with_the_timeout_and_its_slot_goes_to_who_waits() -> None:
    rig = Rig()
    hanging = await rig.taker()
    await rig.at(1.0)
    waiting = await rig.taker()
    await rig.at(TIMEOUT_S)
    assert (outcome(hanging), outcome(waiting)) == (TimeoutError, None)
    rig.answer()
    await settle()
    assert outcome(waiting) == rig.made[0]


async def test_attempt_that_comes_after_a_wait_has_what_is_left_of_its_time() -> None:
    rig = Rig()
    hanging = await rig.taker()
    await rig.at(3.0)
    waiting = await rig.taker()
    await rig.at(4.0)
    rig.answer(OSError())
    await settle()
    assert (outcome(hanging), outcome(waiting), len(rig.attempts)) == (OSError, None, 1)
    await rig.at(3.0 + TIMEOUT_S)
    assert (outcome(waiting), rig.attempts) == (TimeoutError, [])


async def test_attempt_that_fails_gives_its_slot_to_who_waits() -> None:
    rig = Rig()
    takers = [await rig.taker() for _ in range(3)]
    for task in takers[:2]:
        rig.answer(OSError())
        await settle()
        assert outcome(task) is OSError
    rig.answer()
    await settle()
    assert outcome(takers[2]) == rig.made[0]


async def test_attempt_that_is_cancelled_gives_its_slot_to_who_waits() -> None:
    rig = Rig()
    attempting, waiting = await rig.taker(), await rig.taker()
    attempting.cancel()
    await settle()
    assert outcome(attempting) is asyncio.CancelledError
    rig.answer()
    await settle()
    assert outcome(waiting) == rig.made[0]


async def test_attempt_that_is_cancelled_by_nobody_gives_its_slot_to_who_waits() -> None:
    rig = Rig()
    attempting, waiting = await rig.taker(), await rig.taker()
    rig.attempts[0].cancel()
    await settle()
    assert outcome(attempting) is asyncio.CancelledError
    rig.answer()
    await settle()
    assert outcome(waiting) == rig.made[0]


@pytest.mark.parametrize("order", ["given back, cancelled", "cancelled, given back"])
async def test_who_is_cancelled_at_the_moment_of_being_served_passes_it_on(order: str) -> None:
    rig = Rig()
    session = await rig.take()
    cancelled, waiting = await rig.taker(), await rig.taker()
    if order == "given back, cancelled":
        rig.pool.give_back(session)
        cancelled.cancel()
    else:
        cancelled.cancel()
        rig.pool.give_back(session)
    await settle()
    assert (outcome(cancelled), outcome(waiting)) == (asyncio.CancelledError, session)


async def test_who_times_out_at_the_moment_of_being_served_passes_it_on() -> None:
    rig = Rig()
    session = await rig.take()
    late = await rig.taker()
    await rig.at(1.0)
    waiting = await rig.taker()
    # Both in one turn of the event loop: late is served, and out of time before it has run.
    await rig.at(TIMEOUT_S, lambda: rig.pool.give_back(session))
    assert (outcome(late), outcome(waiting)) == (TimeoutError, session)


async def test_connection_given_back_at_the_moment_after_a_timeout_goes_to_the_next() -> None:
    rig = Rig()
    session = await rig.take()
    late = await rig.taker()
    await rig.at(1.0)
    waiting = await rig.taker()
    await rig.at(TIMEOUT_S + 0.002, lambda: None, lambda: rig.pool.give_back(session))
    assert (outcome(late), outcome(waiting)) == (TimeoutError, session)


async def test_who_is_cancelled_as_its_connection_is_made_passes_on_its_slot() -> None:
    rig = Rig()
    cancelled, waiting = await rig.taker(), await rig.taker()
    rig.answer()
    cancelled.cancel()
    await settle()
    assert (outcome(cancelled), rig.made, len(rig.attempts)) == (asyncio.CancelledError, [], 1)
    rig.answer()
    await settle()
    assert outcome(waiting) == rig.made[0]


async def test_who_has_a_connection_although_cancelled_may_give_it_back() -> None:
    rig = Rig(forgetful=True)
    cancelled = await rig.taker()
    rig.answer()
    cancelled.cancel()
    await settle()
    rig.pool.give_back(cancelled.result())
    assert await rig.take() == cancelled.result()


async def test_who_has_a_connection_although_out_of_time_may_give_it_back() -> None:
    rig = Rig(forgetful=True)
    late = await rig.taker()
    await rig.at(TIMEOUT_S, rig.answer)
    rig.pool.give_back(late.result())
    assert await rig.take() == late.result()


async def test_free_connections_that_died_are_dropped() -> None:
    rig = Rig(size=3)
    sessions = [await rig.take() for _ in range(3)]
    for session in sessions:
        rig.pool.give_back(session)
    for session in sessions[1:]:
        session.connection.lose()
    assert await rig.take() == sessions[0]
    assert len(rig.made) == 3
    others = [await rig.take() for _ in range(2)]
    assert rig.pool.used == {sessions[0], *others}
    assert len(rig.made) == 5


@pytest.mark.parametrize("how", ["close", "lose"])
async def test_connection_that_is_given_back_closed_is_dropped_and_another_made_for_who_waits(how: str) -> None:
    rig = Rig()
    session = await rig.take()
    waiting = await rig.taker()
    getattr(session.connection, how)()
    rig.pool.give_back(session)
    await settle()
    rig.answer()
    await settle()
    assert outcome(waiting) == rig.made[1]


async def test_free_connection_that_dies_before_who_waits_has_it_is_replaced() -> None:
    rig = Rig()
    session = await rig.take()
    waiting = await rig.taker()
    rig.pool.give_back(session)
    session.connection.lose()
    await settle()
    rig.answer()
    await settle()
    assert outcome(waiting) == rig.made[1]


async def test_connection_given_back_twice_is_an_error() -> None:
    rig = Rig()
    session = await rig.take()
    rig.pool.give_back(session)
    with pytest.raises(KeyError):
        rig.pool.give_back(session)
    assert [await rig.take(), outcome(await rig.taker())] == [session, None]


async def test_clear_closes_the_free_connections_now_and_those_in_use_when_they_are_given_back() -> None:
    rig = Rig(size=2)
    free, used = await rig.take(), await rig.take()
    rig.pool.give_back(free)
    rig.pool.clear()
    rig.pool.clear()
    assert (free.connection.closed, used.connection.closed) == (True, False)
    made_after = await rig.take()
    for session in (used, made_after):
        rig.pool.give_back(session)
    assert (used.connection.closed, made_after.connection.closed) == (True, False)
    assert [await rig.take(), await rig.take()] == [made_after, rig.made[-1]]


async def test_connection_that_died_in_use_is_not_closed_again_by_clear() -> None:
    rig = Rig()
    session = await rig.take()
    rig.pool.clear()
    session.connection.lose()
    rig.pool.give_back(session)
    assert await rig.take() == rig.made[1]


async def test_closed_pool_gives_no_connection() -> None:
    rig = Rig(size=2)
    rig.pool.give_back(await rig.take())
    await rig.pool.close(1.0)
    assert (rig.open, outcome(await rig.taker())) == (0, PoolClosed)


async def test_close_waits_for_a_connection_in_use_and_closes_it() -> None:
    rig = Rig(size=2)
    session = await rig.take()
    closing = asyncio.create_task(rig.pool.close(1.0))
    await settle()
    assert (closing.done(), rig.open, outcome(await rig.taker())) == (False, 1, PoolClosed)
    rig.pool.give_back(session)
    await settle()
    assert (closing.done(), rig.open) == (True, 0)


async def test_close_waits_no_longer_than_it_is_told_for_a_connection_in_use() -> None:
    rig = Rig(size=2)
    session = await rig.take()
    closing = asyncio.create_task(rig.pool.close(1.0))
    await settle()
    await rig.at(0.9)
    assert (closing.done(), rig.open) == (False, 1)
    await rig.at(1.0)
    assert (closing.done(), rig.open) == (True, 0)
    rig.pool.give_back(session)
    assert rig.pool.used == set()


async def test_who_waits_when_the_pool_is_closed_is_told_and_no_connection_is_made() -> None:
    rig = Rig()
    session = await rig.take()
    waiting = [await rig.taker() for _ in range(2)]
    closing = asyncio.create_task(rig.pool.close(1.0))
    await settle()
    rig.pool.give_back(session)
    await settle()
    assert [outcome(task) for task in waiting] == [PoolClosed, PoolClosed]
    assert (closing.done(), rig.attempts, rig.open) == (True, [], 0)


@pytest.mark.parametrize("made_in_time", [True, False])
async def test_connection_that_is_made_while_the_pool_is_closed_is_closed(made_in_time: bool) -> None:
    rig = Rig()
    attempting = await rig.taker()
    closing = asyncio.create_task(rig.pool.close(1.0))
    await settle()
    assert not closing.done()
    if not made_in_time:
        await rig.at(1.0)
        assert closing.done()
    rig.answer()
    await settle()
    assert (outcome(attempting), closing.done()) == (PoolClosed, True)
    assert (len(rig.made), rig.open, rig.pool.used) == (1, 0, set())


@settings(max_examples=300, deadline=None)
@given(data=st.data(), size=st.integers(1, 3), forgetful=st.booleans())
def test_no_slot_is_lost_and_none_is_there_twice_whatever_happens(
    data: st.DataObject, size: int, forgetful: bool
) -> None:
    asyncio.run(Story(size, forgetful).run(data))


class Story:
    """A pool, and whatever may happen to it."""

    def __init__(self, size: int, forgetful: bool) -> None:
        self.size = size
        self.forgetful = forgetful
        self.takers: list[asyncio.Task[Session]] = []
        self.held: list[Session] = []
        self.closing: asyncio.Task[None] | None = None

    async def run(self, data: st.DataObject) -> None:
        self.rig = Rig(self.size, forgetful=self.forgetful)
        await self.go_on(data, data.draw(st.integers(0, 40)))
        if data.draw(st.booleans()):
            self.closing = asyncio.create_task(self.rig.pool.close(1.0))
            await self.go_on(data, data.draw(st.integers(0, 10)))
        await settle()
        self.check()
        # Whoever waits does so because all that there may be is in use or being made.
        if len(self.takers) > len(self.rig.attempts):
            assert len(self.held) + len(self.rig.attempts) == self.size
        await self.all_is_given_back()
        if self.closing is None:
            await self.all_can_be_taken()

    async def go_on(self, data: st.DataObject, steps: int) -> None:
        for _ in range(steps):
            for _ in range(data.draw(st.sampled_from([0, 0, 1, 2, 20]))):
                await asyncio.sleep(0)
            self.check()
            events = self.events()
            events[data.draw(st.sampled_from(list(events)))]()

    def events(self) -> dict[str, Callable[[], object]]:
        """Return what may happen next."""
        rig = self.rig
        events: dict[str, Callable[[], object]] = {
            "clear": rig.pool.clear,
            "1 s": lambda: self.pass_time(1.0),
            "timeout": lambda: self.pass_time(TIMEOUT_S),
        }
        if len(self.takers) < 8:
            events["take"] = lambda: self.takers.append(asyncio.create_task(rig.pool.take()))
        for number, attempt in enumerate(rig.attempts):
            if not attempt.done():
                events[f"attempt {number} succeeds"] = partial(attempt.set_result, None)
                events[f"attempt {number} fails"] = partial(attempt.set_exception, OSError())
        for number, task in enumerate(self.takers):
            events[f"taker {number} is cancelled"] = task.cancel
        for number, session in enumerate(self.held):
            connection = session.connection
            events[f"{number} is given back"] = partial(self.give_back, session)
            if not connection.closed:
                events[f"{number} is given back closed"] = partial(self.give_back, session, connection.close)
                events[f"{number} is given back lost"] = partial(self.give_back, session, connection.lose)
        for number, session in enumerate(rig.made):
            if not session.connection.closed and session not in rig.pool.used:
                events[f"free {number} is lost"] = session.connection.lose
        return events

    def pass_time(self, seconds: float) -> None:
        self.rig.now_s += seconds

    def give_back(self, session: Session, before: Callable[[], object] = lambda: None) -> None:
        before()
        self.held.remove(session)
        self.rig.pool.give_back(session)

    def check(self) -> None:
        rig = self.rig
        for task in [task for task in self.takers if task.done()]:
            self.takers.remove(task)
            got = outcome(task)
            if isinstance(got, Session):
                assert got not in self.held
                assert not got.connection.closed or self.closing is not None
                self.held.append(got)
        assert rig.open + len(rig.attempts) <= self.size

    async def all_is_given_back(self) -> None:
        self.pass_time(TIMEOUT_S)
        await settle()
        self.check()
        assert (self.takers, self.rig.attempts) == ([], [])
        if self.closing is not None:
            assert (self.closing.done(), self.rig.open) == (True, 0)
        for session in self.held:
            self.rig.pool.give_back(session)
        assert self.rig.pool.used == set()

    async def all_can_be_taken(self) -> None:
        taken = {await self.rig.take() for _ in range(self.size)}
        assert (len(taken), taken) == (self.size, self.rig.pool.used)
        one_more = await self.rig.taker()
        assert outcome(one_more) is None
        one_more.cancel()
        await settle()
