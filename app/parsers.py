"""What the text of a setting means: each returns the value, or raises ValueError."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

MAX_INT = 2**31 - 1
# Of JSON Web Tokens; "none" is none of them.
ALGORITHMS = frozenset(f"{family}{size}" for family in ("HS", "RS", "PS", "ES") for size in (256, 384, 512)) | {
    "EdDSA"
}
# Whose own names for key and URL count, too: OPENAI_API_KEY, OPENAI_BASE_URL.
PROVIDERS = ("anthropic", "openai")
# What the server itself puts in a request; `n` would be several replies.
RESERVED = frozenset({"model", "messages", "system", "stream", "max_tokens", "max_completion_tokens", "n"})


def matching(pattern: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError
        return value

    return parse


def whole(low: int, high: int = MAX_INT) -> tuple[Callable[[str], int], str]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", value) or not low <= int(value) <= high:
            raise ValueError
        return int(value)

    return parse, f"a whole number from {low} to {high}"


def seconds(low: float, high: float = 86_400) -> tuple[Callable[[str], float], str]:
    def parse(value: str) -> float:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value) or not low <= float(value) <= high:
            raise ValueError
        return float(value)

    return parse, f"a number of seconds from {low:g} to {high:g}"


def pool_size(value: str) -> int:
    # 0 stands for auto.
    return 0 if value == "auto" else whole(1, 1_000)[0](value)


def choice(*allowed: str) -> tuple[Callable[[str], str], str]:
    def parse(value: str) -> str:
        if value.lower() not in allowed:
            raise ValueError
        return value.lower()

    return parse, "one of " + ", ".join(allowed)


def switch(value: str) -> bool:
    return {"0": False, "1": True}[value]


host = matching(r"[A-Za-z0-9.:_-]+")
# Stricter than libpq, whose messages show what it takes for a host: the rest of a password with an @ or a /.
database_url = matching(r"postgres(ql)?://([^@/?]*@)?[^@/?]*(/[^@/?]*)?(\?[^@]*)?")
http_url = matching(r"https?://[^\s/?#]+[^\s#]*")
model = matching(rf"sim|({'|'.join(PROVIDERS)}):\S+")
key = matching("[!-~]+")


def secret(value: str) -> str:
    # RFC 7518, 3.2: a key for HS256 has at least the size of the hash.
    if len(value.encode()) < 32:
        raise ValueError
    return value


def algorithms(value: str) -> frozenset[str]:
    algorithms = frozenset(name.strip() for name in value.split(","))
    if not algorithms <= ALGORITHMS:
        raise ValueError
    return algorithms


def milliseconds_range(value: str) -> tuple[float, float]:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)-([0-9]+(?:\.[0-9]+)?)", value)
    if not match or not (low := float(match[1])) <= (high := float(match[2])) <= 60_000:
        raise ValueError
    return low, high


def base_url(value: str) -> str:
    return matching(r"https?://[^\s/?#@]+(/[^\s?#]*)?")(value).rstrip("/")


class Price(NamedTuple):
    """Of a token, in millionths of a budget's unit: the same number as for a million tokens, in units."""

    input_price: Decimal
    output_price: Decimal


# A unit is a token.
TOKEN = Price(Decimal(1_000_000), Decimal(1_000_000))


def price(value: str) -> Price:
    match = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,6})?)/([0-9]{1,7}(?:\.[0-9]{1,6})?)", value)
    if not match:
        raise ValueError
    return Price(Decimal(match[1]), Decimal(match[2]))


def text_or_file(value: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text("utf-8").strip()
    except OSError:
        raise ValueError from None


def extra(value: str) -> dict[str, Any]:
    extra = json.loads(value)
    if not isinstance(extra, dict) or RESERVED & extra.keys():
        raise ValueError
    return extra
