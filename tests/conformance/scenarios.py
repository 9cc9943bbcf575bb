"""What is done to the streams of a client, and what is expected of it then."""

from __future__ import annotations

from dataclasses import dataclass

from .judge import (
    Check,
    asked_again_after,
    asked_no_more,
    asked_once,
    came_back,
    ended,
    ended_unless_dead,
    is_no_whole,
    is_whole,
    keeps_the_text,
    says_what_was_said,
    stopped,
)

GROUPS = ("bytes", "time", "errors", "cuts", "acts")

# Each is about one thing: the others are as they should be.
COMMON = (ended, says_what_was_said, asked_once)
WHOLE = (*COMMON, is_whole)
BACK = (*WHOLE, came_back)
REFUSED = (*COMMON, asked_no_more)


@dataclass(frozen=True)
class Pace:
    """The waits of a run, in seconds."""

    # Nothing is said for so long, but for pings.
    long_s: float
    retry_after_s: float
    burst_s: float
    heartbeat_s: float
    # A client that still runs by then is ended.
    limit_s: float

    @property
    def silence_s(self) -> float:
        """Not even a ping for so long: the connection is dead."""
        return 2 * self.heartbeat_s


FULL = Pace(long_s=20, retry_after_s=2, burst_s=3, heartbeat_s=15, limit_s=90)
# On a busy machine a client, or the server, may stand still for a second.
QUICK = Pace(long_s=3, retry_after_s=1, burst_s=0.5, heartbeat_s=1, limit_s=30)


@dataclass(frozen=True)
class Scenario:
    # With its group before it: cuts/middle.
    name: str
    what: str
    # With fields of `Pace`.
    sim: str
    checks: tuple[Check, ...]
    # The user presses Stop when they see so many characters.
    stop_after: int | None = None
    # How often the client is run with the same key, and whether all at once.
    runs: int = 1
    at_once: bool = False
    # The first question is taken, and its answer lost with the connection.
    loses_answer: bool = False

    @property
    def group(self) -> str:
        return self.name.split("/")[0]


TEXT = "words=40 gap=2ms"
# Four seconds, in which a busy machine's Stop comes, too.
LONG = "words=400 gap=10ms"
# Slow, so that who stops late has seen no more than who stops late on a busy machine.
SLOW = "words=120 gap=50ms"

SCENARIOS = (
    Scenario("bytes/plain", "nothing is done to it", TEXT, WHOLE),
    Scenario("bytes/chop", "each byte comes alone", "words=20 gap=2ms chop=1", WHOLE),
    Scenario("bytes/utf8", "characters are cut in two", "gap=0ms text=unicode utf8 chop=1", WHOLE),
    Scenario("bytes/crlf", "lines end in CR LF, which is cut in two", "words=20 gap=2ms crlf chop=1", WHOLE),
    Scenario("bytes/bom", "a byte order mark comes first", f"{TEXT} bom", WHOLE),
    Scenario("bytes/noise", "comments, unknown fields, ids without data", f"{TEXT} noise", WHOLE),
    Scenario("bytes/large", "one event is 256 KiB", f"{TEXT} big=256k", WHOLE),
    Scenario("time/first", "the first word takes long", f"{TEXT} ttft={{long_s}}s", WHOLE),
    Scenario("time/stall", "nothing but pings for long", f"{TEXT} stall@20={{long_s}}s", WHOLE),
    Scenario("time/burst", "words are held back, and come at once", f"{TEXT} burst={{burst_s}}s", WHOLE),
    Scenario("time/endless", "the reply is too long, and fails", "endless gap=0ms", (*COMMON, keeps_the_text)),
    Scenario(
        "time/dead",
        "not even pings: the connection is dead",
        f"{TEXT} hang@20",
        (ended_unless_dead, says_what_was_said, asked_once, is_whole, came_back),
    ),
    Scenario(
        "errors/429",
        "a 429 with Retry-After, then it goes well",
        f"{TEXT} status=429:{{retry_after_s}}s*1",
        (*WHOLE, asked_again_after),
    ),
    Scenario(
        "errors/503",
        "a 503 with Retry-After, then it goes well",
        f"{TEXT} status=503:{{retry_after_s}}s*1",
        (*WHOLE, asked_again_after),
    ),
    Scenario("errors/401", "a 401: to ask again is of no use", "status=401", REFUSED),
    Scenario("errors/402", "a 402: to ask again is of no use", "status=402", REFUSED),
    Scenario(
        "errors/failed",
        "an error event after 20 words",
        f"{TEXT} fail@20",
        (*COMMON, keeps_the_text, asked_no_more),
    ),
    Scenario("cuts/answer", "the answer to the question is lost", TEXT, WHOLE, loses_answer=True),
    Scenario("cuts/first", "FIN before the first word", f"{TEXT} fin@0", WHOLE),
    Scenario("cuts/middle", "FIN in the middle", f"{TEXT} fin@20", BACK),
    Scenario("cuts/reset", "RST in the middle", f"{TEXT} rst@20", BACK),
    Scenario("cuts/often", "FIN after each 15 events, three times", f"{TEXT} fin@15*3", BACK),
    Scenario("cuts/astral", "FIN after characters of two UTF-16 units", "gap=2ms text=unicode fin@40", BACK),
    Scenario("cuts/done", "all but the last event, and a proper end", f"{TEXT} cut@done", BACK),
    Scenario(
        "cuts/beyond",
        "an event came twice, so that the offset is beyond the end",
        "words=12 gap=2ms dup@5 cut@done",
        (ended, is_no_whole, asked_once),
    ),
    Scenario("acts/stop", "Stop in the middle", SLOW, (*COMMON, stopped), stop_after=100),
    Scenario(
        "acts/early", "Stop before the first word", f"{LONG} ttft={{long_s}}s", (*COMMON, stopped), stop_after=0
    ),
    Scenario("acts/again", "the same question and key once more", TEXT, WHOLE, runs=2),
    Scenario("acts/tabs", "the same question and key, in two tabs at once", TEXT, WHOLE, runs=2, at_once=True),
)
