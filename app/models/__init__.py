"""The seam: what a model is.

A model is one async generator function from a `Conversation` to pieces; `choice` makes the one that the
settings name. Closing the generator (`aclose`) must stop the work, and so the bill.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from app.statuses import Reason

log = logging.getLogger(__name__)

# For a model to stop its work.
CLOSE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat's messages so far, oldest first; the last is the user's, to be answered.

    `stream` is false where nobody reads along (`POST /chat`) and only the whole reply counts. `max_tokens`: the
    reply may take no more, and no more than the model's own limit. `reasoning`: somebody wants to read it.
    """

    messages: Sequence[Message]
    stream: bool
    max_tokens: int | None = None
    reasoning: bool = False

    def limit(self, most: int) -> int:
        return most if self.max_tokens is None else min(most, self.max_tokens)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a model thinks aloud; no part of the reply. It is billed: it comes where nobody reads it, too."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens so far, as the provider counts them; the last one that comes counts. None: it has not said."""

    input: int | None
    output: int | None


@dataclass(frozen=True, slots=True)
class Stop:
    """How the provider ended the reply; the last piece. A model that does not say has ended by `end`."""

    reason: Literal["end", "length", "refusal"]


# A `str` is text of the reply.
Piece = str | Reasoning | Usage | Stop


class ModelError(Exception):
    """A reply did not come to its end.

    Its text is for the log: what the provider said, without what was said to it. `reason` is for clients.
    """

    def __init__(
        self, text: str, reason: Reason | None = None, *, passing: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(text)
        self.reason = reason
        # Whether the same request may succeed later, and after how long, where that is known.
        self.passing = passing
        self.retry_after_s = retry_after_s


class Reply(Protocol):
    """A reply as it comes into being: what an async generator of `Piece` is.

    A model that knows its reply beforehand may also have `text_length` (code points) and `total_pieces`;
    they go to the log.
    """

    def __aiter__(self) -> AsyncIterator[Piece]: ...
    async def aclose(self) -> None: ...


@runtime_checkable
class PushReply(Reply, Protocol):
    """A reply that may also be pushed: its model knows when each piece is due, and says it from a timer.

    That saves a future and a step of a task for each piece: pushed, a word of the simulated model takes 1.9 us of
    CPU, pulled 4.1 (800 replies at a time, uvloop).
    """

    def push(self, say: Callable[[str], bool]) -> Awaitable[bool]:
        """Call `say` with each piece when it is due, until it returns False: the next is not wanted now.

        It has taken that piece all the same. The awaitable then gives True: there may be more, and another push
        goes on, its pace as from now. It gives False once all is said.

        What `say` raises, the awaitable raises. That, cancelling the awaitable, and `aclose` (it gives False)
        end the reply: nothing is said after, by this push or by another. One push at a time.
        """
        ...


Model = Callable[[Conversation], Reply]


def excerpt(text: str, *, words: int, chars: int) -> str:
    """Return the first words of `text`, white space folded, with an ellipsis where it was cut."""
    folded = " ".join(text.split())
    short = " ".join(folded.split(" ", words)[:words])[:chars]
    return short if short == folded else short + "…"


async def close(pieces: Reply) -> None:
    """Let a model stop its work, for a limited time."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await pieces.aclose()
    except Exception:
        log.exception("Model did not close")


def alternate(history: Sequence[dict[str, Any]], question: str) -> list[Message]:
    """Return what a model is given: roles alternate, and the last message is the question.

    A question whose reply has no text, or only white space, which providers refuse, goes out with the next one.
    """
    messages: list[Message] = []
    for said in [*history, {"role": "user", "content": question}]:
        role, content = said["role"], said["content"]
        if messages and messages[-1].role == role:
            content = f"{messages.pop().content}\n\n{content}"
        if content and (role == "user" or not content.isspace()):
            messages.append(Message(role, content))
    return messages
