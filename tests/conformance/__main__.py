"""`python -m tests.conformance 'node client.js'`: whether a client survives what networks do to its streams."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from app.storage.embedded import postgres
from app.storage.migrate import migrate

from .judge import Finding, last_line, more_than_the_reply
from .rig import AT_ONCE, Rig, running
from .scenarios import FULL, GROUPS, QUICK, SCENARIOS, Pace, Scenario

HELP = """\
The client is run once for each scenario (in some twice, with the same key). Its environment says what to do:

  CHAT_URL         the server; POST $CHAT_URL/chat/stream, or GET for EventSource
  CHAT_MESSAGE     the question
  CHAT_SIM         goes with it as `sim`: in the body, or the URL of GET
  CHAT_ORG         the header x-org-id, or orgId in the URL
  CHAT_USER        the header x-user-id, or userId in the URL
  CHAT_KEY         the header idempotency-key
  CHAT_STOP_AFTER  if it is set: the user presses Stop (DELETE) once so many characters are seen; 0: at once
  CHAT_SILENCE_S   a connection on which not even a byte comes for so long, in seconds, is dead

It prints the text of the reply, all that it has and nothing else (a newline at the end is allowed), and exits
with 0 if the reply is complete, or with 3 if it noticed that it is not: an error, a refusal, Stop. Any other exit
code is a FAIL, which shows the last line of stderr; else stderr is ignored.

