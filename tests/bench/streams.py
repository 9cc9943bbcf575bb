"""What is measured under load: streams, the time to the first word, and `POST /chat`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .candidates import Candidate, serving
from .rig import Postgres, is_disturbed, load, why_void

Round = dict[str, Any]

# A server has no time left if it delivers less than this share of the words that are due, and ran or waited for
# its core for that share of the time. Words then go out several at once, and so cost less each.
SATURATED_WORDS = 0.98
SATURATED_CORE = 0.93

# Next to idle, and still some replies a second.
FIRST_WORD_STREAMS = 4
FIRST_WORD_PERIOD_MS = 2.0

# As many as this server's pool has by default, and its peer's.
TURN_CONNECTIONS = 10


@dataclass
class Bench:
    """What the parts share: how long they measure, the database, the replies."""

    postgres: Postgres
    rounds: int
    window_s: float
    settle_s: float
    period_ms: float
    # In a reply.
    words: int
    # How many void or disturbed rounds may be measured again, and were: there is an end to patience.
    repeats: int
    repeated: int = 0

    def may_repeat(self) -> bool:
        may = self.repeated < self.repeats
        self.repeated += may
        return may


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def streams(bench: Bench, candidates: Sequence[Candidate], levels: Sequence[int]) -> list[Round]:
    """Each word of a stream is due a period after the one before it. A stream that ends is followed by another."""
    return [
        measure(
            bench,
            candidate,
            number,
            level,
            period_ms=bench.period_ms,
            # A ramp as long as a stream spreads the streams' starts evenly, then and for good.
            ramp=bench.words * bench.period_ms / 1000,
        )
        for number in range(bench.rounds)
        for level in levels
        for candidate in candidates
    ]


def first_word(bench: Bench, candidates: Sequence[Candidate]) -> list[Round]:
    """From the request to the first word."""
    return [
        measure(
            bench,
            candidate,
            number,
            FIRST_WORD_STREAMS,
            period_ms=FIRST_WORD_PERIOD_MS,
            ramp=bench.words * FIRST_WORD_PERIOD_MS / 1000,
            # Next to idle, nothing is lost by taking each word as it comes.
            tick_ms=0.0,
        )
        for number in range(bench.rounds)
        for candidate in candidates
    ]


def turns(bench: Bench, candidates: Sequence[Candidate]) -> list[Round]:
    """`POST /chat` in a closed loop."""
    return [
        measure(bench, candidate, number, TURN_CONNECTIONS, request="chat", ramp=0.1, tick_ms=0.0)
        for number in range(bench.rounds)
        for candidate in candidates
    ]


def measure(
    bench: Bench, candidate: Candidate, number: int, connections: int, *, period_ms: float = 0.0, **how: Any
) -> Round:
    """Measure one candidate once, on a fresh server; again where the round is void or disturbed.

    Of two measurements the one counts that was disturbed less.
    """
    best: Round = {}
    while True:
        result = measure_once(bench, candidate, connections, period_ms=period_ms, **how)
        result |= {"candidate": candidate.name, "round": number, "connections": connections}
        say(describe(result))
        repeated = bool(best)
        if not best or badness(result) < badness(best):
            best = result
        if repeated or not (best["void"] or best["disturbed"]) or not bench.may_repeat():
            return best


def measure_once(
    bench: Bench, candidate: Candidate, connections: int, *, period_ms: float, ramp: float, **how: Any
) -> Round:
    with serving(candidate, bench.postgres, period_ms) as server:
        # What a server loads and builds with its first requests is not memory of a stream.
        load(
            server,
            connections=max(2, min(20, connections // 10)),
            period_ms=period_ms,
            ramp=0,
            settle=0,
            window=0.1,
            **how,
        )
        idle = server.rss()
        result: Round = load(
            server,
            connections=connections,
            period_ms=period_ms,
            ramp=ramp,
            settle=bench.settle_s,
            window=bench.window_s,
            others=bench.postgres.pid if candidate.stores else 0,
            **how,
        )
    result["kib_per_stream"] = (result["server_rss"] - idle) / connections / 1024
    result |= {"void": why_void(result), "disturbed": is_disturbed(result)}
    result["saturated"] = bool(
        period_ms
        and result.get("words_per_s", 0) < SATURATED_WORDS * connections * 1000 / period_ms
        and result["server_busy"] + result["server_waited"] > SATURATED_CORE
    )
    if period_ms and "p50_ms" in result["first_token"]:
        result["first_word_ms"] = result["first_token"]["p50_ms"] - period_ms
    return result


def badness(result: Round) -> tuple[bool, float]:
    return bool(result["void"]), result["server_waited"]


def describe(result: Round) -> str:
    notes = [result["void"] or "", "disturbed" * result["disturbed"], "saturated" * result["saturated"]]
    if result["tokens"]:
        figures = (
            f"{result['cpu_us_per_word']:7.2f} us/word {result['words_per_s']:8.0f} words/s"
            f"  late p99 {result['lateness'].get('p99_ms', 0):7.1f} ms"
        )
    else:
        figures = f"{result.get('cpu_us_per_turn', 0):7.1f} us/turn {result.get('turns_per_s', 0):8.0f} turns/s"
    return (
        f"{result['round'] + 1:>3} {result['candidate']:<16} {result['connections']:>5} {figures}"
        f"  server {result['server_busy']:4.0%} load {result['load_busy']:4.0%}"
        f" waited {result['server_waited']:5.1%}  {' '.join(filter(None, notes))}"
    ).rstrip()
