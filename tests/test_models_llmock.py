"""Real models against a provider that breaks on demand (llmock): each of its faults, over both wires."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from llmock.scenarios import Fail, Reply, ToolCall
from upstream import said, text

from app.models import (
    Conversation,
    Message,
    Model,
    Stop,
    Usage,
)
from app.models.choice import chosen
from app.settings import Settings

TEXT = "One two three"

# Of a reply with that text: the event that says its first word, the one that ends it, and the last one.
EVENTS = {"openai": (1, 4, 6), "anthropic": (3, 8, 8)}

FAULTS = [
    pytest.param(wire, at, id=f"{wire}-{at}") for wire, (_, _, last) in EVENTS.items() for at in range(last + 1)
]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.remote.BACKOFF_S", (0.02, 0.04, 0.08))


@pytest.fixture(params=EVENTS)
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def model(llmock: Any, wire: str) -> AsyncIterator[Model]:
    """The model that is told where llmock is by the variables of the provider's own libraries."""
    async with chosen(
        Settings.from_environ(os.environ | {"MODEL": f"{wire}:model-1", "MODEL_FIRST_S": "3"})
    ) as model:
        yield model


async def test_whole_reply_with_its_usage(llmock: Any, model: Model) -> None:
    llmock.reply(TEXT)
    pieces, failure = await said(model)
    assert (text(pieces), pieces[-1], failure) == (TEXT, Stop("end"), None)
    [*_, usage] = [piece for piece in pieces if isinstance(piece, Usage)]
    assert usage.input
    assert usage.output
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "corrupt"])
@pytest.mark.parametrize(("wire", "at"), FAULTS)
async def test_broken_stream(llmock: Any, wire: str, model: Model, kind: str, at: int) -> None:
    getattr(llmock.reply(TEXT, times=2), kind)(after_chunks=at)
    pieces, failure = await said(model)
    first, end, _ = EVENTS[wire]
    if at > end:
        # The provider has ended it before.
        assert (text(pieces), pieces[-1], failure, len(llmock.requests)) == (TEXT, Stop("end"), None, 1)
    elif at <= first:
        # Nothing was said before: it is asked again.
        assert (text(pieces), pieces[-1], failure, len(llmock.requests)) == (TEXT, Stop("end"), None, 2)
        if kind != "corrupt":
            # A corrupted stream that it has sent to its end it takes for a reply, the next request for another.
            llmock.assert_resilient(strict=True)
    else:
        assert (failure.reason, len(llmock.requests)) == (None, 1)
        assert text(pieces) == "".join(["One ", "two ", "three"][: at - first])


@pytest.mark.parametrize("words", [0, 2])
async def test_stalled_stream(llmock: Any, wire: str, words: int) -> None:
    llmock.reply(TEXT).stall(after_chunks=EVENTS[wire][0] + words, seconds=2)
    environ = {"MODEL": f"{wire}:model-1", "MODEL_FIRST_S": "0.8", "MODEL_SILENCE_S": "0.5"}
    async with chosen(Settings.from_environ(os.environ | environ)) as model:
        pieces, failure = await said(model)
    silence = 0.5 if words else 0.8
    assert (text(pieces), str(failure)) == (
        "One two " if words else "",
        f"no more in {silence} s: TimeoutError",
    )


async def test_slow_provider_is_waited_for(llmock: Any, model: Model) -> None:
    llmock.reply(TEXT).delay(0.1).slow_first_token(0.1)
    assert text((await said(model))[0]) == TEXT
    assert len(llmock.requests) == 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_failure_that_passes(llmock: Any, model: Model, status: int) -> None:
    llmock.reply(TEXT).add(Fail(status, retry_after=0, times=2))
    assert text((await said(model))[0]) == TEXT
    assert len(llmock.requests) == 3
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_outage(llmock: Any, model: Model, status: int) -> None:
    llmock.add(Fail(status, retry_after=0, times=None))
    pieces, failure = await said(model)
    assert (pieces, failure.reason) == ([], None if status == 500 else "busy")
    assert len(llmock.requests) == 4
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("wire", ["anthropic"])
async def test_retry_after_is_waited_for(llmock: Any, model: Model) -> None:
    llmock.reply(TEXT).rate_limit(retry_after=1)
    assert text((await said(model))[0]) == TEXT
    llmock.assert_resilient(strict=True)


async def test_long_retry_after_is_passed_on(llmock: Any, model: Model) -> None:
    llmock.rate_limit(retry_after=21)
    _, failure = await said(model)
    assert failure.reason == "busy"
    assert (failure.retry_after_s, len(llmock.requests)) == (21, 1)


async def test_spent_quota_is_passed_on(llmock: Any, model: Model) -> None:
    llmock.limits(rpm=1)
    assert (await said(model))[1] is None
    _, failure = await said(model)
    assert failure.reason == "busy"
    assert 50 < (failure.retry_after_s or 0) <= 60


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
async def test_failure_that_does_not_pass(llmock: Any, model: Model, status: int) -> None:
    llmock.fail(status)
    pieces, failure = await said(model)
    assert (pieces, failure.reason) == ([], "too_long" if status == 413 else None)
    assert str(failure).startswith(str(status))
    assert len(llmock.requests) == 1
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("how", ["overflow", "window"])
async def test_conversation_too_long(llmock: Any, model: Model, how: str) -> None:
    if how == "overflow":
        llmock.context_overflow()
    else:
        llmock.limits(context_window=1)
    pieces, failure = await said(model)
    assert (pieces, failure.reason, len(llmock.requests)) == ([], "too_long", 1)


@pytest.mark.parametrize(("finish", "reason"), [("length", "length"), ("content_filter", "refusal")])
async def test_provider_stops_for_another_reason(llmock: Any, model: Model, finish: str, reason: Any) -> None:
    llmock.add(Reply(text=TEXT, finish_reason=finish))
    pieces, failure = await said(model)
    assert (text(pieces), pieces[-1], failure) == (TEXT, Stop(reason), None)


async def test_refusal_without_text(llmock: Any, model: Model) -> None:
    llmock.add(Reply(text="", tool_calls=(ToolCall("x"),), finish_reason="content_filter"))
    assert (await said(model))[1].reason == "refused"


async def test_calls_of_tools_are_no_text(llmock: Any, model: Model) -> None:
    llmock.call_tool("search", {"for": "letters"}, text="One ").break_tool_call()
    pieces, failure = await said(model)
    assert (text(pieces), pieces[-1], failure) == ("One ", Stop("end"), None)


async def test_paced_stream_comes_piece_by_piece(llmock: Any, model: Model) -> None:
    llmock.reply("One two 世界 🙂").pace(5)
    asked = [Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Again")]
    pieces, failure = await said(model, Conversation(asked, stream=True))
    assert ([piece for piece in pieces if isinstance(piece, str)], failure) == (
        ["One ", "two ", "世界 ", "🙂"],
        None,
    )
