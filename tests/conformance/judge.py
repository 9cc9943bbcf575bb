"""What a client printed, what the server saw of it, and what is to be said about that. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

COMPLETE, NOTICED = 0, 3

# Of a promise that is kept to the letter, on a busy machine: Retry-After has whole seconds.
EARLY_S = 0.05

# The user has pressed Stop, and waits.
STOP_S = 5.0

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


def difference(printed: str, text: str) -> str:
    pairs = enumerate(zip(printed, text, strict=False))
    at = next((i for i, (one, other) in pairs if one != other), min(len(printed), len(text)))
    return f"from character {at} on: {printed[at : at + 20]!r}, expected {text[at : at + 20]!r}"


def last_line(text: str) -> str:
    line = next((line.strip()[:120] for line in reversed(text.splitlines()) if line.strip()), "")
    # Neither for terminals nor for XML.
    return "".join(char if char.isprintable() else "?" for char in line)


# ---- Of every client


def ended(evidence: Evidence) -> Iterator[Finding]:
    for run in evidence.runs:
        if run.code is None:
            yield Finding("FAIL", f"it still ran after {evidence.limit_s:g} s")
        elif run.code not in (COMPLETE, NOTICED):
            yield Finding(
                "FAIL", f"its exit code is {run.code}, expected 0 or 3; its last line: {last_line(run.stderr)!r}"
            )


def ended_unless_dead(evidence: Evidence) -> Iterator[Finding]:
    """As `ended`, but to wait for ever is no lie."""
    for finding in ended(evidence):
        waits = all(run.code is None for run in evidence.runs)
        yield Finding("WEAK", f"it still waited after {evidence.limit_s:g} s") if waits else finding


def says_what_was_said(evidence: Evidence) -> Iterator[Finding]:
    for run in evidence.runs:
        if not evidence.text.startswith(run.printed):
            yield Finding("FAIL", f"it shows what was not said, {difference(run.printed, evidence.text)}")
        elif run.code == COMPLETE and run.printed != evidence.text:
            yield Finding("FAIL", f"it takes {len(run.printed)} of {len(evidence.text)} characters for the whole")


def asked_once(evidence: Evidence) -> Iterator[Finding]:
    stored = [row.content for row in evidence.rows if row.role == "user"]
    if not evidence.questions:
        yield Finding("FAIL", "it asked nothing")
    if len(stored) > 1:
        yield Finding("FAIL", f"it asked {len(stored)} questions, expected the one once")
    if stored and stored[0] != evidence.message:
        yield Finding("FAIL", f"it asked {stored[0]!r}, expected {evidence.message!r}")


# ---- Of some scenarios


def is_whole(evidence: Evidence) -> Iterator[Finding]:
    for run in evidence.runs:
        if run.code == NOTICED:
            yield Finding("WEAK", f"it gave up at {len(run.printed)} of {len(evidence.text)} characters")


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
        if evidence.stop_after == 0 and (late_s := stops[0].came_s - evidence.seen[0].came_s) > STOP_S:
            yield Finding("FAIL", f"it stopped {late_s:.1f} s after it was to")
        if (took_s := run.over_s - stops[0].came_s) > STOP_S:
            yield Finding("FAIL", f"it went on for {took_s:.1f} s after Stop")
