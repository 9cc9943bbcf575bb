"""The drawing of the results: two panels of SVG, written by hand, readable on light and on dark."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

WIDTH, HEIGHT = 960, 300
TOP, BOTTOM = 78, 240

STYLE = """
  svg { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; }
  .paper { fill: #ffffff; } .ink { fill: #1f2328; } .soft { fill: #59636e; }
  .ours { fill: #0969da; } .reference { fill: #8250df; } .other { fill: #818b98; }
  .limit { stroke: #cf222e; stroke-width: 2; } .limit-text { fill: #cf222e; }
  .value { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; }
  .title { font-weight: 600; font-size: 15px; } .small { font-size: 11px; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; } .ink { fill: #e6edf3; } .soft { fill: #9198a1; }
    .ours { fill: #4493f8; } .reference { fill: #ab7df8; } .other { fill: #767e88; }
    .limit { stroke: #f85149; } .limit-text { fill: #f85149; } .value { stroke: #0d1117; }
  }
"""

# Of the scale of lateness, which is logarithmic: from half a millisecond.
LEAST_MS = 0.5


def draw(summary: dict[str, Any]) -> str:
    """Return an SVG: CPU a word and the lateness of words by candidate, at the highest number of streams."""
    level, candidates = list(summary["streams"].items())[-1]
    known = {name: figures for name, figures in candidates.items() if figures["cpu_us_per_word"]}
    limits = {target["name"].split(",")[0]: target["limit"] for target in summary["targets"]}
    cpu = {name: figures["cpu_us_per_word"]["median"] for name, figures in known.items()}
    late = {name: figures["late_p99_ms"]["median"] for name, figures in known.items()}
    labels = {
        name: summary["labels"][name] + (" *" if figures["saturated"] else "") for name, figures in known.items()
    }
    about = summary["machine"]
    foot = (
        f"{about['cpu']}, one core for the server; Linux {about['kernel']}, Python {about['python']},"
        f" {about['loop']}, Node {about['node']}, PostgreSQL {about['postgres']}; {about['date']},"
        f" {summary['plan']} run"
    )
    longest = max(late.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' role="img" aria-label="Server CPU a word and lateness of words, by candidate">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        text(24, 32, "Server CPU a word, microseconds", "ink title"),
        text(24, 52, f"{level} streams at once, a word every {summary['period_ms']:g} ms", "soft"),
        *bars(250, cpu, labels, lambda value: value / max(cpu.values())),
        text(520, 32, "Lateness of a word, p99, milliseconds", "ink title"),
        text(520, 52, "logarithmic; red: the target", "soft"),
        *bars(
            520,
            late,
            {},
            lambda value: math.log(max(value, LEAST_MS) / LEAST_MS) / math.log(max(longest, 10) / LEAST_MS),
            limits["lateness p99"],
        ),
        text(24, HEIGHT - 18, foot, "soft small"),
        "</svg>",
    ]
    if any(label.endswith("*") for label in labels.values()):
        parts.insert(-2, text(24, BOTTOM + 20, "* the core is full: several words a send, late", "soft small"))
    return "\n".join(parts) + "\n"


def bars(
    left: float,
    values: dict[str, float],
    labels: dict[str, str],
    part: Callable[[float], float],
    limit: float | None = None,
) -> list[str]:
    """Return a bar for each value, `part` of 200 long, in the order of the values' candidates."""
    parts, above = [], []
    step = (BOTTOM - TOP) / len(values)
    for place, (name, value) in enumerate(values.items()):
        y = TOP + place * step
        width = part(value) * 200
        if name in labels:
            parts.append(text(left - 8, y + step / 2 + 4, labels[name], "ink", anchor="end"))
        parts.append(
            f'<rect class="{kind(name)}" x="{left}" y="{y + step * 0.18:.1f}" width="{width:.1f}"'
            f' height="{step * 0.64:.1f}" rx="2"/>'
        )
        # The line of the limit may cross it.
        above.append(text(left + width + 6, y + step / 2 + 4, f"{value:.1f}", "ink value"))
    if limit is not None:
        x = left + part(limit) * 200
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{BOTTOM}"/>')
        parts.append(text(x, BOTTOM + 16, f"{limit:g}", "limit-text small", anchor="middle"))
    return parts + above


def kind(name: str) -> str:
    if name.startswith("ours"):
        return "ours"
    return "reference" if name == "bare" else "other"


def text(x: float, y: float, content: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
