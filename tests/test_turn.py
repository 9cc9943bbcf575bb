"""The driver, and what a model is given."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Clock, Gated, logged, says

from app.models import Conversation, Message, Model, alternate
from app.replies.driver import PIECES_BEFORE_YIELD
from app.replies.lease import LEASE_S, Lease
from app.replies.meter import Meter
from app.replies.reply import RUNNING, Closing, Ended
from app.replies.tasks import Tasks
from app.replies.turn import Home, Turn
from app.statuses import Cut, FinalStatus
from app.storage.store import Caller

# Turns as they are stored: a reply may have no text, a question has.
TURNS = st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=5)), max_size=8)


@given(TURNS, st.text(min_size=1))
def test_roles_alternate_and_nothing_said_is_lost(turns: list[tuple[str, str]], question: str) -> None:
    history = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    messages = alternate(history, question)
    assert [message.role for message in messages] == [
        role for role, _ in zip(itertools.cycle(("user", "assistant")), messages, strict=False)
    ]
    # White space alone is no reply: providers refuse it.
    turns = [(asked, "" if reply.isspace() else reply) for asked, reply in turns]
    assert len(messages) == 1 + 2 * sum(bool(reply) for _, reply in turns)
    assert messages[-1].role == "user"
    assert messages[-1].content.endswith(question)
    for role in ("user", "assistant"):
        said = [content for turn in turns for content in (turn[role == "assistant"],) if content]
        given_ = [message.content for message in messages if message.role == role]
        expected = "\n\n".join([*said, question] if role == "user" else said)
        assert "\n\n".join(given_) == expected


def test_question_whose_reply_has_no_text_goes_out_with_the_next_one() -> None:
    history = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": ""},
    ]
    assert alternate(history, "Two, I said?") == [
        Message("user", "One?"),
        Message("assistant", "1"),
        Message("user", "Two?\n\nTwo, I said?"),
    ]
    assert alternate([], "One?") == [Message("user", "One?")]


class Silent:
    """Reads nothing."""

    def push(self, piece: str) -> bool:
        return False

    def think(self, text: str) -> bool:
        return False

    def wake(self) -> None: ...
    def cut(self, why: Cut) -> None: ...


class FakeSaves:
    """Stores all once it is let."""

    def __init__(self, let: asyncio.Event | None = None, *, away: bool = False) -> None:
        self.let = let
        self.away = away

    async def close(self, turn: Turn) -> None:
        assert isinstance(turn.reply.state, Closing)
        if self.let is not None:
            await self.let.wait()
        if self.away:
            return
        turn.ended(Ended(turn.reply.state.status, turn.reply.state.reason, turn.usage()), None)

    async def try_store(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            turn.stored_chars = turn.reply.length


def new_turn(
    lease: Lease, saves: FakeSaves | None = None, *, window_s: float | None = None, limit_chars: int = 99_999
) -> Turn:
    row: Any = SimpleNamespace(chat_id="chat", created_at=datetime.now(UTC))
    stores: Any = saves or FakeSaves()
    home = Home(lease, stores, Tasks(), limit_chars, over=lambda turn: None, stored=lambda turn: None)
    meter = Meter([Message("user", "Hi")], system_bytes=0, max_tokens=4096, granted=None)
    return Turn(Caller("org", "user"), "id", row, home, meter, window_s=window_s)


async def speak(turn: Turn, model: Model) -> FinalStatus:
    """Let the model speak, and return how that ended."""
    turn.start(model, Conversation([Message("user", "Hi")], True))
    assert turn._task is not None
    await asyncio.wait([turn._task])
    assert isinstance(turn.reply.state, Ended)
    return turn.reply.state.status


@pytest.fixture
def lease(clock: Clock) -> Lease:
    lease = Lease()
    lease.renew(clock())
    return lease


async def step() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_is_said(lease: Lease) -> None:
    turn = new_turn(lease)
    assert await speak(turn, says("One ", "two.")) == "complete"
    assert turn.reply.pieces == ["One ", "two."]


async def test_model_that_fails_leaves_what_it_said(lease: Lease, caplog: pytest.LogCaptureFixture) -> None:
    turn = new_turn(lease)
    assert await speak(turn, says("One ", RuntimeError("no"))) == "failed"
    assert turn.reply.text == "One "
    assert len(logged(caplog, "Stream failed")) == 1


@pytest.mark.parametrize("error", [ConnectionError, asyncio.CancelledError, TimeoutError])
async def test_error_of_what_the_model_waits_for_is_the_models(lease: Lease, error: type[Exception]) -> None:
    turn = new_turn(lease)
    assert await speak(turn, says("One ", error())) == "failed"


async def test_nothing_is_said_while_others_may_have_closed_the_reply(lease: Lease, clock: Clock) -> None:
    turn, model = new_turn(lease), Gated(pieces="abc")
    speaking = asyncio.create_task(speak(turn, model))
    model.go()
    await step()
    clock.now_s += LEASE_S
    model.go(2)
    await step()
    # No more is asked of the model than the one piece that it was about to say.
    assert (turn.reply.text, model.said) == ("a", 2)
    lease.renew(clock())
    assert await speaking == "complete"
    assert turn.reply.text == "abc"


async def test_reply_that_others_have_closed_says_no_more(lease: Lease, clock: Clock) -> None:
    turn, model = new_turn(lease), Gated(pieces="abc")
    speaking = asyncio.create_task(speak(turn, model))
    model.go()
    await step()
    clock.now_s += LEASE_S
    model.go()
    await step()
    turn.end("interrupted")
    lease.renew(clock())
    assert await speaking == "interrupted"
    assert turn.reply.text == "a"
    assert model.closed.is_set()


async def test_end_is_waited_for_until_it_is_stored(lease: Lease) -> None:
    let = asyncio.Event()
    turn, model = new_turn(lease, FakeSaves(let)), Gated(pieces="abc")
    turn.start(model, Conversation([Message("user", "Hi")], True))
    turn.end("stopped")
    waiting = [asyncio.create_task(turn.closed()) for _ in range(2)]
    waiting.append(asyncio.create_task(turn.closed()))
    await step()
    waiting.pop().cancel()
    await step()
    assert not any(task.done() for task in waiting)
    let.set()
    assert await asyncio.gather(*waiting) == ["stopped", "stopped"]
    assert await turn.closed() == "stopped"


async def test_end_that_a_model_comes_to_is_waited_for(lease: Lease) -> None:
    let = asyncio.Event()
    turn = new_turn(lease, FakeSaves(let))
    turn.start(says("One."), Conversation([Message("user", "Hi")], True))
    waiting = asyncio.create_task(turn.closed())
    await step()
    assert not waiting.done()
    let.set()
    assert await waiting == "complete"


async def test_end_that_cannot_be_stored_yet_is_none(lease: Lease) -> None:
    turn = new_turn(lease, FakeSaves(away=True))
    turn.end("stopped")
    assert await turn.closed() is None


async def test_held_model_is_asked_for_one_piece_more_at_most(lease: Lease) -> None:
    turn, model = new_turn(lease, window_s=99.0), Gated(pieces="abc")
    speaking = asyncio.create_task(speak(turn, model))
    model.go(3)
    await step()
    assert (turn.reply.text, model.said) == ("a", 1)
    turn.reply.attach(Silent())
    assert await speaking == "complete"
    assert turn.reply.text == "abc"


async def test_window_begins_anew_where_who_came_back_was_made_to_wait(lease: Lease, clock: Clock) -> None:
    turn, reader = new_turn(lease, window_s=0.01), Silent()
    turn.reply.attach(reader)
    turn.reply.detach(reader)
    clock.now_s += LEASE_S
    # It is over by then, and the lease is not valid.
    await asyncio.sleep(0.02)
    assert turn.reply.state is RUNNING
    lease.renew(clock())
    # The lease was not, when this one began.
    window = turn._window
    while turn.reply.state is RUNNING:
        await asyncio.sleep(0)
    assert turn._window is not window
    assert await turn.closed() == "disconnected"


@pytest.mark.parametrize("piece", ["x", ""])
async def test_model_that_never_waits_leaves_others_their_turn(lease: Lease, piece: str) -> None:
    turns = 0

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        yield "x"
        for _ in range(10 * PIECES_BEFORE_YIELD):
            yield piece

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await speak(new_turn(lease), model)
    counting.cancel()
    assert turns >= 10


async def test_model_that_does_not_close_is_not_waited_for(
    lease: Lease, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn:
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> str:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr("app.models.CLOSE_TIMEOUT_S", 0.01)
    assert await speak(new_turn(lease), lambda conversation: Stubborn()) == "complete"
    assert len(logged(caplog, "Model did not close")) == 1


async def test_reply_that_is_too_long_has_failed(lease: Lease) -> None:
    turn = new_turn(lease, limit_chars=3)
    assert await speak(turn, says("ab", "cd")) == "failed"
    assert turn.reply.text == "ab"


async def test_turn_that_has_ended_is_freed_without_the_collector(lease: Lease) -> None:
    gc.disable()
    try:
        turn = new_turn(lease)
        assert await speak(turn, says("One")) == "complete"
        freed = weakref.ref(turn)
        await step()
        del turn
        assert freed() is None
    finally:
        gc.enable()
