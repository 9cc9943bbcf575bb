"""The seam: what a model is.

A real model is one async generator function from a `Conversation` to pieces of text; `server.py` names it in
one place. Closing the generator (`aclose`) must stop the work, and so the bill.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat's messages so far, oldest first; the last is the user's, to be answered.

    `stream` is false where nobody reads along (`POST /chat`) and only the whole reply counts.
    """

    messages: Sequence[Message]
    stream: bool


class Reply(Protocol):
    """A reply as it comes into being: what an async generator of `str` is.

    A model that knows its reply beforehand may also have `text_length` (code points) and `total_tokens`;
    they go to the log.
    """

    def __aiter__(self) -> AsyncIterator[str]: ...
    async def aclose(self) -> None: ...


Model = Callable[[Conversation], Reply]


def excerpt(text: str, *, words: int, chars: int) -> str:
    """Return the first words of `text`, white space folded, with an ellipsis where it was cut."""
    folded = " ".join(text.split())
    short = " ".join(folded.split(" ", words)[:words])[:chars]
    return short if short == folded else short + "…"
