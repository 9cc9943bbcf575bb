"""What a client printed, what the server saw of it, and what is to be said about that. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

COMPLETE, NOTICED = 0, 3

# Of a promise that is kept to the letter, on a busy machine: Retry-After has whole seconds.
EARLY_S = 0.05

# The user has pressed Stop, and waits.
STOP_S = 5.0

# More than a client sees by Stop, though its machine stands still for a second.
STOP_CHARS = 150

# By so much of it a text is known.
KNOWN_CHARS = 20

# What goes with a question: the name it has, and where.
GIVEN = {
    "CHAT_MESSAGE": ("message", "in the body, or the URL of GET"),
    "CHAT_SIM": ("sim", "in the body, or the URL of GET"),
    "CHAT_ORG": ("x-org-id", "in a header, or orgId in the URL"),
    "CHAT_USER": ("x-user-id", "in a header, or userId in the URL"),
    "CHAT_KEY": ("idempotency-key", "in a header"),
}

# FAIL: it shows what was not said, takes a part for the whole, asks twice, or does not end. WEAK: it is honest and
# gives up, where others go on.
Verdict = Literal["PASS", "WEAK", "FAIL"]


class Finding(NamedTuple):
    verdict: Verdict
    why: str


@dataclass
class Seen:
    """A request as the server saw it; times in seconds."""

    method: str
    # Of the characters that the client says it has: it comes back.
    offset: int | None
    # It is to say more than what was said by now: not Stop, not a reply that is read on.
    is_question: bool
    came_s: float
    status: int | None = None
    # Once it was answered, or its connection closed.
    over_s: float | None = None
    # What of the question is not what the client was given, in a sentence.
    stray: str | None = None


@dataclass
class Run:
    """A client's process. `code`: None if it had to be ended."""

    printed: str
    code: int | None
    stderr: str
    over_s: float


class Row(NamedTuple):
    role: str
    content: str
    status: str


@dataclass
class Evidence:
    message: str
    # What the model says, if it is let.
    text: str
    stop_after: int | None
    retry_after_s: float
    limit_s: float
    runs: list[Run] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def questions(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.is_question]

    @property
    def asked(self) -> list[str]:
        """What is stored of it."""
        return [row.content for row in self.rows if row.role == "user"]

    @property
    def reply(self) -> Row | None:
        return next((row for row in self.rows if row.role == "assistant"), None)


Check = Callable[[Evidence], Iterator[Finding]]


def verdict(evidence: Evidence, checks: tuple[Check, ...]) -> Finding:
    """Return the worst of what is found, the first of these."""
    findings = [finding for check in checks for finding in check(evidence)]
    for worst in ("FAIL", "WEAK"):
        for finding in findings:
            if finding.verdict == worst:
                return finding
    return Finding("PASS", "")


def same(printed: str, text: str) -> int:
    """Return how many characters are the same from the start on."""
    pairs = enumerate(zip(printed, text, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(printed), len(text)))


def difference(printed: str, text: str) -> str:
    at = same(printed, text)
    return f"from character {at} on: {printed[at : at + 20]!r}, expected {text[at : at + 20]!r}"


def last_line(text: str) -> str:
    # Node ends with its version, Python with the error itself.
    lines = [line.strip()[:120] for line in text.splitlines() if line.strip() and not line.startswith("Node.js v")]
    line = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
    # Neither for terminals nor for XML.
    return "".join(char if char.isprintable() else "?" for char in line)


def stray(given: Mapping[str, str | None], told: Mapping[str, str]) -> str | None:
    """Return what of a question is not what its client was told; a key may be left out, as EventSource does."""
    for variable, (name, where) in GIVEN.items():
        value, expected = given[variable], told[variable]
        if value is None and variable != "CHAT_KEY":
            return f"the question came without `{name}`, expected {variable} {where}"
        if value is not None and value != expected:
            return f"the question came with `{name}` {value[:40]!r}, expected {variable}: {expected!r}"
    return None


def more_than_the_reply(printed: str, text: str) -> str | None:
    # Who has lost the start of the reply shows a part of it.
    if printed in text or same(printed, text) > 0:
        return None
    return f"stdout is for the reply alone, {difference(printed, text)}"


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


# ---- Offsets


