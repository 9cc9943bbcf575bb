"""What a request may hold: a question in its body or query, a page in its query. All else is a clear 4xx."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Container, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NoReturn

from aiohttp import web

from app.api.identity import parse_uuid
from app.api.sim import read_sim, refuse_sim_in_url
from app.errors import ApiError
from app.models.knobs import Knobs
from app.replies.reply import storable
from app.settings import SETTINGS

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_LIMIT = 100

# Of a title, and of what titles are searched for.
TITLE_LIMIT_CHARS = 200

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

SANE_KEY = re.compile(r"[!-~]{1,255}")
LAST_EVENT_ID_NAME = re.compile(r"last[-_]?event[-_]?id", re.ASCII | re.IGNORECASE)
LAST_EVENT_ID = re.compile(r"([0-9a-f-]{36}):([0-9]{1,9})(:end)?", re.ASCII)
PLACE = re.compile(r"([0-9]{1,16})_([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})", re.ASCII)


class Question(NamedTuple):
    message: str
    chat_id: str | None
    # Whether what the model thinks aloud is to be sent, too.
    reasoning: bool = False
    # The question, or its reply, whose place it takes, and that of all after it.
    replaces: str | None = None
    # What its asker takes for the chat's last message; None: the reply to what is replaced.
    last: str | None = None
    # What is asked of the simulator.
    sim: Knobs | None = None

    def place(self) -> dict[str, str | None]:
        """Return where it belongs, as turn_open takes it."""
        return {"chat_id": self.chat_id, "replaces": self.replaces, "last": self.last}

    def digest(self) -> bytes:
        """Return by what it is known to be the same question again."""
        asked: list[object] = [self.message, str(self.chat_id)]
        if self.replaces is not None:
            asked += [self.replaces, str(self.last)]
        if self.sim is not None:
            asked.append({"sim": self.sim.spelled})
        return hashlib.sha256(json.dumps(asked).encode()).digest()


class Place(NamedTuple):
    """Where a chat is in the list. By its time, not by its id alone: the chat may move up before the next page."""

    updated_at: datetime
    chat_id: str

    def __str__(self) -> str:
        return f"{(self.updated_at - EPOCH) // MICROSECOND}_{self.chat_id}"


class LastEventId(NamedTuple):
    reply_id: str
    # The code points that its reader has, and whether that is all.
    offset: int
    ended: bool


async def read_question(request: web.Request) -> Question:
    """Return what the body asks.

    Raises:
        ApiError: 400, 408, 413 or 415, the body is not what it should be.
    """
    body = await read_json_object(request)
    refuse_spelling(body, "chatId", "chat_id")
    reasoning = body.get("reasoning")
    if not isinstance(reasoning, bool | None):
        raise ApiError(400, "Bad reasoning", f"reasoning is {json_type(reasoning)}, expected true or false.")
    refuse_sim_in_url(request, "in the body")
    question = check_question(request, body, body.get("chat_id"))
    return question._replace(reasoning=bool(reasoning), sim=read_sim(request, body.get("sim")))


async def read_json_object(request: web.Request) -> dict[str, object]:
    settings = request.app[SETTINGS]
    if request.content_type != "application/json":
        message = f"The body is {request.content_type}, expected application/json."
        raise ApiError(415, "Unsupported media type", message)
    try:
        # A body that came with its headers, as most do, needs no timer.
        wait_s = None if request.content.is_eof() else settings.body_timeout_s
        async with asyncio.timeout(wait_s):
            raw = await request.read()
    except TimeoutError:
        message = f"The body did not arrive within {settings.body_timeout_s:g} seconds."
        raise ApiError(408, "Request timeout", message, headers={"Connection": "close"}) from None
    except web.HTTPRequestEntityTooLarge:
        message = f"The body is too large, expected at most {settings.body_limit_bytes} bytes."
        raise ApiError(413, "Body too large", message) from None
    except (ConnectionError, web.RequestPayloadError):
        raise ApiError(400, "Bad body", "The body ended early or is not encoded as it says.") from None
    try:
        # RFC 8259, 8.1: JSON between systems is UTF-8, whatever a charset parameter says.
        body = json.loads(raw.decode("utf-8"), parse_constant=refuse_constant)
    except UnicodeDecodeError:
        raise ApiError(400, "Bad JSON", "The body is not UTF-8.") from None
    except (ValueError, RecursionError):
        raise ApiError(400, "Bad JSON", "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "Bad JSON", f"The body is {json_type(body)}, expected an object.")
    return body


def check_question(request: web.Request, given: Mapping[str, object], chat_id: object) -> Question:
    message = check_text("message", given.get("message"), request.app[SETTINGS].message_limit_chars)
    chat_id = None if chat_id is None else parse_uuid("chat_id", chat_id)
    replaces, last = (
        None if given.get(name) is None else parse_uuid(name, given[name]) for name in ("replaces", "last")
    )
    if replaces is not None and chat_id is None:
        raise ApiError(400, "Bad replaces", "replaces is given without a chat, expected the chat that it is in.")
    if last is not None and replaces is None:
        raise ApiError(400, "Bad last", "last is given without replaces, expected both.")
    return Question(message, chat_id, replaces=replaces, last=last)


def check_text(name: str, text: object, limit: int) -> str:
    if not isinstance(text, str):
        raise ApiError(400, f"Bad {name}", f"{name} is {json_type(text)}, expected a string.")
    if not text.strip():
        raise ApiError(400, f"Bad {name}", f"{name} is blank, expected some text.")
    if len(text) > limit:
        raise ApiError(400, f"Bad {name}", f"{name} has {len(text)} characters, expected at most {limit}.")
    if storable(text) != text:
        raise ApiError(400, f"Bad {name}", f"{name} holds NUL or a lone surrogate, expected Unicode text.")
    return text


async def read_title(request: web.Request) -> str:
    """Return the title that the body gives a chat, without the white space around it.

    Raises:
        ApiError: 400, 408, 413 or 415, the body is not what it should be.
    """
    title = (await read_json_object(request)).get("title")
    return check_text("title", title.strip() if isinstance(title, str) else title, TITLE_LIMIT_CHARS)


def read_words(request: web.Request) -> str | None:
    """Return `q` of the query: what titles are searched for."""
    words = request.query.get("q")
    return None if words is None else check_text("q", words, TITLE_LIMIT_CHARS)


def refuse_spelling(given: Container[str], wrong: str, right: str) -> None:
    """Refuse the name that belongs elsewhere: unseen, it would start a new chat."""
    if wrong in given:
        raise ApiError(400, "Bad name", f"{wrong} is given, expected {right}.")


def read_key(request: web.Request) -> str | None:
    """Return the `Idempotency-Key`, None if there is none."""
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1 or not SANE_KEY.fullmatch(given[0]):
        raise ApiError(400, "Bad key", "Idempotency-Key is expected once, with 1 to 255 visible ASCII characters.")
    return given[0]


def read_page(request: web.Request) -> tuple[int, str | None]:
    """Return `limit` and `before` of the query, which is the id of a message."""
    before = request.query.get("before")
    return read_limit(request), None if before is None else parse_uuid("before", before)


def read_chats_page(request: web.Request) -> tuple[int, Place | None]:
    """Return `limit` and `before` of the query, which is a place in the list of chats."""
    before = request.query.get("before")
    match = before and PLACE.fullmatch(before)
    if before is not None and not match:
        raise ApiError(400, "Bad before", f"before is {before[:60]!r}, expected `next` of a page of chats.")
    place = Place(EPOCH + int(match[1]) * MICROSECOND, match[2]) if match else None
    return read_limit(request), place


def read_limit(request: web.Request) -> int:
    limit = request.query.get("limit", str(PAGE_SIZE_DEFAULT))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= PAGE_SIZE_LIMIT):
        raise ApiError(
            400, "Bad limit", f"limit is {limit[:20]!r}, expected a whole number from 1 to {PAGE_SIZE_LIMIT}."
        )
    return int(limit)


def read_offset(request: web.Request) -> int:
    """Return `offset` of the query: the code points that a reader has."""
    offset = request.query.get("offset", "0")
    if not (offset.isascii() and offset.isdigit() and len(offset) < 10):
        raise ApiError(400, "Bad offset", f"offset is {offset[:20]!r}, expected a number of code points.")
    return int(offset)


def refuse_reasoning(question: Question, where: str) -> None:
    """Refuse a wish that would not be heard: what a model thinks aloud travels as events, and is not kept."""
    if question.reasoning:
        raise ApiError(400, "Bad reasoning", f"reasoning is true, expected {where}.")


def read_switch(request: web.Request, name: str, *, default: bool) -> bool:
    """Return a switch of the query.

    Raises:
        ApiError: 400, it is neither 0 nor 1.
    """
    given = set(request.query.getall(name, [str(int(default))]))
    if given not in ({"0"}, {"1"}):
        shown = ", ".join(repr(value[:20]) for value in sorted(given))
        raise ApiError(400, f"Bad {name}", f"{name} is {shown}, expected 0 or 1.")
    return given == {"1"}


def read_last_event_id(request: web.Request) -> LastEventId | None:
    """Return the id of the last event that a client has who comes back; None: it comes for the first time.

    Polyfills of EventSource set no headers: they have it in the URL, under one of several spellings. Not seen, it
    would be a second question. It may be empty there before the first event; a header is the newer of the two.

    Raises:
        ApiError: 400, it is not an id of ours, or there are several.
    """
    in_url = (value for name, value in request.query.items() if LAST_EVENT_ID_NAME.fullmatch(name) and value)
    given = set(request.headers.getall("Last-Event-ID", []) or in_url)
    if not given:
        return None
    match = LAST_EVENT_ID.fullmatch(given.pop())
    if match is None or given:
        raise ApiError(400, "Bad event id", "Last-Event-ID is expected as <message_id>:<code points seen>, once.")
    return LastEventId(parse_uuid("Last-Event-ID", match[1]), int(match[2]), match[3] is not None)


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def json_type(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    if value is None:
        return "missing or null"
    return names.get(type(value), "an object")


def iso(moment: datetime) -> str:
    """Return `moment` in UTC with milliseconds (RFC 3339), as JavaScript's toISOString does."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
