"""`python -m tests.bench`: build, let the candidates take turns, report. QUICK=1 takes two minutes.

Where to read on: `rig.py` for how a server is run and loaded, `load.c` for what is measured, `ours.py` for this
server in the bench, `candidates.py` and `peers/` for the others, then one file for each part.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import report
from .candidates import EXTRAS, STREAMERS, Candidate, fastapi_asyncpg, ours
from .growth import growth
from .rig import (
    HERE,
    LONG,
    PERIOD_MS,
    SHORT,
    Bench,
    BenchError,
    alone,
    compile_c,
    free_port,
    prepare_files,
    reply_file,
    started,
    stay_on_load_core,
)
from .streams import first_word, paced, unpaced
from .turns import turns

PARTS = ("paced", "stored", "unpaced", "first_word", "turns", "growth")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    window_s: float
    levels: tuple[int, ...]
    stored_levels: tuple[int, ...]
    # Of a paced reply that is not stored.
    words: int
    turn_connections: tuple[int, ...]
    messages: int
    growth_repeats: int
    repeats: int


FULL = Plan(5, 3.0, (300, 1000, 1500), (300, 1000), LONG, (10, 32), 1_000_000, 300, repeats=20)
# Each part once, with less of everything: it shows that all works, and roughly where this server stands.
QUICK = Plan(1, 1.0, (1000,), (300,), SHORT, (10,), 10_000, 30, repeats=0)


def main() -> None:
    plan = QUICK if os.environ.get("QUICK", "0") not in ("", "0") else FULL
    options = parse(plan)
    stay_on_load_core()
    with alone():
        measure(plan, options)


def measure(plan: Plan, options: argparse.Namespace) -> None:
    began = time.monotonic()
    prepare_files()
    compile_c(HERE / "load.c")
    bench = Bench(options.window, repeats=plan.repeats)
    results: dict[str, Any] = {"plan": "quick" if plan is QUICK else "full", "words": plan.words, "missing": {}}
    candidates = choose(options, results["missing"])
    databases = [candidate for candidate in candidates if candidate.database]
    memories = [candidate for candidate in candidates if not candidate.database]
    with ExitStack() as stack:
        if databases or "growth" in options.only:
            stack.enter_context(bench.postgres())
        if "paced" in options.only:
            results["paced"] = paced(bench, memories, options.streams, options.rounds, words=plan.words)
        if "stored" in options.only and databases:
            trio = [candidate for candidate in candidates if candidate.name in ("ours", "ours-pg", "bare")]
            results["stored"] = paced(bench, trio, options.stored, options.rounds, words=SHORT)
        if "unpaced" in options.only:
            results["unpaced"] = unpaced(bench, memories, options.rounds)
        if "first_word" in options.only:
            both = databases + [candidate for candidate in candidates if candidate.name == "bare"]
            results["first_word"] = first_word(bench, both, options.rounds)
        if "turns" in options.only and databases:
            peers = databases + optional(fastapi_asyncpg, "fastapi-asyncpg", results["missing"])
            results["turns"] = turns(bench, peers, plan.turn_connections, options.rounds)
        if "growth" in options.only:
            results["growth"] = growth(bench, plan.messages, plan.growth_repeats)
        results["machine"] = report.machine(bench)
    results["repeated"] = bench.repeated
    results["seconds"] = round(time.monotonic() - began)
    labels = {candidate.name: candidate.label for candidate in candidates}
    report.publish(results, labels, whole=options.whole)


def parse(plan: Plan) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Benchmark this server beside others."
    )
    parser.add_argument("--only", type=names, default=PARTS, help="parts: " + ",".join(PARTS))
    parser.add_argument("--candidates", type=names, default=tuple(STREAMERS), help=",".join([*STREAMERS, *EXTRAS]))
    parser.add_argument("--streams", type=numbers, default=plan.levels, help="levels of `paced`: 300,1000")
    parser.add_argument("--stored", type=numbers, default=plan.stored_levels, help="the same of `stored`")
    parser.add_argument("--rounds", type=int, default=plan.rounds)
    parser.add_argument("--window", type=float, default=plan.window_s, help="seconds that are measured, each time")
    parser.add_argument("--against", type=Path, help="another checkout, measured beside this one as `against`")
    options = parser.parse_args()
    # Only a run of everything replaces the figures that are kept.
    options.whole = len(sys.argv) == 1
    return options


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def choose(options: argparse.Namespace, missing: dict[str, str]) -> list[Candidate]:
    chosen = []
    for name in options.candidates:
        if name not in STREAMERS | EXTRAS:
            raise BenchError(f"no candidate {name}, expected some of {', '.join([*STREAMERS, *EXTRAS])}")
        chosen += optional((STREAMERS | EXTRAS)[name], name, missing)
    if options.against:
        chosen.append(
            ours("against", f"this server as in {options.against.name}", database=False, app=options.against)
        )
    return chosen


def optional(make: Any, name: str, missing: dict[str, str]) -> list[Candidate]:
    """Return the candidate, or none and a note in `missing` where it cannot be had or does not start."""
    try:
        candidate: Candidate = make()
        if not candidate.database:
            port = free_port()
            with started(candidate.command(port, PERIOD_MS, reply_file(SHORT)), port, env=candidate.env):
                pass
        return [candidate]
    except BenchError as exc:
        missing[name] = str(exc)
        return []


if __name__ == "__main__":
    # Unwinds, and so stops what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: stopped"))
    try:
        main()
    except BenchError as exc:
        sys.exit(f"bench: {exc}")
    except KeyboardInterrupt:
        sys.exit("bench: stopped")
