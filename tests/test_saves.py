"""What is stored of replies, in the order in which it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.replies.reply import Ended, Reply
from app.replies.saves import BATCH_CHARS, Saves, batches
from app.statuses import FinalStatus, Usage
from app.storage.db import StatementRefused
from app.storage.store import Caller


class FakeTurn:
    """As much of a turn as is stored."""

    def __init__(self, length: int, reply_id: str = "id") -> None:
        self.caller = Caller("org", "user")
        self.reply = Reply(reply_id, "chat", datetime.now(UTC))
        self.reply.say("x" * length)
        self.stored_chars = 0
        self.notes = self.stored_notes = 0
        self.stored_at_s = 0.0
        self.told: list[FinalStatus] = []

    def end(self, status: FinalStatus) -> None:
        self.told.append(status)

    def usage(self) -> Usage:
        return Usage(1, self.reply.length, estimated=True)

    def ended(self, ended: Ended, text: str | None) -> None:
        self.reply.end(ended, text)


@given(st.lists(st.sampled_from([0, 1, BATCH_CHARS // 3, BATCH_CHARS, BATCH_CHARS + 1]), max_size=9))
def test_batches_have_all_in_order_and_end_soon_after_they_are_full(lengths: list[int]) -> None:
    turns = [FakeTurn(length) for length in lengths]
    found = list(batches(turns))
    assert [turn for batch in found for turn in batch] == turns
    *full, last = found
    for batch in full:
        chars = [turn.reply.length for turn in batch]
        assert sum(chars[:-1]) <= BATCH_CHARS < sum(chars)
    assert sum(turn.reply.length for turn in last) <= BATCH_CHARS


class FakeStore:
    """Stores all, but for what others have closed, and keeps the statements."""

    def __init__(self, closed: Sequence[str] = ()) -> None:
        self.statements: list[dict[str, Any]] = []
        self.closed = closed

    async def turn_checkpoint(self, **params: Any) -> Any:
        self.statements.append(params)
        return SimpleNamespace(saved=[each for each in params["reply_ids"] if each not in self.closed])


def new_saves(store: Any) -> Saves:
    return Saves(store)


async def test_bells_ring_once_all_that_they_tell_of_is_stored() -> None:
    store = FakeStore()
    turns = [FakeTurn(BATCH_CHARS + 1, "a"), FakeTurn(1, "b")]
    await new_saves(store).store(turns, [("channel", "payload")])
    assert [(each["reply_ids"], each["channels"]) for each in store.statements] == [
        (["a"], []),
        (["b"], ["channel"]),
    ]


async def test_bells_ring_though_there_is_nothing_to_store() -> None:
    store = FakeStore()
    ended = FakeTurn(1)
    ended.reply.end(Ended("complete"))
    await new_saves(store).store([ended], [("channel", "payload")])
    await new_saves(store).store([ended])
    assert [(each["reply_ids"], each["channels"]) for each in store.statements] == [([], ["channel"])]


async def test_turns_that_others_have_closed_end() -> None:
    a, b = FakeTurn(1, "a"), FakeTurn(2, "b")
    await new_saves(FakeStore(closed=["b"])).store([a, b])
    assert (a.stored_chars, a.told) == (1, [])
    assert (b.stored_chars, b.told) == (0, ["interrupted"])


async def test_text_that_is_refused_ends_its_reply_alone() -> None:
    class Refuses(FakeStore):
        async def turn_checkpoint(self, **params: Any) -> Any:
            if "b" in params["reply_ids"]:
                raise StatementRefused
            return await super().turn_checkpoint(**params)

    store = Refuses()
    a, b, c = (FakeTurn(1, reply_id) for reply_id in "abc")
    await new_saves(store).store([a, b, c], [("channel", "payload")])
    assert [(each["reply_ids"], each["channels"]) for each in store.statements] == [
        (["a"], []),
        (["c"], []),
        ([], ["channel"]),
    ]
    assert (a.told, b.told, c.told) == ([], ["failed"], [])


@pytest.mark.parametrize("refused", [False, True])
async def test_reply_fails_only_where_postgresql_has_refused_its_text(refused: bool) -> None:
    class Failing(FakeStore):
        async def turn_checkpoint(self, **params: Any) -> Any:
            raise StatementRefused if refused else RuntimeError("the client library's own")

    turn = FakeTurn(1)
    storing = new_saves(Failing()).store([turn])
    if refused:
        await storing
    else:
        with pytest.raises(RuntimeError):
            await storing
    assert turn.told == (["failed"] if refused else [])
