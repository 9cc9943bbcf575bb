"""What it means that a provider refused or broke off, and what of its text may stand in a log."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from app.models import ModelError

# 529 is Anthropic's, for "overloaded".
BUSY = frozenset({429, 503, 529})
PASSING = frozenset({408, 409, 425}) | BUSY

# Errors within a stream have no status, but one of these names.
STATUS_OF = {
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 529,
    "overloaded": 529,
    "service_unavailable": 503,
    "timeout_error": 504,
    "api_error": 500,
    "server_error": 500,
    "internal_error": 500,
    "internal_server_error": 500,
}

TOO_LONG = re.compile(
    r"context.?(length|window|size|limit)|(prompt|input|request|messages?) (is|are) too (long|large)"
    r"|too large for model|input token count|reduce the length",
    re.IGNORECASE,
)
REFUSED = re.compile(
    r"content.?(filter|policy)|content management policy|responsible.?ai|moderation|flagged", re.IGNORECASE
)
# No credit is left: waiting does not help.
UNPAID = re.compile(r"insufficient_quota|billing", re.IGNORECASE)

SHOWN_CHARS = 300

# What a provider's text has in common with the conversation over so many characters, it may quote.
QUOTE_CHARS = 6


def error_in(event: dict[str, Any]) -> Any:
    """Return the error that a stream or a body reports, None if it reports none."""
    if event.get("error"):
        return event["error"]
    return event if "error" in (event.get("type"), event.get("object")) else None


def failure(
    status: int | None,
    said: Any,
    secrets: Sequence[str],
    retry_after_s: float | None = None,
    url: str | None = None,
) -> ModelError:
    """Return the error for what a provider said; `status` is None where that is part of a stream.

    Its text names `url`, if there is one, and quotes nothing of `secrets`, the key and the conversation.
    """
    names, text = describe(said)
    whole = " ".join([*names, text])
    parts = (status and str(status), redact(whole[:SHOWN_CHARS], secrets), url and f"({url})")
    shown = " ".join(part for part in parts if part)
    if status in (None, 200):
        numbers = [int(name) for name in names if re.fullmatch("[45][0-9][0-9]", name)]
        status = next((STATUS_OF[name] for name in names if name in STATUS_OF), [*numbers, 400][0])
    assert status is not None
    if UNPAID.search(whole):
        return ModelError(shown)
    if status not in BUSY and (status == 413 or TOO_LONG.search(whole)):
        return ModelError(shown, "too_long")
    if status < 500 and status not in PASSING and REFUSED.search(whole):
        return ModelError(shown, "refused")
    passing = status in PASSING or status >= 500
    return ModelError(shown, "busy" if status in BUSY else None, passing=passing, retry_after_s=retry_after_s)


def describe(said: Any) -> tuple[list[str], str]:
    """Return the names of an error (its type and code), and its text."""
    if not isinstance(said, dict):
        return [], str(said)
    names = [str(said[key]) for key in ("type", "code", "status") if said.get(key) not in (None, "error")]
    text = said.get("message") or said.get("detail") or ""
    return names, text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)


def redact(text: str, secrets: Sequence[str]) -> str:
    """Return `text`, white space folded, with dots in place of what it has in common with one of `secrets`.

    A quote of 11 characters or more is found wherever it starts, and its edges go with it; a shorter one where it
    is the whole secret.
    """
    text, *secrets = (" ".join(part.split()) for part in (text, *secrets))
    for secret in secrets:
        if secret and len(secret) < 2 * QUOTE_CHARS:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "…", text)
    hidden = set[int]()
    for at in range(0, len(text) - QUOTE_CHARS + 1, QUOTE_CHARS):
        part = text[at : at + QUOTE_CHARS]
        if any(part in secret for secret in secrets):
            hidden.update(range(at - QUOTE_CHARS + 1, at + 2 * QUOTE_CHARS - 1))
    return re.sub("\0+", "…", "".join("\0" if at in hidden else text[at] for at in range(len(text))))


def retry_after_s(value: str | None, date: str | None) -> float | None:
    """Return the seconds that a Retry-After asks for (RFC 9110, 10.2.3), None if it asks for nothing.

    A point in time is measured from `date`, the provider's own: clocks need not agree.
    """
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value):
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        now = parsedate_to_datetime(date) if date else datetime.now(until.tzinfo)
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
