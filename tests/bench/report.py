"""The report: medians with their spread, ratios paired by round, the targets, a table, a JSON file, a drawing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from .drawing import LATENESS_LIMITS, draw
from .rig import BUILD, HERE, PERIOD_MS, SHORT, Bench
from .streams import MAIN_LEVEL

Round = dict[str, Any]
Spread = dict[str, float]

# What is told of a round of streams: name, and how it is read off what the generator says.
FIGURES: dict[str, Callable[[Round], float | None]] = {
    "cpu_us_per_word": lambda r: r.get("cpu_us_per_token"),
    "words_per_s": lambda r: r.get("tokens_per_s"),
    "words_per_core_s": lambda r: 1e6 / r["cpu_us_per_token"] if r.get("cpu_us_per_token") else None,
    "late_p50_ms": lambda r: r["lateness"].get("p50_ms"),
    "late_p99_ms": lambda r: r["lateness"].get("p99_ms"),
    "late_max_ms": lambda r: r["lateness"].get("max_ms"),
    "first_word_p50_ms": lambda r: above_period(r, "p50_ms"),
    "first_word_p99_ms": lambda r: above_period(r, "p99_ms"),
    "kib_per_stream": lambda r: r["bytes_per_stream"] / 1024 if "bytes_per_stream" in r else None,
    "postgres_us_per_word": lambda r: r["others_cpu_s"] / r["tokens"] * 1e6 if r["others_cpu_s"] else None,
    "server_busy": lambda r: r["server_busy"],
    "generator_busy": lambda r: r["load_busy"],
}


def above_period(r: Round, part: str) -> float | None:
    """The wait for the first word beyond the model's own, of paced streams."""
    return r["first_token"][part] - PERIOD_MS if "saturated" in r and part in r["first_token"] else None


@dataclass(frozen=True)
class Target:
    name: str
    value: Spread | None
    relation: str
    limit: float
    unit: str
    # What the value leaves out.
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        value = self.value["median"]
        return value <= self.limit if self.relation == "<=" else value >= self.limit


