"""What one question may ask of the simulator: its pace, its text, and how its stream is to break. Pure.

A string of knobs is as in `ttft=2s fin@30`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

SIM_LIMIT_CHARS = 500
WORDS_LIMIT = 100_000
TIMES_LIMIT = 1_000
NUMBER_LIMIT = 1_000_000
EVENT_LIMIT_BYTES = 1024 * 1024
WAIT_LIMIT_S = 600.0
GAP_LIMIT_S = 60.0
SIGMA_LIMIT = 3.0

# The gaps between the words of some models, as their users see them.
PROFILES = {"claude": "15-50ms", "gpt4": "20-60ms", "local": "5-20ms"}
TEXTS = ("markdown", "unicode", "code", "long-line")

NUMBER = r"([0-9]{1,9})"
DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s)"
TIMES = r"(?:\*([0-9]{1,9}))?"

PER_S = {"ms": 1000, "s": 1}


class BadKnobs(ValueError):
    """Says what is wrong and what is expected, in one sentence."""


class Uniform(NamedTuple):
    least_s: float
    most_s: float


class Lognormal(NamedTuple):
    median_s: float
    sigma: float


class Stall(NamedTuple):
    # Words.
    after: int
    pause_s: float


class Refusal(NamedTuple):
    status: int
    retry_after_s: float | None
    # None: always.
    times: int | None


class Fault(NamedTuple):
    """Happens to the first streams of a reply that come so far."""

    # An event of a stream; for `big` its bytes.
    at: int
    times: int


class Form(NamedTuple):
    # Of what follows the knob's name: a regular expression, and what it means.
    shape: str
    read: Callable[..., Any]
    # An example.
    shown: str


def _within(low: float, value: float, high: float, unit: str = "") -> float:
    if not low <= value <= high:
        raise BadKnobs(f"a number from {low:.10g} to {high:.10g}{unit}")
    return value


def _whole(digits: str, low: int, high: int) -> int:
    return int(_within(low, int(digits), high))


def _seconds(number: str, unit: str, high_s: float = WAIT_LIMIT_S) -> float:
    return _within(0, float(number) / PER_S[unit], high_s, " seconds")


def _times(digits: str | None) -> int:
    return 1 if digits is None else _whole(digits, 1, TIMES_LIMIT)


def _duration(high_s: float, shown: str) -> Form:
    return Form("=" + DURATION, lambda number, unit: _seconds(number, unit, high_s), shown)


def _number(sign: str, low: int, high: int, shown: str) -> Form:
    return Form(sign + NUMBER, lambda digits: _whole(digits, low, high), shown)


def _text(shape: str, shown: str) -> Form:
    return Form(f"=({shape})", str, shown)


def _fault(low: int, shown: str) -> Form:
    return Form(
        "@" + NUMBER + TIMES,
        lambda digits, times: Fault(_whole(digits, low, NUMBER_LIMIT), _times(times)),
        shown,
    )


def _switch(name: str) -> Form:
    return Form("", lambda: True, name)


def _read_gap(*given: Any) -> Uniform | Lognormal:
    least, most, unit, median, median_unit, sigma = given
    if median is not None:
        return Lognormal(_seconds(median, median_unit, GAP_LIMIT_S), _within(0, float(sigma), SIGMA_LIMIT))
    least_s = _seconds(least, unit, GAP_LIMIT_S)
    most_s = least_s if most is None else _seconds(most, unit, GAP_LIMIT_S)
    return Uniform(least_s, _within(least_s, most_s, GAP_LIMIT_S, " seconds"))


GAP = Form(
    r"=(?:([0-9]{1,9}(?:\.[0-9]{1,3})?)(?:-([0-9]{1,9}(?:\.[0-9]{1,3})?))?(ms|s)"
    rf"|lognormal:{DURATION}:([0-9](?:\.[0-9]{{1,3}})?))",
    _read_gap,
    "gap=20ms, gap=10-30ms or gap=lognormal:40ms:0.8",
)
STALL = Form(
    f"@{NUMBER}={DURATION}",
    lambda after, number, unit: Stall(_whole(after, 0, NUMBER_LIMIT), _seconds(number, unit)),
    "stall@20=10s",
)
STATUS = Form(
    f"=([45][0-9][0-9])(?::{DURATION})?{TIMES}",
    lambda status, number, unit, times: Refusal(
        int(status),
        None if number is None else _seconds(number, unit),
        None if times is None else _times(times),
    ),
    "status=429:2s*2",
)
CUT = Form(f"@done{TIMES}", lambda times: Fault(0, _times(times)), "cut@done")
BIG = Form(
    rf"=([0-9]{{1,9}})(k?){TIMES}",
    lambda size, k, times: Fault(_whole(str(int(size) * (1024 if k else 1)), 1, EVENT_LIMIT_BYTES), _times(times)),
    "big=64k",
)


def _knob(form: Form) -> Any:
    return field(default=None, metadata={"form": form})


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """None: as the settings say, or not at all."""

    # The string that names them. It is part of the question, and goes with its ticket.
    spelled: str = field(default="", compare=False)

    # Of the model: when its words come, and which. `stall` and `fail` are after so many words.
    ttft: float | None = _knob(_duration(WAIT_LIMIT_S, "ttft=2s"))
    gap: Uniform | Lognormal | None = _knob(GAP)
    words: int | None = _knob(_number("=", 1, WORDS_LIMIT, "words=500"))
    seed: str | None = _knob(_text("[A-Za-z0-9._-]{1,32}", "seed=7"))
    text: str | None = _knob(_text("|".join(TEXTS), f"text={'|'.join(TEXTS)}"))
    stall: Stall | None = _knob(STALL)
    fail: int | None = _knob(_number("@", 0, NUMBER_LIMIT, "fail@30"))
    endless: bool | None = _knob(_switch("endless"))

    # In place of a stream.
    status: Refusal | None = _knob(STATUS)

    # What happens to a stream: the connection ends after so many events, or is dead; an event is missing...
    fin: Fault | None = _knob(_fault(0, "fin@30"))
    rst: Fault | None = _knob(_fault(0, "rst@30"))
    hang: Fault | None = _knob(_fault(0, "hang@30"))
    cut: Fault | None = _knob(CUT)
    # ...or comes twice, or is as large as that.
    dup: Fault | None = _knob(_fault(1, "dup@9"))
    big: Fault | None = _knob(BIG)

    # What all streams of the reply are like. `chop`: bytes a packet.
    chop: int | None = _knob(_number("=", 1, 65_536, "chop=1"))
    burst: float | None = _knob(_duration(GAP_LIMIT_S, "burst=3s"))
    utf8: bool | None = _knob(_switch("utf8"))
    crlf: bool | None = _knob(_switch("crlf"))
    bom: bool | None = _knob(_switch("bom"))
    noise: bool | None = _knob(_switch("noise"))

    @property
    def of_the_model(self) -> list[str]:
        """The names of those that a model takes."""
        return [name for name in FORMS if name not in ("status", *WIRE) and getattr(self, name) is not None]

    @property
    def on_the_wire(self) -> list[str]:
        """The names of those that are of streams alone."""
        return [name for name in WIRE if getattr(self, name) is not None]


FORMS: dict[str, Form] = {knob.name: knob.metadata["form"] for knob in fields(Knobs) if knob.metadata}
WIRE = ("fin", "rst", "hang", "cut", "dup", "big", "chop", "burst", "utf8", "crlf", "bom", "noise")
EXPECTED = ", ".join([*(form.shown for form in FORMS.values()), f"as={'|'.join(PROFILES)}"])


def parse(sim: str) -> Knobs:
    """Return the knobs that a string names, separated by spaces; each may be named once.

    Raises:
        BadKnobs: one of them is none, or two contradict each other.
    """
    if len(sim) > SIM_LIMIT_CHARS:
        raise BadKnobs(f"sim has {len(sim)} characters, expected at most {SIM_LIMIT_CHARS}.")
    given: dict[str, Any] = {}
    for word in sim.split():
        name, value = _parse_knob(word)
        if name in given or {name, *given} >= {"words", "endless"}:
            raise BadKnobs(f"sim has {word[:40]!r} beside another of its kind, expected one of them.")
        given[name] = value
    return Knobs(spelled=" ".join(sim.split()), **given)


def _parse_knob(word: str) -> tuple[str, Any]:
    profile = word.removeprefix("as=")
    spelled = f"gap={PROFILES[profile]}" if profile != word and profile in PROFILES else word
    name = re.split("[=@]", spelled, maxsplit=1)[0]
    form = FORMS.get(name)
    match = re.fullmatch(form.shape, spelled[len(name) :], re.ASCII) if form is not None else None
    if form is None or match is None:
        raise BadKnobs(f"sim has {word[:40]!r}, expected some of: {EXPECTED}.")
    try:
        return name, form.read(*match.groups())
    except BadKnobs as limits:
        raise BadKnobs(f"sim has {word[:40]!r}, expected in its place {limits}.") from None
