"""What a reply costs, by itself: as its provider counts, or estimated."""

from __future__ import annotations

import pytest

from app import models
from app.models import Message, Piece, Reasoning, Stop
from app.replies.meter import BudgetSpent, Meter
from app.statuses import Reason, Usage

# 7 bytes, and 2 of the system prompt: 4.5 tokens.
PROMPT = [Message("user", "Añb"), Message("assistant", "Hm"), Message("user", "?")]


def metered(
    *said: Piece, granted: int | None = None, ends: bool = True, max_tokens: int = 100
) -> tuple[Usage, Reason | None]:
    """Return what a reply of these pieces costs, and the word more about how it ended."""
    meter = Meter(PROMPT, system_bytes=2, max_tokens=max_tokens, granted=granted)
    text = ""
    for piece in said:
        if isinstance(piece, str):
            text += piece
            meter.allow(piece)
        else:
            meter.note(piece)
    if ends:
        meter.end()
    return meter.usage(text), meter.reason


END, LENGTH, REFUSAL = Stop("end"), Stop("length"), Stop("refusal")


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ((models.Usage(7, 9), "Hello", END), Usage(7, 9, False)),
        (("Hello", END, models.Usage(7, 9)), Usage(7, 9, False)),
        # Deltas are not counted, and a provider may say that it takes nothing.
        (("Hello", END, models.Usage(0, 0)), Usage(0, 0, False)),
        # Cumulative: the last one counts.
        ((models.Usage(7, 1), "Hello", models.Usage(7, 9), models.Usage(6, 8), END), Usage(6, 8, False)),
        # Of an own model that does not say how it ended.
        (("Hello", models.Usage(7, 9)), Usage(7, 9, False)),
    ],
)
def test_numbers_of_the_provider_count(said: tuple[Piece, ...], usage: Usage) -> None:
    assert metered(*said) == (usage, None)


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        (("Hello", END), Usage(5, 3, True)),
        (("Añ", " \U0001f600", END), Usage(5, 4, True)),
        (("\ud83d", "\ude00"), Usage(5, 3, True)),
        ((Reasoning("Hmm"), "Hello", END), Usage(5, 4, True)),
        ((models.Usage(7, None), "Hello", END), Usage(7, 3, True)),
        ((models.Usage(None, 9), "Hello", END), Usage(5, 9, True)),
        # It ended without a word: it has read the question all the same.
        ((END,), Usage(5, 0, True)),
    ],
)
def test_what_the_provider_does_not_count_is_half_the_bytes(said: tuple[Piece, ...], usage: Usage) -> None:
    assert metered(*said) == (usage, None)


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        # The provider's number is of when it began.
        ((models.Usage(7, 1), "Hello"), Usage(7, 3, True)),
        ((models.Usage(7, 9), "Hello"), Usage(7, 9, True)),
        (("Hello",), Usage(5, 3, True)),
        ((Reasoning("Hmm"),), Usage(5, 2, True)),
        # It never answered.
        ((), Usage(0, 0, False)),
    ],
)
def test_reply_that_was_broken_off_costs_what_was_said(said: tuple[Piece, ...], usage: Usage) -> None:
    assert metered(*said, ends=False) == (usage, None)


def test_estimate_is_no_more_than_was_granted() -> None:
    assert metered("Hello world", ends=False, granted=5, max_tokens=5)[0] == Usage(5, 5, True)
    assert metered("Hello world", models.Usage(7, 9), granted=5, max_tokens=5)[0] == Usage(7, 9, False)


@pytest.mark.parametrize(
    ("stop", "granted", "reason"),
    [
        (END, None, None),
        (LENGTH, None, "length"),
        (REFUSAL, None, "refusal"),
        # At its usual limit, and at the one that is the budget's.
        (LENGTH, 100, "length"),
        (LENGTH, 99, "budget"),
        (REFUSAL, 99, "refusal"),
        (END, 99, None),
    ],
)
def test_reason_is_how_the_provider_ended(stop: Stop, granted: int | None, reason: Reason | None) -> None:
    assert metered("Hello", stop, granted=granted)[1] == reason


def test_budget_is_spent_by_a_provider_that_does_not_heed_what_is_granted() -> None:
    # Far more than so many tokens can be.
    with pytest.raises(BudgetSpent):
        metered("x" * 1000, granted=50)
    with pytest.raises(BudgetSpent):
        metered(Reasoning("x" * 1000), granted=50)
    metered("x" * 1000, granted=100)
