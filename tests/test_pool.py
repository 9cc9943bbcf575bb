"""The pool by itself: connections are made, lost and closed when the test says so, and it sets the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Rig:
    """A pool, those who take connections from it, and the database and the clock that they know."""

    def __init__(self, size: int = 1, *, forgetful: bool = False) -> None:
        self.pool = Pool(self._connect, size=size, timeout_s=TIMEOUT_S)
        # A cancellation that comes together with the connection is forgotten, as wait_for of Python 3.11 does it.
        self._forgetful = forgetful
        # What each attempt to connect waits for.
        self.attempts: list[asyncio.Future[None]] = []
        self.made: list[Connection] = []
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
        connection: Any = Connection()
        self.made.append(connection)
        return Session(connection, None)

    @property
    def open(self) -> int:
        return sum(not connection.closed for connection in self.made)

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
    """Let all happen that needs no more than turns of the event loop."""
    for _ in range(20):
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
    assert outcome(waiting) == Session(rig.made[0], None)  # type: ignore[arg-type]


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
    assert outcome(takers[2]) == Session(rig.made[0], None)  # type: ignore[arg-type]


async def test_attempt_that_is_cancelled_gives_its_slot_to_who_waits() -> None:
    rig = Rig()
    attempting, waiting = await rig.taker(), await rig.taker()
    attempting.cancel()
    await settle()
    assert outcome(attempting) is asyncio.CancelledError
    rig.answer()
    await settle()
    assert outcome(waiting) == Session(rig.made[0], None)  # type: ignore[arg-type]


async def test_attempt_that_is_cancelled_by_nobody_gives_its_slot_to_who_waits() -> None:
    rig = Rig()
    attempting, waiting = await rig.taker(), await rig.taker()
    rig.attempts[0].cancel()
    await settle()
    assert outcome(attempting) is asyncio.CancelledError
    rig.answer()
    await settle()
    assert outcome(waiting) == Session(rig.made[0], None)  # type: ignore[arg-type]


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
    assert outcome(waiting) == Session(rig.made[0], None)  # type: ignore[arg-type]


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
        session.connection.close()
    assert await rig.take() == sessions[0]
    assert len(rig.made) == 3
    others = [await rig.take() for _ in range(2)]
    assert rig.pool.used == {sessions[0], *others}
    assert len(rig.made) == 5


async def test_connection_that_is_given_back_closed_is_dropped_and_another_made_for_who_waits() -> None:
    rig = Rig()
    session = await rig.take()
    waiting = await rig.taker()
    session.connection.close()
    rig.pool.give_back(session)
    await settle()
    rig.answer()
    await settle()
    assert outcome(waiting) == Session(rig.made[1], None)  # type: ignore[arg-type]


async def test_free_connection_that_dies_before_who_waits_has_it_is_replaced() -> None:
    rig = Rig()
    session = await rig.take()
    waiting = await rig.taker()
    rig.pool.give_back(session)
    session.connection.close()
    await settle()
    rig.answer()
    await settle()
    assert outcome(waiting) == Session(rig.made[1], None)  # type: ignore[arg-type]


async def test_connection_given_back_twice_is_an_error() -> None:
    rig = Rig()
    session = await rig.take()
    rig.pool.give_back(session)
    with pytest.raises(KeyError):
        rig.pool.give_back(session)
    assert [await rig.take(), outcome(await rig.taker())] == [session, None]


async def test_clear_closes_the_free_connections_and_leaves_those_in_use() -> None:
    rig = Rig(size=2)
    free, used = await rig.take(), await rig.take()
    rig.pool.give_back(free)
    rig.pool.clear()
    assert (free.connection.closed, used.connection.closed) == (True, False)
    rig.pool.give_back(used)
    assert await rig.take() == used


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


EVENTS = st.sampled_from(
    [
        *("take", "take", "give back", "give back", "turn", "turn", "settle"),
        *("answer", "answer", "fail", "cancel", "die in use", "die free", "clear", "time"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    size=st.integers(1, 3),
    forgetful=st.booleans(),
    events=st.lists(st.tuples(EVENTS, st.integers(0, 5)), max_size=60),
)
def test_no_slot_is_lost_and_none_is_there_twice_whatever_happens(
    size: int, forgetful: bool, events: list[tuple[str, int]]
) -> None:
    asyncio.run(Story(size, forgetful).run(events))


class Story:
    """Takers, some of whom have something."""

    def __init__(self, size: int, forgetful: bool) -> None:
        self.size = size
        self.forgetful = forgetful
        self.takers: list[asyncio.Task[Session]] = []
        self.held: list[Session] = []

    async def run(self, events: list[tuple[str, int]]) -> None:
        self.rig = rig = Rig(self.size, forgetful=self.forgetful)
        for event, number in events:
            await self.happen(event, number)
            self.collect()
            assert rig.open + len(rig.attempts) <= self.size
        await self.finish()

    async def happen(self, event: str, number: int) -> None:
        rig = self.rig
        unanswered = [attempt for attempt in rig.attempts if not attempt.done()]
        free = [c for c in rig.made if not c.closed and c not in [session.connection for session in rig.pool.used]]
        if event == "take":
            self.takers.append(asyncio.create_task(rig.pool.take()))
        elif event == "give back" and self.held:
            rig.pool.give_back(self.held.pop(number % len(self.held)))
        elif event == "die in use" and self.held:
            session = self.held.pop(number % len(self.held))
            session.connection.close()
            rig.pool.give_back(session)
        elif event == "die free" and free:
            free[number % len(free)].close()
        elif event == "answer" and unanswered:
            rig.answer()
        elif event == "fail" and unanswered:
            rig.answer(OSError())
        elif event == "cancel" and self.takers:
            self.takers[number % len(self.takers)].cancel()
        elif event == "clear":
            rig.pool.clear()
        elif event == "time":
            rig.now_s += number
        elif event == "turn":
            await asyncio.sleep(0)
        elif event == "settle":
            await settle()
            self.collect()
            # Whoever waits does so because all that there may be is in use or being made.
            waiting = len(self.takers) - len(rig.attempts)
            assert not waiting or len(self.held) + len(rig.attempts) == self.size

    def collect(self) -> None:
        """See who has got something."""
        for task in [task for task in self.takers if task.done()]:
            self.takers.remove(task)
            got = outcome(task)
            if isinstance(got, Session):
                assert not got.connection.closed
                assert got not in self.held
                self.held.append(got)

    async def finish(self) -> None:
        """All that the pool may give can be had at once."""
        for task in self.takers:
            task.cancel()
        await settle()
        self.collect()
        assert (self.takers, self.rig.attempts) == ([], [])
        for session in self.held:
            self.rig.pool.give_back(session)
        assert self.rig.pool.used == set()
        taken = {await self.rig.take() for _ in range(self.size)}
        assert taken == self.rig.pool.used
        assert len(taken) == self.size
        one_more = await self.rig.taker()
        assert outcome(one_more) is None
        one_more.cancel()
        await settle()
