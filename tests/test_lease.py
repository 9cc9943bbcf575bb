"""The lease, by a clock that the tests set."""

from __future__ import annotations

import asyncio

import pytest
from support import Clock

from app.replies.lease import GIVE_UP_AFTER, GUARD_S, LEASE_S, Lease


async def step() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_new_lease_has_run_out(clock: Clock) -> None:
    assert not Lease().is_valid()


def test_lease_runs_out_before_others_give_its_server_up() -> None:
    assert GUARD_S < LEASE_S < GIVE_UP_AFTER * GUARD_S


def test_lease_is_counted_from_the_question_and_not_from_the_answer(clock: Clock) -> None:
    lease, asked_at_s = Lease(), clock()
    clock.now_s += 2
    lease.renew(asked_at_s)
    assert lease.is_valid()
    clock.now_s = asked_at_s + LEASE_S - 0.001
    assert lease.is_valid()
    clock.now_s = asked_at_s + LEASE_S
    assert not lease.is_valid()


def test_answer_that_comes_too_late_renews_nothing(clock: Clock) -> None:
    lease, asked_at_s = Lease(), clock()
    # A process that was frozen between them, say.
    clock.now_s += LEASE_S
    lease.renew(asked_at_s)
    assert not lease.is_valid()


async def test_valid_lease_is_not_waited_for(clock: Clock) -> None:
    lease = Lease()
    lease.renew(clock())
    with pytest.raises(StopIteration):
        lease.valid().send(None)


async def test_all_who_wait_go_on_once_it_is_valid(clock: Clock) -> None:
    lease = Lease()
    waiting = [asyncio.create_task(lease.valid()) for _ in range(3)]
    await step()
    late_s = clock()
    clock.now_s += LEASE_S
    lease.renew(late_s)
    await step()
    assert not any(task.done() for task in waiting)
    lease.renew(clock())
    await step()
    assert all(task.done() for task in waiting)


async def test_lease_that_runs_out_again_before_who_waits_has_woken_is_waited_for(clock: Clock) -> None:
    lease = Lease()
    waiting = asyncio.create_task(lease.valid())
    await step()
    lease.renew(clock())
    clock.now_s += LEASE_S
    await step()
    assert not waiting.done()
    lease.renew(clock())
    await waiting