def publish(results: dict[str, Any], labels: dict[str, str], *, whole: bool) -> None:
    """Print the table; where everything was measured, write results.json and results.svg too.

    Those of a quick run do not replace the ones that are kept.
    """
    summary = summarize(results, labels)
    print(table(summary, whole=whole and summary["plan"] == "full"))
    if whole:
        folder = HERE if summary["plan"] == "full" else BUILD
        (folder / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
        (folder / "results.svg").write_text(draw(summary))


def summarize(results: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        name: results[name] for name in ("machine", "plan", "words", "seconds", "repeated", "missing")
    }
    summary["labels"] = labels
    summary["targets"] = [asdict(target) | {"met": target.met} for target in targets(results)]
    for part in ("paced", "stored", "unpaced", "first_word"):
        if part in results:
            summary[part] = by_level(results[part], "streams", figures_of_streams)
    if "turns" in results:
        summary["turns"] = by_level(results["turns"], "connections", figures_of_turns)
    if "growth" in results:
        summary["growth"] = results["growth"]
    return summary


def by_level(rounds: Sequence[Round], key: str, figures: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of each candidate at each level. Void rounds do not count."""
    valid = [r for r in rounds if not r["void"]]
    return {
        str(level): {
            name: figures([r for r in valid if (r[key], r["candidate"]) == (level, name)])
            | {"void": sum(bool(r["void"]) for r in rounds if (r[key], r["candidate"]) == (level, name))}
            for name in dict.fromkeys(r["candidate"] for r in valid if r[key] == level)
        }
        for level in sorted({r[key] for r in rounds})
    }


def figures_of_streams(own: list[Round]) -> dict[str, Any]:
    figures: dict[str, Any] = {name: spread(read(r) for r in own) for name, read in FIGURES.items()}
    figures |= {"rounds": len(own), "disturbed": sum(r["disturbed"] for r in own)}
    figures["saturated"] = sum(r.get("saturated", False) for r in own)
    return figures


def figures_of_turns(own: list[Round]) -> dict[str, Any]:
    return {
        "turns_per_s": spread(r["turns_per_s"] for r in own),
        "p50_ms": spread(r["whole"]["p50_ms"] for r in own if "whole" in r),
        "p99_ms": spread(r["whole"]["p99_ms"] for r in own if "whole" in r),
        "rounds": len(own),
        "disturbed": sum(r["disturbed"] for r in own),
    }


def spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"median": round(median(known), 3), "min": round(min(known), 3), "max": round(max(known), 3)}


def ratio(rounds: Sequence[Round], name: str, reference: str, figure: str) -> Spread | None:
    """Return `name`'s figure over `reference`'s, round by round."""
    of = {(r["candidate"], r["round"]): r.get(figure) for r in rounds if not r["void"]}
    return spread(
        value / of[reference, number]
        for (candidate, number), value in of.items()
        if candidate == name and value and of.get((reference, number))
    )


def targets(results: dict[str, Any]) -> list[Target]:
    paced, stored = results.get("paced", []), results.get("stored", [])
    main = [r for r in paced if r["streams"] == MAIN_LEVEL]
    found = []

    def cpu(rounds: Sequence[Round], name: str, reference: str, limit: float, what: str) -> None:
        flattered = [
            who
            for who in (name, reference)
            if any(r["saturated"] for r in rounds if r["candidate"] == who and not r["void"])
        ]
        note = f"{' and '.join(flattered)} saturated: flattered" if flattered else ""
        value = ratio(rounds, name, reference, "cpu_us_per_token")
        found.append(Target(f"CPU per word, {what}", value, "<=", limit, "x", note))

    cpu(main, "ours", "bare", 1.3, f"{MAIN_LEVEL} streams, to bare uvloop")
    cpu(main, "ours", "express", 0.5, f"{MAIN_LEVEL} streams, to Express")
    cpu(main, "ours", "fastapi", 0.33, f"{MAIN_LEVEL} streams, to FastAPI + sse-starlette")
    for level in sorted({r["streams"] for r in stored}):
        own = [r for r in stored if r["streams"] == level]
        cpu(own, "ours-pg", "bare", 1.8, f"{level} streams, turns stored, to bare uvloop")
    for level, limit in LATENESS_LIMITS.items():
        for name, rounds, what in (("ours", paced, ""), ("ours-pg", stored, ", turns stored")):
            own = [r for r in rounds if (r["candidate"], r["streams"]) == (name, level) and not r["void"]]
            value = spread(FIGURES["late_p99_ms"](r) for r in own)
            if own or name == "ours":
                found.append(Target(f"lateness p99, {level} streams{what}", value, "<=", limit, "ms"))
    own = [r for r in main if r["candidate"] == "ours" and not r["void"]]
    memory = spread(FIGURES["kib_per_stream"](r) for r in own)
    found.append(Target(f"memory per stream, {MAIN_LEVEL} streams", memory, "<=", 20.0, "KiB"))
    # Words a second of CPU: the inverse of CPU per word.
    unpaced = ratio(results.get("unpaced", []), "bare", "ours", "cpu_us_per_token")
    found.append(Target("unpaced words per core, to bare uvloop", unpaced, ">=", 0.6, "x"))
    idle = [r for r in results.get("first_word", []) if r["streams"] < 100 and r["candidate"] == "ours-pg"]
    first = spread(FIGURES["first_word_p50_ms"](r) for r in idle if not r["void"])
    found.append(Target("first word above the model's own, idle, turns stored", first, "<=", 3.0, "ms"))
    turns = results.get("turns", [])
    for count in sorted({r["connections"] for r in turns}):
        level_rounds = [r for r in turns if r["connections"] == count]
        for reference, limit, what in (("pgbench", 0.5, "pgbench"), ("fastapi-asyncpg", 1.2, "FastAPI + asyncpg")):
            value = ratio(level_rounds, "ours-pg", reference, "turns_per_s")
            found.append(Target(f"POST /chat, {count} connections, to {what}", value, ">=", limit, "x"))
    if "growth" in results:
        grown = results["growth"]
        name, worst = max(grown["statements"].items(), key=lambda item: item[1]["ratio"])
        value = {"median": round(worst["ratio"], 3)} | {
            edge: round(pick(figures["ratio"] for figures in grown["statements"].values()), 3)
            for edge, pick in (("min", min), ("max", max))
        }
        what = f"slowest-growing statement ({name}), {grown['messages']:,} messages to next to none"
        found.append(Target(what, value, "<=", 1.2, "x"))
    return found


def machine(bench: Bench) -> dict[str, Any]:
    """What the figures depend on. Nothing that names the machine or its paths."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    try:
        import uvloop

        loop = f"uvloop {uvloop.__version__}"
    except ImportError:
        loop = "asyncio"
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "loop": loop,
        "node": version(["node", "--version"]),
        "postgres": bench.postgres_version or None,
        "durability": "fsync and synchronous_commit on, as PostgreSQL comes; growth: synchronous_commit off",
        "date": datetime.now(UTC).date().isoformat(),
    }


def version(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().lstrip("v")
    except (OSError, subprocess.CalledProcessError):
        return None


# ---- The table ----


def table(summary: dict[str, Any], *, whole: bool) -> str:
    lines = []
    for title, part in (
        (f"Paced, a word every 20 ms, replies of {summary['words']} words", "paced"),
        (f"The same with each turn in PostgreSQL, replies of {SHORT} words", "stored"),
        ("Unpaced", "unpaced"),
        ("First word", "first_word"),
    ):
        for level, candidates in summary.get(part, {}).items():
            lines += ["", f"{title}: {level} streams at once", STREAMS_HEAD]
            lines += [streams_row(name, figures, candidates.get("bare")) for name, figures in candidates.items()]
    for level, candidates in summary.get("turns", {}).items():
        lines += ["", f"POST /chat, closed loop: {level} connections (pgbench: as many as the pool has, 10)"]
        for name, figures in candidates.items():
            rate, half = show(figures["turns_per_s"], ".0f"), show(figures["p50_ms"], ".1f")
            lines.append(f"  {name:<16} {rate:>18} turns/s   p50 {half:>18} ms")
    if "growth" in summary:
        grown = summary["growth"]
        lines += [
            "",
            f"Growth: {grown['messages']:,} messages, one chat of {grown['big_chat']:,}, to next to none (p50)",
        ]
        for name, figures in grown["statements"].items():
            small, large = figures["small_ms"], figures["large_ms"]
            lines.append(f"  {name:<26} {small:7.3f} ms -> {large:7.3f} ms   x {figures['ratio']:.2f}")
    lines += ["", f"{'Targets (median, min-max of the rounds)':<78} {'value':>24}   {'target':>9}"]
    # A part that was left out has no targets.
    lines += [target_row(target) for target in summary["targets"] if target["value"] or whole]
    about = summary["machine"]
    lines += [
        "",
        f"{about['cpu']}, {about['cores']} cores (server on one, generator and PostgreSQL on another), Linux"
        f" {about['kernel']}, Python {about['python']}, {about['loop']}, Node {about['node']},"
        f" PostgreSQL {about['postgres']}, {about['date']}; {about['durability']}.",
        f"{summary['plan']} run in {summary['seconds']} s; {summary['repeated']} void or disturbed rounds were"
        " measured again.",
    ]
    lines += [f"Missing: {name}: {why}" for name, why in summary["missing"].items()]
    return "\n".join(lines)


STREAMS_HEAD = (
    f"  {'':<16} {'CPU us/word':>20} {'x bare':>7} {'words/s':>8} {'late p50':>9} {'p99':>8} {'max':>8}"
    f" {'first +ms':>10} {'KiB/stream':>10}"
)


def streams_row(name: str, figures: dict[str, Any], bare: dict[str, Any] | None) -> str:
    def middle(figure: str, style: str) -> str:
        return format(figures[figure]["median"], style) if figures[figure] else "-"

    reference = bare["cpu_us_per_word"]["median"] if bare else None
    own = figures["cpu_us_per_word"]
    relative = f"{own['median'] / reference:.2f}" if reference else "-"
    notes = [
        f"{what} in {figures[what]} of {figures['rounds']}" for what in ("saturated", "disturbed") if figures[what]
    ]
    if figures["void"]:
        notes.append(f"{figures['void']} void")
    return (
        f"  {name:<16} {show(own, '.1f'):>20} {relative:>7} {middle('words_per_s', '.0f'):>8}"
        f" {middle('late_p50_ms', '.1f'):>9} {middle('late_p99_ms', '.1f'):>8} {middle('late_max_ms', '.1f'):>8}"
        f" {middle('first_word_p50_ms', '.1f'):>10} {middle('kib_per_stream', '.1f'):>10}  {', '.join(notes)}"
    ).rstrip()


def target_row(target: dict[str, Any]) -> str:
    met = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
    value = f"{show(target['value'], '.2f')} {target['unit']}"
    limit = f"{target['relation']} {target['limit']:g}"
    note = f" ({target['note']})" if target["note"] else ""
    return f"  {target['name']:<76} {value:>24}   {limit:>9}   {met}{note}"


def show(value: Spread | None, style: str) -> str:
    if value is None:
        return "-"
    middle, low, high = (format(value[part], style).strip() for part in ("median", "min", "max"))
    return f"{middle} ({low}-{high})" if low != high else middle
