"""What the events of a reply say, byte for byte. Pure."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from app.replies.reply import Ended, Reply
from app.replies.sse import encode_chunk, encode_event, encode_json
from app.statuses import ERRORS, Cut, bad_offset, failure

# White space before a word travels as an event of its own.
PART = re.compile(r"\s+|\S+")

# Longer pieces would only fill the memory that is kept for words.
WORD_CHARS = 32


def encode_tokens(text: str) -> bytes:
    """Return the token events of a part of a reply: one for each word, and for each run of white space."""
    return "".join(
        [f'data: {{"token":{encode_json(part)},"done":false}}\n\n' for part in PART.findall(text)]
    ).encode("ascii")


def encode_numbered_tokens(text: str, reply_id: str, offset: int) -> bytes:
    """Return the same events, each with an id: the reply's, a colon, and the code points sent by then.

    `offset` is their number before `text`.
    """
    events = []
    for part in PART.findall(text):
        offset += len(part)
        events.append(f'id: {reply_id}:{offset}\ndata: {{"token":{encode_json(part)},"done":false}}\n\n')
    return "".join(events).encode("ascii")


def tokens_chunk(text: str) -> bytes:
    """Return the token events of `text` as one chunk of a body."""
    return _word_chunk(text) if len(text) <= WORD_CHARS else encode_chunk(encode_tokens(text))


@lru_cache(maxsize=4096)
def _word_chunk(word: str) -> bytes:
    """Words recur: most are encoded once, and kept once for all the streams that they are written to."""
    return encode_chunk(encode_tokens(word))


def first_event(reply: Reply, offset: int) -> bytes:
    """Return the event that opens a numbered stream: the id to come back with, before there is any token.

    An id alone would do for a browser, but several clients make an empty message of a block without data.
    """
    return encode_event({"token": "", "done": False}, f"{reply.id}:{offset}")


def encode_reasoning(text: str) -> bytes:
    """Return the event of what the model thinks aloud. It has no id: it is no part of the reply."""
    return encode_event({"reasoning": text, "done": False})


def last_event(reply: Reply, ended: Ended, *, numbered: bool, full_text: bool) -> bytes:
    """Return the event that ends a stream. Who comes back with its id is told that there is no more."""
    text = reply.text
    event_id = f"{reply.id}:{len(text)}:end" if numbered else None
    if ended.status != "complete":
        return encode_event({"error": error_name(ended), "message": failure(ended.status, ended.reason)}, event_id)
    done = {
        "token": "",
        "done": True,
        **({"fullText": text} if full_text else {}),
        "chat_id": reply.chat_id,
        "message_id": reply.id,
        "chars": len(text),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        **closing_words(ended),
    }
    return encode_event(done, event_id)


def error_name(ended: Ended) -> str:
    if ended.reason in ERRORS:
        return ERRORS[ended.reason][1]
    return "Stopped" if ended.status == "stopped" else "Stream failed"


def closing_words(ended: Ended) -> dict[str, object]:
    """Return what a whole reply ends with: how its provider ended it, and what it cost."""
    # Nothing is known of the cost of replies that are older than the columns for it.
    usage = {} if ended.usage is None else {"usage": ended.usage._asdict()}
    return {"stop": ended.reason or "end", **usage}


def cut_event(cut: Cut) -> bytes:
    """Return the event that ends a stream whose reply may go on."""
    return encode_event(cut._asdict())


def lost_event(offset: int, length: int) -> bytes:
    """Return the event that ends the stream of a client who has more than was kept of the reply."""
    return encode_event({"error": "Bad offset", "message": bad_offset(offset, length)})
