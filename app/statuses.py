"""How a reply ends, and what a client is told of it."""

from __future__ import annotations

from typing import Literal, NamedTuple

# Until then its row says `streaming`.
FinalStatus = Literal["complete", "disconnected", "failed", "interrupted", "stopped"]


def failure(status: FinalStatus) -> str:
    """Return the sentence that tells a client why it does not get a whole reply."""
    what = {
        "complete": "The reply is complete",
        "failed": "The model failed",
        "interrupted": "The server is stopping",
        "disconnected": "The client left",
        "stopped": "The reply was stopped",
    }[status]
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
