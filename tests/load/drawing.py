"""The drawing of a load, by hand: percentiles of first tokens and gaps; readable on light and on dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tests.bench.drawing import STYLE, text

from .figures import Figures, Times

WIDTH, HEIGHT = 960, 400
TOP, BOTTOM, PANEL = 84, 300, 380
LEFTS = (64, 544)

CURVES = """
  .curve { fill: none; stroke-width: 2; } .grid { stroke: #d1d9e0; }
  .first { stroke: #0969da; } .second { stroke: #bc4c00; stroke-dasharray: 6 3; }
  .first-text { fill: #0969da; } .second-text { fill: #bc4c00; }
  @media (prefers-color-scheme: dark) {
    .first { stroke: #4493f8; } .second { stroke: #db6d28; } .grid { stroke: #30363d; }
    .first-text { fill: #4493f8; } .second-text { fill: #db6d28; }
  }
"""

# Across, each step has a tenth of what the one before it leaves.
MARKS = {"50": 0.5, "90": 0.9, "99": 0.99, "99.9": 0.999, "99.99": 0.9999}
POINTS = [1 - 10 ** (-step / 20) for step in range(81)]

NAMES = ("first", "second")


def draw(title: str, labels: Sequence[str], all_figures: Sequence[Figures], notes: Sequence[str]) -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' role="img" aria-labelledby="title description">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="description">{escape(described(labels, all_figures))}</desc>',
        f"<style>{STYLE}{CURVES}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        text(24, 30, title, "ink title"),
        *panel(LEFTS[0], "Until the first token, ms", [figures.first for figures in all_figures]),
        *panel(LEFTS[1], "From one to the next, ms", [figures.gaps for figures in all_figures]),
    ]
    for number, (name, label) in enumerate(zip(NAMES, labels, strict=False)):
        y = BOTTOM + 46 + 18 * number
        parts.append(f'<line class="curve {name}" x1="24" x2="52" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(text(60, y, label, f"{name}-text"))
    parts += [
        text(LEFTS[1], BOTTOM + 46 + 18 * number, note, "soft small") for number, note in enumerate(notes[:3])
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def described(labels: Sequence[str], all_figures: Sequence[Figures]) -> str:
    """Return what is to be seen, in words."""
    said = []
    for label, figures in zip(labels, all_figures, strict=True):
        for what, times in (("first token", figures.first), ("gap", figures.gaps)):
            row = ", ".join(f"{part} {value:.1f} ms" for part, value in times.row_ms().items())
            said.append(f"{label}, {what}: {row}.")
    return " ".join(said)


def panel(left: float, title: str, all_times: Sequence[Times]) -> list[str]:
    curves = [times.at(*POINTS) for times in all_times if times.counts]
    parts = [text(left, TOP - 18, title, "ink")]
    lowest = min((min(curve) for curve in curves), default=1.0)
    highest = max((max(curve) for curve in curves), default=10.0)
    # Whole decades, one at least, and none below a tenth of a millisecond.
    low = math.floor(math.log10(max(lowest, 0.1)))
    high = max(math.ceil(math.log10(max(highest, 1.0))), low + 1)

    def y(value_ms: float) -> float:
        return BOTTOM - (math.log10(max(value_ms, 10**low)) - low) / (high - low) * (BOTTOM - TOP)

    for power in range(low, high + 1):
        for step in (1, 2, 5):
            value_ms = step * 10.0**power
            if value_ms <= 10.0**high:
                parts.append(
                    f'<line class="grid" x1="{left}" x2="{left + PANEL}" y1="{y(value_ms):.1f}"'
                    f' y2="{y(value_ms):.1f}"/>'
                )
                if step == 1 or high - low <= 3:
                    parts.append(text(left - 6, y(value_ms) + 4, f"{value_ms:g}", "soft small", anchor="end"))
    for mark, part in MARKS.items():
        x = left + across(part)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{BOTTOM}"/>')
        parts.append(text(x, BOTTOM + 16, f"{mark} %", "soft small", anchor="middle"))
    # The first on top.
    for name, times in reversed(list(zip(NAMES, all_times, strict=False))):
        if times.counts:
            points = [part for part in POINTS if (1 - part) * times.counts.total() >= 1]
            where = " ".join(
                f"{left + across(part):.1f},{y(value_ms):.1f}"
                for part, value_ms in zip(points, times.at(*points), strict=True)
            )
            parts.append(f'<polyline class="curve {name}" points="{where}"/>')
    return parts


def across(part: float) -> float:
    return -math.log10(1 - part) / 4 * PANEL