PASS: as a user expects. WEAK: what it shows is right, and it says that it is not the whole; others go on here.
FAIL: it shows what was not said, takes a part for the whole, asks twice, or does not end. The exit code is 1 where
there is a FAIL (with --strict: or a WEAK), and 2 where the client cannot be run."""


class Outcome(NamedTuple):
    scenario: Scenario
    finding: Finding
    took_s: float


class NoClient(Exception):
    """Says in one line why there is nothing to judge."""


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Tell whether a chat client survives what networks, proxies and models do to its streams.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("client", help="its command, as one argument: 'node client.js'")
    parser.add_argument("--only", default="", metavar="NAMES", help=f"{', '.join(GROUPS)}, or acts/stop")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="waits are short: for clients that go by CHAT_SILENCE_S, on a machine that is not busy",
    )
    parser.add_argument("--strict", action="store_true", help="WEAK counts as FAIL")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML, too")
    parser.add_argument("--database", metavar="URL", help="a database to use; else one is made, and deleted")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    options = parse(args)
    # The server's, of what is done to it on purpose.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        command, scenarios = command_of(options.client), chosen(options.only)
        with database(options.database) as url:
            outcomes = asyncio.run(judge(url, command, scenarios, QUICK if options.quick else FULL))
    except NoClient as exc:
        print(exc, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    report(outcomes)
    if options.junit:
        options.junit.write_text(junit(outcomes, options.client, options.strict), "utf-8")
    return int(any(fails(outcome, options.strict) for outcome in outcomes))


def command_of(client: str) -> list[str]:
    try:
        command = shlex.split(client)
    except ValueError as exc:
        raise NoClient(f"the client is {client!r}, expected a command: {exc}") from None
    if not command:
        raise NoClient(
            "there is no client, expected a command, as make conformance CLIENT='node client.js' gives it"
        )
    if shutil.which(command[0]) is None:
        why = "there is no program of that name"
        if Path(command[0]).is_file():
            runs = os.access(command[0], os.X_OK)
            why = f"it is ./{command[0]}" if runs else f"the file {command[0]} is not executable"
        raise NoClient(f"the client is {client!r}, expected a command: {why}")
    return command


def chosen(only: str) -> list[Scenario]:
    names = set(only.replace(",", " ").split())
    known = [*GROUPS, *(scenario.name for scenario in SCENARIOS)]
    for name in names.difference(known):
        raise NoClient(f"--only names {name!r}, expected some of: {', '.join(known)}")
    return [scenario for scenario in SCENARIOS if not names or names & {scenario.group, scenario.name}]


@contextmanager
def database(url: str | None) -> Iterator[str]:
    if url is not None:
        migrate(url, timeout_s=10)
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder, postgres(Path(folder) / "data") as own:
        migrate(own, timeout_s=10)
        yield own


async def judge(url: str, command: Sequence[str], scenarios: Sequence[Scenario], pace: Pace) -> list[Outcome]:
    """Return what is to be said about each scenario, in their order.

    Raises:
        NoClient: the command is none that asks.
    """
    async with running(url, pace) as rig:
        await try_out(rig, command)
        gate, progress = asyncio.Semaphore(AT_ONCE), Progress(len(scenarios))

        async def run(scenario: Scenario) -> Outcome:
            async with gate:
                began_s = time.monotonic()
                with progress.of(scenario):
                    finding = await rig.judge(scenario, command)
                return Outcome(scenario, finding, time.monotonic() - began_s)

        return await asyncio.gather(*map(run, scenarios))


async def try_out(rig: Rig, command: Sequence[str]) -> None:
    """Ask once, with nothing done to the stream: who fails here is no client yet."""
    [plain] = chosen("bytes/plain")
    try:
        evidence = await rig.run(plain, command)
    except OSError as exc:
        raise NoClient(f"the client does not start: {exc.strerror}; has it a first line like #!/bin/sh?") from None
    [run] = evidence.runs
    said = f"its exit code is {run.code}, its last line {last_line(run.stderr or run.printed)!r}"
    if not evidence.seen:
        raise NoClient(f"the client sent no request to CHAT_URL; {said}")
    if strays := [seen.stray for seen in evidence.seen if seen.stray]:
        raise NoClient(strays[0])
    if not run.printed:
        statuses = [seen.status for seen in evidence.seen]
        raise NoClient(f"the client printed nothing, expected the reply; it was answered {statuses}, and {said}")
    if more := more_than_the_reply(run.printed, evidence.text):
        raise NoClient(more)


class Progress:
    """A line on a terminal, of how many are over and which run."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._over = 0
        self._running: list[str] = []

    @contextmanager
    def of(self, scenario: Scenario) -> Iterator[None]:
        self._running.append(scenario.name)
        self._show()
        yield
        self._running.remove(scenario.name)
        self._over += 1
        self._show()

    def _show(self) -> None:
        if not sys.stderr.isatty():
            return
        width = 30
        bar = ("#" * (width * self._over // self._total)).ljust(width, ".")
        line = f"[{bar}] {self._over}/{self._total} {' '.join(self._running)}"
        room = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{line[:room] if self._running else ''}")
        sys.stderr.flush()


def report(outcomes: Sequence[Outcome]) -> None:
    for scenario, finding, took_s in outcomes:
        why = f": {finding.why}" if finding.why else ""
        print(f"{finding.verdict}  {scenario.name:13} {took_s:5.1f} s  {scenario.what}{why}")
    counts = Counter(outcome.finding.verdict for outcome in outcomes)
    print(f"{counts['PASS']} of {len(outcomes)} passed, {counts['WEAK']} weak, {counts['FAIL']} failed")


def fails(outcome: Outcome, strict: bool) -> bool:
    return outcome.finding.verdict == "FAIL" or (strict and outcome.finding.verdict == "WEAK")


def junit(outcomes: Sequence[Outcome], client: str, strict: bool) -> str:
    """Return JUnit XML; WEAK is `skipped`, unless it counts as FAIL."""
    failures = [outcome for outcome in outcomes if fails(outcome, strict)]
    weak = [outcome for outcome in outcomes if outcome.finding.verdict == "WEAK" and not strict]
    suite = ET.Element(
        "testsuite",
        name=client,
        tests=str(len(outcomes)),
        failures=str(len(failures)),
        skipped=str(len(weak)),
        errors="0",
        time=f"{sum(outcome.took_s for outcome in outcomes):.3f}",
    )
    for outcome in outcomes:
        scenario, finding, took_s = outcome
        case = ET.SubElement(suite, "testcase", classname=scenario.group, name=scenario.name, time=f"{took_s:.3f}")
        if finding.verdict != "PASS":
            ET.SubElement(case, "failure" if fails(outcome, strict) else "skipped", message=finding.why)
    return str(ET.tostring(suite, encoding="unicode", xml_declaration=True))


if __name__ == "__main__":
    sys.exit(main())
