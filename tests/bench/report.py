"""The report: medians with their spread, ratios paired by round, the targets; a table, JSON, a drawing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from .drawing import draw
from .growth import BACKGROUND
from .streams import Round

Spread = dict[str, float]

# What is told of a candidate under load: a heading, the figure, and how it is shown.
COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    "streams": [
        ("CPU us/word", "cpu_us_per_word", ".2f"),
        ("words/s", "words_per_s", ".0f"),
        ("late p99 ms", "late_p99_ms", ".1f"),
        ("first word +ms", "first_word_ms", ".1f"),
        ("KiB/stream", "kib_per_stream", ".1f"),
        ("PostgreSQL us/word", "postgres_us_per_word", ".2f"),
    ],
    "first_word": [("first word +ms", "first_word_ms", ".2f")],
    "turns": [
        ("CPU us/turn", "cpu_us_per_turn", ".0f"),
        ("turns/s", "turns_per_s", ".0f"),
        ("p50 ms", "turn_p50_ms", ".1f"),
        ("p99 ms", "turn_p99_ms", ".1f"),
    ],
}

LATENESS_LIMIT_MS = 5.0


def figure(r: Round, name: str) -> float | None:
    """Return a figure of a round; None where it has none, as where no word came."""
    value: float | None
    if name == "late_p99_ms":
        value = r["lateness"].get("p99_ms")
    elif name == "postgres_us_per_word":
        value = r["others_cpu_s"] / r["tokens"] * 1e6 if r["others_cpu_s"] and r["tokens"] else None
    elif name in ("turn_p50_ms", "turn_p99_ms"):
        value = r["whole"].get(name.removeprefix("turn_"))
    else:
        value = r.get(name)
    return value


@dataclass(frozen=True)
class Target:
    """A figure of this server, and the most that it is to be; without a limit it is only told."""

    name: str
    value: Spread | None
    unit: str
    limit: float | None = None
    # What the value leaves out.
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.value is None or self.limit is None else self.value["median"] <= self.limit


def publish(results: dict[str, Any], labels: dict[str, str], folder: Path | None) -> dict[str, Any]:
    """Print the table; with a folder, write results.json, .txt and .svg too. Return what is in the JSON."""
    summary = summarize(results, labels)
    text = table(summary)
    print(text)
    if folder:
        (folder / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
        (folder / "results.txt").write_text(text + "\n")
        (folder / "results.svg").write_text(draw(summary))
    return summary


def summarize(results: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    summary = {name: value for name, value in results.items() if name not in COLUMNS}
    summary["labels"] = labels
    summary["targets"] = [asdict(target) | {"met": target.met} for target in targets(results, labels)]
    for part in COLUMNS:
        if part in results:
            summary[part] = by_level(results[part], [name for _, name, _ in COLUMNS[part]])
    return summary


def by_level(rounds: Sequence[Round], figures: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the figures of each candidate at each level. Void rounds do not count."""
    levels: dict[str, dict[str, Any]] = {}
    for level in sorted({r["connections"] for r in rounds}):
        levels[str(level)] = {}
        for name in dict.fromkeys(r["candidate"] for r in rounds):
            all_own = [r for r in rounds if (r["connections"], r["candidate"]) == (level, name)]
            own = [r for r in all_own if not r["void"]]
            levels[str(level)][name] = {what: spread(figure(r, what) for r in own) for what in figures} | {
                "rounds": len(own),
                "void": len(all_own) - len(own),
                "disturbed": sum(r["disturbed"] for r in own),
                "saturated": sum(r["saturated"] for r in own),
            }
    return levels


def spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"median": round(median(known), 3), "min": round(min(known), 3), "max": round(max(known), 3)}


def of(rounds: Sequence[Round], name: str, what: str) -> Spread | None:
    return spread(figure(r, what) for r in rounds if r["candidate"] == name and not r["void"])


def ratio(rounds: Sequence[Round], name: str, reference: str, what: str) -> Spread | None:
    """Return `name`'s figure over `reference`'s, round by round: both of one run, one after the other."""
    values = {(r["candidate"], r["round"]): figure(r, what) for r in rounds if not r["void"]}
    return spread(
        value / values[reference, number]
        for (candidate, number), value in values.items()
        if candidate == name and value and values.get((reference, number))
    )