def units(text: str, offset: int) -> str:
    """Return by which mistake an offset is that of a text, in parentheses."""
    if offset == len(text):
        return ""
    if offset == len(text.encode("utf-16-le")) // 2:
        return f" ({offset} are its UTF-16 units)"
    if offset == len(text.encode()):
        return f" ({offset} are its UTF-8 bytes)"
    return ""


def anew(evidence: Evidence, printed: str) -> str | None:
    """Return what is to be said to who asked again with the key, and took what came for the rest."""
    text = evidence.text
    if len(evidence.questions) <= len(evidence.runs) or len(evidence.asked) > 1:
        return None
    for had in range(1, same(printed, text) + 1):
        again = printed[had : had + KNOWN_CHARS]
        if again and text.startswith(again) and (len(again) == KNOWN_CHARS or len(printed) > len(text)):
            return (
                f"it began the reply anew at character {had}: a stream asked for by its key starts at its start; "
                f"come back with GET /chat/stream/{{id}}?offset={had}, or skip what it has"
            )
    return None


def had_before(offset: int, printed: str, text: str) -> list[int]:
    """Return after how many characters, but not `offset`, what is from there on is shown: the likeliest first."""
    rest = text[offset : offset + KNOWN_CHARS]
    is_last = len(rest) < KNOWN_CHARS
    all_had = [
        had
        for had in range(same(printed, text) + 1)
        if had != offset and rest and (printed[had:] == rest if is_last else printed.startswith(rest, had))
    ]
    return sorted(all_had, key=lambda had: not units(text[:had], offset))


def wrong_offset(evidence: Evidence, printed: str) -> str | None:
    """Return with which offset it came back, if what it shows goes on from there after other characters."""
    text = evidence.text
    for seen in evidence.seen:
        if seen.offset is None:
            continue
        for had in had_before(seen.offset, printed, text):
            why = units(text[:had], seen.offset)
            return f"it came back with offset {seen.offset}, and had {had} characters{why}"
    return None


# ---- Of every client


def ended(evidence: Evidence) -> Iterator[Finding]:
    for run in evidence.runs:
        if run.code is None:
            yield Finding("FAIL", f"it still ran after {evidence.limit_s:g} s{still_did(evidence, run)}")
        elif run.code not in (COMPLETE, NOTICED):
            yield Finding(
                "FAIL", f"its exit code is {run.code}, expected 0 or 3; its last line: {last_line(run.stderr)!r}"
            )


def still_did(evidence: Evidence, run: Run) -> str:
    """Return what was seen of a client that did not end."""
    questions, returns = evidence.questions, [seen for seen in evidence.seen if seen.offset is not None]
    refused = next((seen for seen in questions if (seen.status or 0) >= 400), None)
    again = len(questions) - questions.index(refused) - 1 if refused else 0
    if run.printed == evidence.text:
        return f": it has all {len(run.printed)} characters, and did not exit"
    if refused and again:
        return f", and had asked again {times(again)} after the {refused.status}"
    if len(evidence.asked) > 1:
        return f", and had asked {len(evidence.asked)} questions, expected one"
    if len(questions) > len(evidence.runs):
        return f", and had sent the question {times(len(questions))}"
    if returns:
        return f", and had come back {times(len(returns))}"
    return ""


def ended_unless_dead(evidence: Evidence) -> Iterator[Finding]:
    """As `ended`, but to wait for ever is no lie."""
    for finding in ended(evidence):
        waits = all(run.code is None for run in evidence.runs)
        yield Finding("WEAK", f"it still waited after {evidence.limit_s:g} s") if waits else finding


def says_what_was_said(evidence: Evidence) -> Iterator[Finding]:
    for run in evidence.runs:
        if not evidence.text.startswith(run.printed):
            why = anew(evidence, run.printed) or wrong_offset(evidence, run.printed)
            why = why or f"it shows what was not said, {difference(run.printed, evidence.text)}"
            yield Finding("FAIL", why)
        elif run.code == COMPLETE and run.printed != evidence.text:
            yield Finding("FAIL", f"it takes {len(run.printed)} of {len(evidence.text)} characters for the whole")


