"""The drawing of the results: two panels of SVG, written by hand, readable on light and on dark."""

from __future__ import annotations

import math
from html import escape
from typing import Any

WIDTH, HEIGHT = 960, 400
TOP, BOTTOM = 84, 330

# Milliseconds, p99, by the number of streams.
LATENESS_LIMITS = {1000: 5.0, 1500: 10.0}

STYLE = """
  svg { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; }
  .paper { fill: #ffffff; } .ink { fill: #1f2328; } .soft { fill: #59636e; } .rule { stroke: #d1d9e0; }
  .ours { fill: #0969da; stroke: #0969da; } .reference { fill: #8250df; stroke: #8250df; }
  .other { fill: #818b98; stroke: #818b98; }
  .limit { stroke: #cf222e; stroke-width: 2; }
  .limit-text { fill: #cf222e; paint-order: stroke; stroke: #ffffff; stroke-width: 4; }
  .title { font-weight: 600; font-size: 15px; } .small { font-size: 11px; } .line { fill: none; stroke-width: 2; }
  rect, text { stroke: none; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; } .ink { fill: #e6edf3; } .soft { fill: #9198a1; } .rule { stroke: #3d444d; }
    .ours { fill: #4493f8; stroke: #4493f8; } .reference { fill: #ab7df8; stroke: #ab7df8; }
    .other { fill: #767e88; stroke: #767e88; }
    .limit { stroke: #f85149; } .limit-text { fill: #f85149; stroke: #0d1117; }
    .line { fill: none; } rect, text { stroke: none; }
  }
"""


def draw(summary: dict[str, Any]) -> str:
    """Return an SVG: CPU per word by candidate, and lateness by the number of streams."""
    levels = summary["paced"]
    level = "1000" if "1000" in levels else next(iter(levels))
    about = summary["machine"]
    where = f"{about['cpu']}, one core for the server; Linux {about['kernel']}, Python {about['python']}"
    foot = (
        f"{where}, {about['loop']}, Node {about['node']}, PostgreSQL {about['postgres']};"
        f" {about['date']}, {summary['plan']} run"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' role="img" aria-label="Server CPU per word by candidate, and lateness by number of streams">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        *bars(summary, levels[level], int(level)),
        *curves(summary, levels),
        text(24, HEIGHT - 18, foot, "soft small"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def bars(summary: dict[str, Any], candidates: dict[str, Any], level: int) -> list[str]:
    left, right = 200, 400
    parts = [
        text(24, 36, "Server CPU per word, microseconds", "ink title"),
        text(24, 56, f"{level} streams at once, a word every 20 ms", "soft"),
    ]
    found = sorted((figures["cpu_us_per_word"]["median"], name) for name, figures in candidates.items())
    longest = max(value for value, _ in found)
    step = (BOTTOM - TOP) / len(found)
    for place, (value, name) in enumerate(found):
        y = TOP + place * step
        width = value / longest * (right - left)
        label = summary["labels"].get(name, name).replace(", each turn in PostgreSQL", " + PostgreSQL")
        # Words that go out several at once cost less each.
        mark = " *" if candidates[name]["saturated"] else ""
        parts += [
            text(left - 8, y + step / 2 + 4, label, "ink", anchor="end"),
            f'<rect class="{kind(name)}" x="{left}" y="{y + step * 0.18:.1f}" width="{width:.1f}"'
            f' height="{step * 0.64:.1f}" rx="2"/>',
            text(left + width + 6, y + step / 2 + 4, f"{value:.1f}{mark}", "ink"),
        ]
    if any(figures["saturated"] for figures in candidates.values()):
        parts.append(
            text(24, BOTTOM + 22, "* the core is full: words are late and go out several at once", "soft small")
        )
    return parts


def curves(summary: dict[str, Any], levels: dict[str, Any]) -> list[str]:
    left, right = 530, 800
    counts = [int(level) for level in levels]
    parts = [
        text(490, 36, "Lateness of a word, p99, milliseconds", "ink title"),
        text(490, 56, "by the number of streams at once", "soft"),
    ]
    low, high = 0.5, 2000.0

    def x_of(count: int) -> float:
        return left + (right - left) * (count / max(counts) if len(counts) > 1 else 0.5)

    def y_of(value: float) -> float:
        part = math.log(min(max(value, low), high) / low) / math.log(high / low)
        return BOTTOM - part * (BOTTOM - TOP)

    for tick in (1, 10, 100, 1000):
        y = y_of(tick)
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(left - 8, y + 4, f"{tick}", "soft small", anchor="end"))
    for count in counts:
        parts.append(text(x_of(count), BOTTOM + 18, f"{count}", "soft small", anchor="middle"))

    ends = []
    for name in dict.fromkeys(name for candidates in levels.values() for name in candidates):
        points = [
            (x_of(int(level)), y_of(candidates[name]["late_p99_ms"]["median"]))
            for level, candidates in levels.items()
            if name in candidates
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="{kind(name)} line" style="fill:none" points="{path}"/>')
        parts += [f'<circle class="{kind(name)}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
        label = summary["labels"].get(name, name)
        label = label.replace(", each turn in PostgreSQL", " + PG").replace(" + sse-starlette", "")
        ends.append((points[-1][1], points[-1][0], label))
    limits = [(x_of(count), y_of(limit)) for count, limit in LATENESS_LIMITS.items() if count in counts]
    parts += [f'<line class="limit" x1="{x - 9}" x2="{x + 9}" y1="{y:.1f}" y2="{y:.1f}"/>' for x, y in limits]
    if limits:
        x, y = limits[0]
        parts.append(text(x - 14, y + 4, "target", "limit-text small", anchor="end"))
    # Labels stand beside the lines' ends, pushed apart where they would cover each other.
    below = 0.0
    for y, x, label in sorted(ends):
        below = max(y + 4, below + 15)
        parts.append(text(right + 14, below, label, "ink small"))
        if x < right - 1 or abs(below - 4 - y) > 6:
            parts.append(
                f'<line class="rule" x1="{x + 5:.1f}" y1="{y:.1f}" x2="{right + 11}" y2="{below - 4:.1f}"/>'
            )
    return parts


def kind(name: str) -> str:
    if name.startswith("ours"):
        return "ours"
    return "reference" if name in ("bare", "floor") else "other"


def text(x: float, y: float, content: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