def targets(results: dict[str, Any], labels: dict[str, str]) -> list[Target]:
    found = []
    streams, turns = results.get("streams", []), results.get("turns", [])
    asked = {*labels, *results["missing"]}
    levels = sorted({r["connections"] for r in streams})
    for level in levels:
        own = [r for r in streams if r["connections"] == level]
        for name, reference, limit in (
            ("ours", "bare", 1.35),
            ("ours", "express", 0.52),
            ("ours", "fastapi", 0.23),
            ("ours-pull", "bare", 1.55),
        ):
            if {name, reference} <= asked:
                full = [
                    who for who in (name, reference) if any(r["saturated"] for r in own if r["candidate"] == who)
                ]
                note = f"{' and '.join(full)} saturated: several words a send, and so cheaper" if full else ""
                what = f"CPU a word, {level} streams, {'pull' if name == 'ours-pull' else 'push'} to {reference}"
                found.append(Target(what, ratio(own, name, reference, "cpu_us_per_word"), "x", limit, note))
    if levels:
        own = [r for r in streams if r["connections"] == levels[-1]]
        where = f"{levels[-1]} streams"
        found.append(Target(f"lateness p99, {where}", of(own, "ours", "late_p99_ms"), "ms", LATENESS_LIMIT_MS))
        found.append(Target(f"memory a stream, {where}", of(own, "ours", "kib_per_stream"), "KiB", 24.0))
    if turns:
        found.append(Target("CPU of a POST /chat turn", of(turns, "ours", "cpu_us_per_turn"), "us"))
        if "fastapi-asyncpg" in asked:
            value = ratio(turns, "ours", "fastapi-asyncpg", "cpu_us_per_turn")
            found.append(Target("CPU of a POST /chat turn, to fastapi-asyncpg", value, "x", 0.95))
    if "first_word" in results:
        value = of(results["first_word"], "ours", "first_word_ms")
        found.append(Target("first word above the model's own, next to idle", value, "ms", 2.6))
    if "growth" in results:
        grown = results["growth"]
        # Those that nobody waits for ran a dozen times, whatever else went on: by chance 0.4 to 2.5 x.
        ratios = {name: row["ratio"] for name, row in grown["statements"].items() if BACKGROUND not in name}
        name, worst = max(ratios.items(), key=lambda item: item[1])
        value = spread(ratios.values())
        assert value is not None
        value["median"] = round(worst, 3)
        what = f"growth to {grown['messages']:,} messages, slowest-growing statement"
        found.append(Target(what, value, "x", 1.2, name))
    return found


def machine(postgres_version: str) -> dict[str, Any]:
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
        "postgres": postgres_version,
        "durability": "fsync and synchronous_commit on, as PostgreSQL comes; growth: synchronous_commit off",
        "date": datetime.now(UTC).date().isoformat(),
    }


def version(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().lstrip("v")
    except (OSError, subprocess.CalledProcessError):
        return None


# ---- The table ----


def table(summary: dict[str, Any]) -> str:
    lines = []
    for part, title in (
        (
            "streams",
            f"{{}} streams at once, a word every {summary['period_ms']:g} ms, {summary['words']} words a reply",
        ),
        ("first_word", "First word: {} streams at once"),
        ("turns", "POST /chat in a closed loop: {} connections"),
    ):
        for level, candidates in summary.get(part, {}).items():
            heads = "".join(f" {head:>22}" for head, _, _ in COLUMNS[part])
            lines += ["", title.format(level), f"  {'':<16}{heads}"]
            lines += [row(name, figures, COLUMNS[part]) for name, figures in candidates.items()]
    if "growth" in summary:
        lines += ["", f"Growth: {summary['growth']['messages']:,} messages, beside a thousand (p50)"]
        for name, figures in summary["growth"]["statements"].items():
            small, large = figures["small_ms"], figures["large_ms"]
            lines.append(f"  {name:<44} {small:7.3f} ms -> {large:7.3f} ms   x {figures['ratio']:.2f}")
    lines += ["", f"{'Targets (median, min-max of the rounds)':<72} {'value':>26} {'target':>9}"]
    lines += [target_row(target) for target in summary["targets"]]
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


def row(name: str, figures: dict[str, Any], columns: Sequence[tuple[str, str, str]]) -> str:
    shown = "".join(f" {show(figures[what], style):>22}" for _, what, style in columns)
    notes = [
        f"{what} in {figures[what]} of {figures['rounds']}" for what in ("saturated", "disturbed") if figures[what]
    ]
    if figures["void"]:
        notes.append(f"{figures['void']} void")
    return f"  {name:<16}{shown}  {', '.join(notes)}".rstrip()


def target_row(target: dict[str, Any]) -> str:
    value = f"{show(target['value'], '.2f')} {target['unit']}"
    limit = "-" if target["limit"] is None else f"<= {target['limit']:g}"
    met = {True: "met", False: "MISSED", None: "" if target["value"] else "not measured"}[target["met"]]
    note = f"({target['note']})" if target["note"] else ""
    return f"  {target['name']:<70} {value:>26} {limit:>9}   {met} {note}".rstrip()


def show(value: Spread | None, style: str) -> str:
    if value is None:
        return "-"
    middle, low, high = (format(value[part], style) for part in ("median", "min", "max"))
    return f"{middle} ({low}-{high})" if low != high else middle
