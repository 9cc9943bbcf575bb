"""Streams: paced, unpaced, and the time to the first word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .candidates import Candidate
from .rig import PERIOD_MS, SHORT, Bench, Server, free_port, is_disturbed, load, reply_file, started, why_void

Round = dict[str, Any]

# The level at which the targets are, and memory is measured.
MAIN_LEVEL = 1000
# A server has no time left if it delivers less than this share of the words that are due, and ran or waited for
# its core for that share of the time. Words then go out several at once, and so cost less each.
SATURATED_WORDS = 0.98
SATURATED_CORE = 0.93

UNPACED_STREAMS = 50
# Streams at once while the time to the first word is taken: next to idle, and half of the main level.
FIRST_WORD_LEVELS = (4, 500)


def paced(
    bench: Bench, candidates: Sequence[Candidate], levels: Sequence[int], rounds: int, *, words: int
) -> list[Round]:
    """Every word of a stream is due 20 ms after the one before it. A stream that ends is followed by another."""
    results: list[Round] = []
    for number in range(rounds):
        saturated = set()
        for level in sorted(levels):
            for candidate in candidates:
                # Above the main level those with no time left have nothing more to show.
                if level > MAIN_LEVEL and candidate.name in saturated:
                    continue
                # A ramp as long as a stream spreads the streams' starts evenly, then and for good.
                result = measure(
                    bench,
                    candidate,
                    number,
                    level,
                    words=words,
                    ramp=words * PERIOD_MS / 1000,
                    settle=1.0,
                    memory=level == MAIN_LEVEL or len(levels) == 1,
                )
                results.append(result)
                if result["saturated"]:
                    saturated.add(candidate.name)
    return results


def unpaced(bench: Bench, candidates: Sequence[Candidate], rounds: int) -> list[Round]:
    """As fast as it goes, one send a word."""
    return [
        measure(
            bench,
            candidate,
            number,
            UNPACED_STREAMS,
            period_ms=0.0,
            ramp=0.2,
            settle=0.8,
            window=bench.window_s / 2,
        )
        for number in range(rounds)
        for candidate in candidates
    ]


def first_word(bench: Bench, candidates: Sequence[Candidate], rounds: int) -> list[Round]:
    """From the request to the first word, with few streams running and with many."""
    return [
        # Next to idle, nothing is lost by taking each word as it comes.
        measure(bench, candidate, number, level, ramp=1.6, settle=0.4, tick_ms=0.0 if level < 100 else 0.25)
        for number in range(rounds)
        for level in FIRST_WORD_LEVELS
        for candidate in candidates
    ]


def measure(
    bench: Bench,
    candidate: Candidate,
    number: int,
    level: int,
    *,
    period_ms: float = PERIOD_MS,
    words: int = SHORT,
    window: float | None = None,
    memory: bool = False,
    **phases: float,
) -> Round:
    """Measure one candidate once, on a fresh server; again where the round is void or disturbed.

    Of two measurements the one counts that was disturbed less.
    """
    best: Round = {}
    while True:
        with serving(bench, candidate, period_ms, words) as server:
            idle = 0
            if memory:
                # What a server loads and builds with its first requests is not memory of a stream.
                load(server, connections=20, period_ms=period_ms, words=words, ramp=0.1, settle=0, window=0.1)
                idle = server.rss()
            result: Round = load(
                server,
                connections=level,
                period_ms=period_ms,
                words=words,
                window=window or bench.window_s,
                others=bench.postgres_pid if candidate.database else 0,
                **phases,
            )
        result |= {"candidate": candidate.name, "round": number, "streams": level}
        result |= {"void": why_void(result), "disturbed": is_disturbed(result)}
        if period_ms:
            result["saturated"] = (
                result.get("tokens_per_s", 0) < SATURATED_WORDS * level * 1000 / period_ms
                and result["server_busy"] + result["server_waited"] > SATURATED_CORE
            )
        if memory:
            result["bytes_per_stream"] = (result["server_rss"] - idle) / level
        bench.say(describe(result))
        repeated = bool(best)
        if not best or badness(result) < badness(best):
            best = result
        if repeated or not (best["void"] or best["disturbed"]) or not bench.may_repeat():
            return best


def badness(result: Round) -> tuple[bool, float]:
    return bool(result["void"]), result["server_waited"]


@contextmanager
def serving(bench: Bench, candidate: Candidate, period_ms: float, words: int = SHORT) -> Iterator[Server]:
    port = free_port()
    command = candidate.command(port, period_ms, reply_file(words))
    if candidate.database:
        bench.checkpoint()
        command += ["--database-url", bench.postgres_url]
    with started(command, port, env=candidate.env) as server:
        yield server


def describe(result: Round) -> str:
    notes = [result["void"] or "", "disturbed" * result["disturbed"], "saturated" * result.get("saturated", False)]
    return (
        f"{result['round'] + 1:>3} {result['candidate']:<16} {result['streams']:>5} streams"
        f" {result.get('cpu_us_per_token', 0):7.2f} us/word {result.get('tokens_per_s', 0):8.0f} words/s"
        f"  late p99 {result['lateness'].get('p99_ms', 0):7.1f} ms  server {result['server_busy']:4.0%}"
        f" load {result['load_busy']:4.0%} waited {result['server_waited']:5.1%}  {' '.join(filter(None, notes))}"
    ).rstrip()
