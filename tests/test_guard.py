"""The guard, on a database that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from support import eventually, logged

from app.replies.guard import Guard
from app.replies.lease import GIVE_UP_AFTER, Lease
from app.replies.tasks import Tasks, repeat
from app.storage.db import DatabaseAway


class Missing(NamedTuple):
    server_id: int
    closed: int = 0


class FakeStore:
    def __init__(self) -> None:
        self.beats = 0
        self.away = False
        self.locked = True
        self.looks_fail = False
        self.missing: set[int] = set()
        self.given_up: list[Sequence[int]] = []

    async def server_lock(self) -> Any:
        if self.away:
            raise DatabaseAway(sent=False)
        self.beats += 1
        return SimpleNamespace(locked=self.locked)

    async def turn_interrupt(self, given_up: Sequence[int], silence_s: float) -> list[Missing]:
        if self.looks_fail:
            raise DatabaseAway(sent=False)
        self.given_up.append(given_up)
        return [Missing(server_id, closed=server_id in given_up) for server_id in self.missing]


class FakeTurns:
    def __init__(self) -> None:
        self.proofs = 0
        self.settled = 0
        self.error: Exception | None = None

    async def prove(self) -> None:
        if self.error is not None:
            raise self.error
        self.proofs += 1

    async def settle(self) -> None:
        self.settled += 1


class Guarded:
    def __init__(self) -> None:
        self.store, self.turns, self.lease = FakeStore(), FakeTurns(), Lease()
        turns: Any = self.turns
        store: Any = self.store
        self.saves: Any = SimpleNamespace(cut_owed=lambda: self.cuts.append(1))
        self.cuts: list[int] = []
        self.guard = Guard(turns, self.saves, store, self.lease, Tasks())


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


async def test_lease_that_has_run_out_is_renewed_once_the_replies_are_proven(guarded: Guarded) -> None:
    guarded.turns.error = DatabaseAway(sent=True)
    with pytest.raises(DatabaseAway):
        await guarded.guard.beat()
    assert not guarded.lease.is_valid()
    guarded.turns.error = None
    await guarded.guard.beat()
    assert (guarded.lease.is_valid(), guarded.turns.proofs) == (True, 1)
    await guarded.guard.beat()
    assert guarded.turns.proofs == 1


async def test_lock_that_a_lost_connection_still_holds_renews_no_lease(guarded: Guarded) -> None:
    guarded.store.locked = False
    await guarded.guard.beat()
    assert (guarded.lease.is_valid(), guarded.turns.proofs) == (False, 0)
    guarded.store.locked = True
    await guarded.guard.beat()
    assert (guarded.lease.is_valid(), guarded.turns.proofs) == (True, 1)


async def test_server_is_given_up_once_it_is_missing_so_often_in_a_row(guarded: Guarded) -> None:
    guarded.store.missing = {7, 8}
    for _ in range(GIVE_UP_AFTER - 1):
        await guarded.guard.look()
    guarded.store.missing = {7}
    await guarded.guard.look()
    guarded.store.missing = {7, 8}
    await guarded.guard.look()
    assert guarded.store.given_up == [[]] * GIVE_UP_AFTER + [[7]]


async def test_look_that_finds_the_database_away_keeps_nobody_waiting(guarded: Guarded) -> None:
    guarded.store.looks_fail = True
    with pytest.raises(DatabaseAway):
        await guarded.guard.look()
    assert guarded.cuts == [1]


@pytest.mark.parametrize("error", [DatabaseAway(sent=True), RuntimeError("no")])
async def test_what_is_repeated_goes_on_whatever_a_round_has_raised(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    rounds = 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        raise error

    repeating = asyncio.create_task(repeat(work, 0.001))
    await eventually(lambda: rounds >= 3)
    repeating.cancel()
    assert bool(logged(caplog, "Background work failed")) is isinstance(error, RuntimeError)
