"""What was measured: times in buckets, failures by kind, and the table of them. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

# A bucket is that much wider than the one before it, from a microsecond on: streams.c has the same. So a
# percentile is known to 1 %, and a long run takes no more memory than a short one.
BUCKET = math.log(1.02)

PARTS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

# One user asks for all, as a rule: who is over one of these is soon over the next.
USER_LIMITS = "USER_STREAM_LIMIT=0 USER_READER_LIMIT=0 USER_TURNS_PER_MINUTE=0"
MORE = f"start the server with {USER_LIMITS} (no limit), or ask as more users (--users)"

# What a refusal is about, and what to do.
HINTS = {
    "Too many replies": MORE,
    "Too many streams": MORE,
    "Too many turns": MORE,
    "503 Busy": "raise STREAM_LIMIT or WORKERS of the server, or its limit of descriptors",
    "Budget": "give the budgets of these users more units, or take them away",
    "401 ": "say who asks: --header 'authorization: Bearer …'",
    "403 ": "say who asks: --header or --users; the demo user is there with SEED_DEMO=1",
    "404 ": "the URL is what /chat/stream follows",
}


@dataclass
class Times:
    counts: Counter[int] = field(default_factory=Counter)
    max_s: float = 0.0

    def add(self, value_s: float) -> None:
        self.counts[int(math.log(max(value_s * 1e6, 1.0)) / BUCKET)] += 1
        self.max_s = max(self.max_s, value_s)

    def update(self, other: Times) -> None:
        self.counts.update(other.counts)
        self.max_s = max(self.max_s, other.max_s)

    def at(self, *parts: float) -> list[float]:
        """Return the percentiles of these parts of 1, in ascending order, in milliseconds: by nearest rank."""
        total = self.counts.total()
        found, below, buckets = [], 0, iter(sorted(self.counts.items()))
        value_ms = 0.0
        for part in parts:
            while below < max(1, math.ceil(part * total)) and (bucket := next(buckets, None)):
                below += bucket[1]
                # The middle of the bucket.
                value_ms = min(math.exp((bucket[0] + 0.5) * BUCKET) / 1e3, self.max_s * 1e3)
            found.append(value_ms)
        return found

    def row_ms(self) -> dict[str, float]:
        return {**dict(zip(PARTS, self.at(*PARTS.values()), strict=True)), "max": self.max_s * 1e3}


@dataclass
class Figures:
    """Of one address; of a second, or of the whole run."""

    # From asking, with the connection's opening if there is none yet, to the first word, and from word to word.
    first: Times = field(default_factory=Times)
    gaps: Times = field(default_factory=Times)
    # Streams under way.
    open: int = 0
    replies: int = 0
    words: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def update(self, later: Figures) -> None:
        self.first.update(later.first)
        self.gaps.update(later.gaps)
        self.open = later.open
        self.replies += later.replies
        self.words += later.words
        self.failures.update(later.failures)

    @classmethod
    def read(cls, line: dict[str, Any]) -> Figures:
        """Return those that streams.c has printed."""
        first, gaps = (
            Times(Counter({int(bucket): count for bucket, count in times["counts"].items()}), times["max_s"])
            for times in (line["first"], line["gaps"])
        )
        return cls(first, gaps, line["open"], line["replies"], line["words"], Counter(line["failures"]))


@dataclass
class Tick:
    """What has come since the last one."""

    # Of each address.
    figures: list[Figures]
    # What the generator itself took.
    cpu_s: float


def together(all_figures: Iterable[Figures]) -> Figures:
    total = Figures()
    streams = 0
    for figures in all_figures:
        streams += figures.open
        total.update(figures)
    total.open = streams
    return total


def table(labels: Sequence[str], all_figures: Sequence[Figures]) -> list[str]:
    """Return lines: percentiles of each address, and of the second as compared with the first."""
    width = max(map(len, [*labels, "second / first"])) + 2
    lines = [f"{'milliseconds':<{width + 13}}" + "".join(f"{part:>10}" for part in [*PARTS, "max"])]
    for what, name in (("first token", "first"), ("gap", "gaps")):
        rows = [getattr(figures, name).row_ms() for figures in all_figures]
        for label, row in zip(labels, rows, strict=True):
            cells = (f"{value:>10.2f}" if value else f"{'-':>10}" for value in row.values())
            lines.append(f"{what:<13}{label:<{width}}" + "".join(cells))
        if len(rows) == 2:
            pairs = [(row, rows[0][part]) for part, row in rows[1].items()]
            ratios = "".join(f"{of / to:>9.2f}x" if to else f"{'-':>10}" for of, to in pairs)
            lines.append(f"{'':<13}{'second / first':<{width}}" + ratios)
            lines.append(
                f"{'':<13}{'second - first':<{width}}" + "".join(f"{of - to:>+10.2f}" for of, to in pairs)
            )
    return lines


def failure_lines(labels: Sequence[str], all_figures: Sequence[Figures]) -> list[str]:
    """Return a line for each kind of failure, and what to do about those that are known."""
    lines = [
        f"failed {count:>6,} x {kind}" + (f" ({label})" if len(labels) > 1 else "")
        for label, figures in zip(labels, all_figures, strict=True)
        for kind, count in figures.failures.most_common()
    ]
    kinds = [kind for figures in all_figures for kind in figures.failures]
    return [*lines, *hints(kinds)] or ["failed      0"]


def hints(kinds: Iterable[str]) -> list[str]:
    """Return what to do about those that are known."""
    of = list(kinds)
    return [f"-> {part.strip()}: {hint}" for part, hint in HINTS.items() if any(part in kind for kind in of)]