def asked_once(evidence: Evidence) -> Iterator[Finding]:
    stored = evidence.asked
    if not evidence.questions:
        yield Finding("FAIL", "it asked nothing")
    for seen in evidence.seen:
        if seen.stray:
            yield Finding("FAIL", seen.stray)
    if len(stored) > 1:
        yield Finding("FAIL", f"it asked {len(stored)} questions, expected the one once")
    if stored and stored[0] != evidence.message:
        yield Finding("FAIL", f"it asked {stored[0]!r}, expected {evidence.message!r}")


# ---- Of some scenarios


def is_whole(evidence: Evidence) -> Iterator[Finding]:
    for run in evidence.runs:
        if run.code == NOTICED:
            yield Finding("WEAK", gave_up(evidence, run.printed))


def gave_up(evidence: Evidence, printed: str) -> str:
    had = f"all {len(printed)}" if printed == evidence.text else f"{len(printed)} of {len(evidence.text)}"
    for seen in evidence.seen:
        if seen.status == 409 and seen.offset is not None:
            why = units(printed, seen.offset)
            return f"it had {had} characters, came back with offset {seen.offset}, and was told 409{why}"
    if printed == evidence.text:
        return f"it had {had} characters, and said that it is not the whole"
    return f"it gave up at {had} characters"


def is_no_whole(evidence: Evidence) -> Iterator[Finding]:
    for run in evidence.runs:
        if run.code == COMPLETE and run.printed != evidence.text:
            yield Finding("FAIL", f"it takes this for the whole, {difference(run.printed, evidence.text)}")


def keeps_the_text(evidence: Evidence) -> Iterator[Finding]:
    """The reply has failed after some words, which are stored."""
    reply = evidence.reply
    for run in evidence.runs:
        if reply and run.code == NOTICED and run.printed != reply.content:
            yield Finding("FAIL", f"it shows {len(run.printed)} of the {len(reply.content)} characters that came")


def came_back(evidence: Evidence) -> Iterator[Finding]:
    """The end of a stream is not the end of a reply, and nothing that a client has is sent again."""
    if len(evidence.seen) == 1 and evidence.runs[0].code == COMPLETE:
        yield Finding("FAIL", "it takes the end of a stream for the end of the reply")
    for seen in evidence.seen[1:]:
        if seen.is_question or seen.offset == 0:
            yield Finding("WEAK", "it was sent again what it had, expected to come back at its offset")


def asked_no_more(evidence: Evidence) -> Iterator[Finding]:
    if (times := len(evidence.questions)) > 1:
        yield Finding("FAIL", f"it sent the question {times} times, expected once")


def asked_again_after(evidence: Evidence) -> Iterator[Finding]:
    refused_s = next((seen.over_s for seen in evidence.questions if seen.status in (429, 503)), None)
    for seen in evidence.questions:
        waited_s = seen.came_s - (refused_s or 0)
        # Who asks before the answer came has not been told.
        if refused_s is not None and 0 <= waited_s < evidence.retry_after_s - EARLY_S:
            yield Finding("FAIL", f"it asked again after {waited_s:.1f} s, was told {evidence.retry_after_s:g} s")


def stopped(evidence: Evidence) -> Iterator[Finding]:
    stops = [seen for seen in evidence.seen if seen.method == "DELETE"]
    reply = evidence.reply
    if not stops or reply is None:
        yield Finding("WEAK", "it did not stop the reply: no DELETE came")
        return
    if reply.status != "stopped":
        yield Finding("WEAK", f"its Stop came too late: the reply is {reply.status}")
    for run in evidence.runs:
        if evidence.stop_after is not None and len(run.printed) < evidence.stop_after:
            yield Finding("FAIL", f"it shows {len(run.printed)} characters, and stopped at {evidence.stop_after}")
        if evidence.stop_after and len(run.printed) > evidence.stop_after + STOP_CHARS:
            yield Finding("WEAK", f"it stopped at {len(run.printed)} characters, was to at {evidence.stop_after}")
        if evidence.stop_after == 0 and (late_s := stops[0].came_s - evidence.seen[0].came_s) > STOP_S:
            yield Finding("FAIL", f"it stopped {late_s:.1f} s after it was to")
        if (took_s := run.over_s - stops[0].came_s) > STOP_S:
            yield Finding("FAIL", f"it went on for {took_s:.1f} s after Stop")
