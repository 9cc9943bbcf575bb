"""`python -m tests.bench`: build, let the candidates take turns, report.

QUICK=1 takes two minutes, and SMOKE=1 a quarter of one: without peers and with a handful of streams it shows that
all works, and fails if a figure is missing.

Where to read on: `rig.py` for how a server is run and loaded, `load.c` for what is measured, `candidates.py`,
`pull.py` and `peers/` for who takes part, `streams.py` and `growth.py` for the parts, `report.py` for the targets.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import report
from .candidates import PEER_STORERS, PEER_STREAMERS, STREAMERS, Candidate, against, ours, serving
from .growth import growth
from .rig import (
    BODY,
    BUILD,
    CORES,
    HERE,
    BenchError,
    Postgres,
    alone,
    compile_load,
    new_postgres,
    prepare_files,
    stay_on_load_core,
)
from .streams import Bench, first_word, streams, turns

PARTS = ("streams", "first_word", "turns", "growth")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    name: str
    rounds: int
    levels: tuple[int, ...]
    window_s: float
    settle_s: float
    period_ms: float
    messages: int
    growth_repeats: int
    repeats: int
    peers: bool = True


FULL = Plan("full", 5, (800, 1000), 3.0, 1.0, 20.0, 1_000_000, 1000, repeats=20)
# Each part once, with less of everything: it shows roughly where this server stands.
QUICK = Plan("quick", 1, (1000,), 1.0, 0.5, 20.0, 10_000, 30, repeats=0)
SMOKE = Plan("smoke", 1, (30,), 0.4, 0.1, 2.0, 2_000, 5, repeats=0, peers=False)


def main() -> None:
    plan = SMOKE if asked_for("SMOKE") else QUICK if asked_for("QUICK") else FULL
    options = parse(plan)
    if plan is not SMOKE and len(CORES) < 2:
        raise BenchError("one core only: the server and the load generator need one each")
    stay_on_load_core()
    # What is only to work may be slowed down.
    with nullcontext() if plan is SMOKE else alone():
        compile_load()
        with new_postgres() as postgres:
            summary = measure(plan, options, postgres)
    if plan is SMOKE:
        odd = [
            target["name"] for target in summary["targets"] if not (target["value"] and target["value"]["min"] > 0)
        ]
        if odd:
            raise BenchError(f"no figure, or none above 0: {', '.join(odd)}")


def asked_for(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def measure(plan: Plan, options: argparse.Namespace, postgres: Postgres) -> dict[str, Any]:
    began = time.monotonic()
    with serving(ours(), postgres) as server:
        reply = json.loads(server.ask("POST", "/chat", json.loads(BODY)))["reply"]
    words = prepare_files(reply)
    bench = Bench(
        postgres, options.rounds, options.window, plan.settle_s, plan.period_ms, words=words, repeats=plan.repeats
    )
    results: dict[str, Any] = {"plan": plan.name, "words": words, "period_ms": plan.period_ms, "missing": {}}
    missing = results["missing"]
    streamers = [make() for name, make in STREAMERS.items() if name in options.candidates]
    if options.against:
        streamers.append(against(options.against))
    storers = [candidate for candidate in streamers if candidate.name in ("ours", "against")]
    if plan.peers:
        streamers += optional(PEER_STREAMERS, options.candidates, postgres, missing)
    labels = {candidate.name: candidate.label for candidate in streamers}
    if "streams" in options.only:
        results["streams"] = streams(bench, streamers, options.streams)
    if "first_word" in options.only:
        results["first_word"] = first_word(bench, storers)
    if "turns" in options.only:
        both = storers + (optional(PEER_STORERS, PEER_STORERS, postgres, missing) if plan.peers else [])
        labels |= {candidate.name: candidate.label for candidate in both}
        results["turns"] = turns(bench, both)
    if "growth" in options.only:
        results["growth"] = growth(postgres, plan.messages, plan.growth_repeats)
    results |= {"machine": report.machine(postgres.version), "repeated": bench.repeated}
    results["seconds"] = round(time.monotonic() - began)
    # Only a whole run of everything replaces the figures that are kept.
    whole = len(sys.argv) == 1
    return report.publish(results, labels, (HERE if plan is FULL else BUILD) if whole else None)


def parse(plan: Plan) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Benchmark this server beside others."
    )
    parser.add_argument("--only", type=names, default=PARTS, help="parts: " + ",".join(PARTS))
    everybody = (*STREAMERS, *PEER_STREAMERS)
    parser.add_argument("--candidates", type=names, default=everybody, help="of `streams`: " + ",".join(everybody))
    parser.add_argument("--streams", type=numbers, default=plan.levels, help="levels of `streams`: 800,1000")
    parser.add_argument("--rounds", type=int, default=plan.rounds)
    parser.add_argument("--window", type=float, default=plan.window_s, help="seconds that are measured, each time")
    parser.add_argument("--against", type=Path, help="another checkout, measured beside this one as `against`")
    options = parser.parse_args()
    if odd := {*options.only, *options.candidates} - {*PARTS, *everybody}:
        parser.error(f"no such part or candidate: {', '.join(sorted(odd))}")
    return options


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def optional(
    makers: dict[str, Callable[[], Candidate]],
    wanted: Collection[str],
    postgres: Postgres,
    missing: dict[str, str],
) -> list[Candidate]:
    """Return those that can be had and start, with a note in `missing` for each of the others."""
    found = []
    for name, make in makers.items():
        if name in wanted:
            try:
                candidate = make()
                with serving(candidate, postgres):
                    found.append(candidate)
            except BenchError as exc:
                missing[name] = str(exc)
    return found


if __name__ == "__main__":
    # Unwinds, and so stops what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: stopped"))
    try:
        main()
    except BenchError as exc:
        sys.exit(f"bench: {exc}")
    except KeyboardInterrupt:
        sys.exit("bench: stopped")
