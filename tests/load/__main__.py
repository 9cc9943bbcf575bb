"""`python -m tests.load URL`: keeps streams under way at a server, and says how long their words take.

What stands before a server costs is what `--against` gives: every other stream then goes to a second address.

Where to read on: `plan.py` for what is asked, `generators.py` for who asks (`streams.c`, `streams.py`),
`asides.py` for what is asked once beside them, `figures.py` and `drawing.py` for what comes out, `soak.py` for the
same with faults.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .asides import REFUSALS, check_reachable, refusal_of_all
from .drawing import draw
from .figures import Figures, Tick, failure_lines, table, together
from .generators import Generator, choose, raise_descriptors, run
from .plan import LoadError, Plan, Target

# The demo user, whom SEED_DEMO=1 puts in the database.
DEMO = {
    "x-org-id": "00000000-0000-0000-0000-000000000001",
    "x-user-id": "00000000-0000-0000-0000-000000000002",
}

# A new line of progress, where it is no terminal.
LINE_EVERY_S = 10.0

# From that share of a core on a generator measures itself.
BUSY = 0.7


class Progress:
    """What has come so far: told once a second on a terminal, in one line that is rewritten."""

    def __init__(self, plan: Plan) -> None:
        self.figures = [Figures() for _ in plan.targets]
        self.cpu_s = 0.0
        self._began_s = self._told_s = time.monotonic()
        self.elapsed_s = 0.0
        self._seconds = plan.seconds
        self._rewrites = sys.stderr.isatty()

    def tell(self, tick: Tick) -> None:
        for figures, later in zip(self.figures, tick.figures, strict=True):
            figures.update(later)
        self.cpu_s = tick.cpu_s
        now_s = time.monotonic()
        self.elapsed_s = now_s - self._began_s
        if self._rewrites or now_s - self._told_s >= LINE_EVERY_S:
            self._told_s = now_s
            line = self.line(together(tick.figures), self.elapsed_s)
            # From the beginning of the line, and none of what stood there is left.
            print(f"\r{line}\x1b[K" if self._rewrites else f"{line}\n", end="", file=sys.stderr, flush=True)

    def line(self, last: Figures, elapsed_s: float) -> str:
        """Return a line of the last second's figures, and the whole run's failures."""
        total = together(self.figures)
        first, gap = last.first.at(0.5)[0], last.gaps.at(0.99)[0]
        return (
            f"{clock(elapsed_s)} of {clock(self._seconds)}  {last.open} streams  {total.replies:,} replies"
            f"  {last.words:,} words/s  first token p50 {first:.0f} ms  gap p99 {gap:.0f} ms"
            f"  failed {total.failures.total():,}"
        )

    def end(self) -> None:
        if self._rewrites:
            print(file=sys.stderr)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def main() -> int:
    options = parse(sys.argv[1:])
    urls = [options.url, *([options.against] if options.against else [])]
    plan = Plan(
        options.streams,
        options.minutes * 60,
        min(5.0, options.minutes * 60 / 10),
        [Target.parse(url) for url in urls],
        users(options.header, options.users),
        {"message": options.message} | ({"sim": options.sim} if options.sim else {}),
    )
    if plan.streams < len(plan.targets):
        raise LoadError(f"--streams is {plan.streams}, expected one for each address at least")
    check_writable(options.svg)
    raise_descriptors(plan.streams + 64)
    name, generator = choose(plan, python=options.python)
    progress = Progress(plan)
    asyncio.run(until_stopped(plan, generator, progress))
    progress.end()
    return report(plan, name, progress, options.svg)


def check_writable(file: Path | None) -> None:
    """Find out now, and not after a long run."""
    try:
        if file is not None:
            file.touch()
    except OSError as exc:
        raise LoadError(f"{file}: {exc.strerror}") from None


async def until_stopped(plan: Plan, generator: Generator, progress: Progress) -> None:
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await check_reachable(plan.targets)
    asked: dict[int, asyncio.Task[None]] = {}
    refusals: list[str] = []

    async def ask_why(target: Target) -> None:
        if why := await refusal_of_all(plan, target):
            refusals.append(why)
            stopped.set()

    def told(tick: Tick) -> None:
        progress.tell(tick)
        for number, figures in enumerate(progress.figures):
            if number not in asked and is_refused(figures):
                asked[number] = asyncio.create_task(ask_why(plan.targets[number]))

    await run(plan, generator, stopped, told)
    await asyncio.gather(*asked.values())
    if refusals:
        progress.end()
        raise LoadError(refusals[0])


def is_refused(figures: Figures) -> bool:
    """Say whether nothing has come but refusals that the next question may get as well."""
    kinds = {(kind[:3], kind.endswith("Simulated")) for kind in figures.failures}
    return bool(kinds) and kinds <= {(str(status), False) for status in REFUSALS} and not figures.words


def report(plan: Plan, name: str, progress: Progress, svg: Path | None) -> int:
    """Print what was measured; return the exit code."""
    labels, seconds = names(plan.targets), progress.elapsed_s
    total, busy = together(progress.figures), progress.cpu_s / max(seconds, 0.001)
    title = f"{plan.streams:,} streams for {seconds:.0f} s: {total.replies:,} replies, {total.words:,} words"
    failed = failure_lines(labels, progress.figures)
    print(title)
    print(f"generator in {name}, {busy:.0%} of a core")
    if busy > BUSY:
        print("-> the generator is near its own limit, and its delay is in the figures: ask for fewer streams")
    print("\n".join([*table(labels, progress.figures), *failed]))
    if not total.words:
        print("-> not a word came")
    if svg:
        svg.write_text(draw(title, labels, progress.figures, failed))
    return 1 if total.failures or not total.words else 0


def names(targets: Sequence[Target]) -> list[str]:
    all_names = [str(target) for target in targets]
    if len(all_names) == 2 and all_names[0] == all_names[1]:
        return [f"{place} {name}" for place, name in zip(("first", "second"), all_names, strict=True)]
    return all_names


def parse(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load", description="Put streams on a server, and time them."
    )
    parser.add_argument(
        "url", metavar="URL", help="of the server, as in http://127.0.0.1:3000; asked is nothing else"
    )
    parser.add_argument("--streams", type=number, default=20, help="under way at once (20)")
    parser.add_argument("--minutes", type=minutes, default=1.0, help="how long, 0.1 for instance (1)")
    parser.add_argument("--against", metavar="URL2", help="every other stream goes there: what is between, costs")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the percentiles")
    parser.add_argument(
        "--header", action="append", default=[], type=header, metavar="'NAME: VALUE'",
        help="of each question, may be repeated; with none, the demo user asks",
    )  # fmt: skip
    parser.add_argument("--users", type=Path, metavar="FILE", help="a header a line, 'x-user-id: …': each a user")
    parser.add_argument("--message", default="tell a story", help="what is asked (tell a story)")
    parser.add_argument("--sim", metavar="KNOBS", help="of a server with SIM_FAULTS=1, as in 'gap=20ms words=200'")
    parser.add_argument("--python", action="store_true", help="ask in Python, though there is a C compiler")
    return parser.parse_args(given)


def number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 60_000:
        raise argparse.ArgumentTypeError(f"{text}, expected a number from 1 to 60000")
    return int(text)


def minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 10_080:
        raise argparse.ArgumentTypeError(f"{text}, expected minutes, above 0 and at most a week")
    return value


def header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isprintable() or not text.isascii():
        raise argparse.ArgumentTypeError("one is no header, expected 'NAME: VALUE' in ASCII")
    return name.strip().lower(), value.strip()


def users(common: Sequence[tuple[str, str]], file: Path | None) -> list[Mapping[str, str]]:
    """Return the headers of each user."""
    if file is None:
        return [dict(common) or DEMO]
    try:
        lines = [header(line) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError, argparse.ArgumentTypeError) as exc:
        raise LoadError(f"{file}: {exc}") from None
    if not lines:
        raise LoadError(f"{file} is empty, expected a header a line")
    base = dict(common) or {"x-org-id": DEMO["x-org-id"]}
    return [{**base, name: value} for name, value in lines]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LoadError as exc:
        print(f"load: {exc}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
