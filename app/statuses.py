"""How a reply ends, what it has cost, and what a client is told of it."""

from __future__ import annotations

from typing import Literal, NamedTuple

# Until then its row says `streaming`.
FinalStatus = Literal["complete", "disconnected", "failed", "interrupted", "stopped"]

# A word more: how a provider ended a complete reply, if not by its own end; why one has failed.
Reason = Literal["length", "refusal", "busy", "too_long", "refused", "budget"]


class Usage(NamedTuple):
    """Tokens."""

    input: int
    output: int
    # Not what the provider counted, or not all of it.
    estimated: bool


# Of failed replies, as clients are told: the status where nothing is sent yet, the error, and why.
ERRORS: dict[Reason, tuple[int, str, str]] = {
    "busy": (503, "Model busy", "The model is busy"),
    "too_long": (400, "Conversation too long", "The conversation is too long for the model"),
    "refused": (422, "Refused", "The model refused the question"),
    "budget": (402, "Budget spent", "The budget is spent"),
}


def failure(status: FinalStatus, reason: Reason | None = None) -> str:
    """Return the sentence that tells a client why it does not get a whole reply."""
    what = {
        "complete": "The reply is complete",
        "failed": "The model failed",
        "interrupted": "The server is stopping",
        "disconnected": "Nobody was reading the reply any more",
        "stopped": "The reply was stopped",
    }[status]
    if reason in ERRORS:
        what = ERRORS[reason][2]
    return f"{what}; what it said so far is saved."


class Cut(NamedTuple):
    """What a reader is told who is to read no more here, though the reply may go on."""

    error: str
    message: str


AWAY = Cut("Cut short", "The database did not answer. The reply may go on: come back for the rest.")
STOPPING = Cut("Cut short", "This server is stopping. The reply may go on: come back for the rest.")
TAKEN_BACK = Cut("Not stored", "The question is not stored, or no longer; ask again.")


def bad_offset(offset: int, length: int) -> str:
    return f"offset is {offset}, expected at most {length}, what the reply has."
