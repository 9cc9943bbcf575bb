"""What a reply costs, in tokens: as its provider counts them, or an estimate."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from app import models
from app.models import Message, Reasoning, Stop
from app.statuses import Reason, Usage

# For an estimate; texts have more of them a token, in most languages and tokenizers.
BYTES_A_TOKEN = 2

# No text has more of them a token throughout: who says more has not listened to how much it may say.
MOST_BYTES_A_TOKEN = 8


class BudgetSpent(Exception):
    """More was said than the budgets allow."""


class Meter:
    """`granted`: the tokens that budgets leave for the reply; None: no budget applies."""

    def __init__(
        self, prompt: Sequence[Message], *, system_bytes: int, max_tokens: int, granted: int | None
    ) -> None:
        self.stop: Stop | None = None
        self.is_clamped = granted is not None and granted < max_tokens
        self._granted = granted
        self._prompt_bytes = system_bytes + sum(utf8_length(message.content) for message in prompt)
        # Of text and reasoning, where it is clamped.
        self._said_bytes = 0
        self._reasoning_bytes = 0
        # How often something was noted: what a reply costs may grow while its text does not.
        self.notes = 0
        self._counted = models.Usage(None, None)

    def note(self, piece: Reasoning | models.Usage | Stop) -> None:
        """Take what a model says beside text."""
        self.notes += 1
        if isinstance(piece, Reasoning):
            self._reasoning_bytes += utf8_length(piece.text)
            self.allow(piece.text)
        elif isinstance(piece, Stop):
            self.stop = piece
        else:
            self._counted = piece

    def allow(self, text: str) -> None:
        """Count what is said where budgets leave less than usual.

        A provider that listens ends the reply itself.

        Raises:
            BudgetSpent: as it says.
        """
        if self.is_clamped:
            assert self._granted is not None
            self._said_bytes += utf8_length(text)
            if self._said_bytes > self._granted * MOST_BYTES_A_TOKEN:
                raise BudgetSpent

    @property
    def reason(self) -> Reason | None:
        """How the provider ended the reply, where that needs a word more."""
        if self.stop is None or self.stop.reason == "end":
            return None
        return "budget" if self.stop.reason == "length" and self.is_clamped else self.stop.reason

    def end(self) -> None:
        """The model has come to its end; where it has not said how, that was its own."""
        self.note(self.stop or Stop("end"))

    def usage(self, text: str) -> Usage:
        """Return what a reply of this text costs. A provider that never answered costs nothing."""
        if not self.notes and not text:
            return Usage(0, 0, estimated=False)
        counted, is_estimated = self._counted, False
        given, said = counted.input, counted.output
        if given is None:
            given, is_estimated = ceil(self._prompt_bytes / BYTES_A_TOKEN), True
        # What a provider counts before its end is of the past.
        if said is None or self.stop is None:
            estimate = ceil((utf8_length(text) + self._reasoning_bytes) / BYTES_A_TOKEN)
            if self._granted is not None:
                # It was told to say no more.
                estimate = min(estimate, self._granted)
            said, is_estimated = max(said or 0, estimate), True
        return Usage(given, said, is_estimated)


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
