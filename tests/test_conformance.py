"""Conformance: the clients that the documents show are whole, and what a client does wrong is said."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import tool
from test_readme import DOCUMENTS

from tests.conformance.__main__ import Outcome, chosen, fails, judge, junit, main
from tests.conformance.judge import (
    Evidence,
    Finding,
    Row,
    Run,
    Seen,
    last_line,
    more_than_the_reply,
    stray,
    verdict,
)
from tests.conformance.rig import MESSAGE, Rig, running, text_of
from tests.conformance.scenarios import FULL, GROUPS, QUICK, SCENARIOS, TEXT

ROOT = Path(__file__).parent.parent
CLIENTS = ROOT / "tests/conformance/clients"
PYTHON = [sys.executable]

WHOLE = text_of(TEXT)


def node() -> list[str]:
    return [tool("node", "nodejs")]


@pytest.fixture
async def rig(postgres_url: str) -> AsyncIterator[Rig]:
    async with running(postgres_url, QUICK) as rig:
        yield rig


def given_to_clients() -> list[str]:
    return re.findall(r'"(CHAT_\w+)"', (ROOT / "tests/conformance/rig.py").read_text())


# ---- Clients


@pytest.mark.parametrize(
    ("program", "client", "has_no"),
    [
        (lambda: PYTHON, "readme.py", {"acts/stop", "acts/early"}),
        (node, "readme.mjs", set()),
        (node, "sse.mjs", set()),
    ],
    ids=["web/README.md", "README.md", "web/sse.js"],
)
async def test_client_that_is_shown_survives_all(
    postgres_url: str, program: Callable[[], list[str]], client: str, has_no: set[str]
) -> None:
    # A few at a time: those that take longest are the last of the list, and so the first here.
    outcomes = await judge(postgres_url, [*program(), str(CLIENTS / client)], SCENARIOS[::-1], QUICK)
    said = {scenario.name: finding for scenario, finding, _ in outcomes if finding.verdict != "PASS"}
    no_stop = Finding("WEAK", "it did not stop the reply: no DELETE came")
    assert said == dict.fromkeys(has_no, no_stop)


# Takes the end of a stream for the end of the reply, has no key, and asks again whatever it was told.
NAIVE = """
import json, os, sys, urllib.request

def ask():
    body = {"message": os.environ["CHAT_MESSAGE"], "sim": os.environ["CHAT_SIM"]}
    headers = {"x-org-id": os.environ["CHAT_ORG"], "x-user-id": os.environ["CHAT_USER"]}
    headers["content-type"] = "application/json"
    url = os.environ["CHAT_URL"] + "/chat/stream"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=9) as stream:
        while data := stream.read1():
            for line in data.decode("latin-1").splitlines():
                if line.startswith("data: "):
                    sys.stdout.write(json.loads(line[6:]).get("token", ""))

try:
    ask()
except OSError:
    ask()
"""


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        (
            "node:internal\n  throw err;\nError: Cannot find module 'x.js'\n    at y\n\nNode.js v20.20.2\n",
            "Error: Cannot find module 'x.js'",
        ),
        ("Traceback\n  File x\nKeyError: 'CHAT_KEY'\n", "KeyError: 'CHAT_KEY'"),
    ],
)
def test_last_line_of_a_client_says_what_went_wrong(stderr: str, line: str) -> None:
    assert last_line(stderr) == line


async def test_naive_client_is_told_what_it_does_wrong(rig: Rig, tmp_path: Path) -> None:
    client = tmp_path / "naive.py"
    client.write_text(NAIVE)
    names = ("bytes/plain", "errors/401", "errors/429", "errors/failed", "cuts/answer", "cuts/done", "acts/again")
    scenarios = [scenario for name in names for scenario in chosen(name)]
    found = await asyncio.gather(*(rig.judge(scenario, [*PYTHON, str(client)]) for scenario in scenarios))
    said = {scenario.name: finding.why for scenario, finding in zip(scenarios, found, strict=True)}
    text = len(WHOLE)
    assert said.pop("errors/429").endswith(f" s, was told {QUICK.retry_after_s} s")
    assert said.pop("errors/401").startswith(
        "its exit code is 1, expected 0 or 3; its last line: 'urllib.error.HTTPError"
    )
    part = len(text_of("words=20"))
    assert said == {
        "bytes/plain": "",
        "errors/failed": f"it takes {part} of {text} characters for the whole",
        "cuts/answer": "it asked 2 questions, expected the one once",
        "cuts/done": "it takes the end of a stream for the end of the reply",
        "acts/again": "it asked 2 questions, expected the one once",
    }


# ---- The judge


def evidence(printed: str = WHOLE, code: int | None = 0, **more: Any) -> Evidence:
    """Return that of a client which asks, reads and ends well, but for what is given."""
    given = {
        "message": MESSAGE,
        "text": WHOLE,
        "stop_after": None,
        "retry_after_s": 2.0,
        "limit_s": 20.0,
        "runs": [Run(printed, code, "first\nlast\n\n", 10.0)],
        "seen": [asked(0.0)],
        "rows": [Row("user", MESSAGE, "complete"), Row("assistant", WHOLE, "complete")],
    }
    return Evidence(**given | more)


def asked(came_s: float, over_s: float = 1.0, status: int = 200) -> Seen:
    return Seen("POST", None, True, came_s, status, over_s)


def came(offset: int, status: int = 200) -> Seen:
    return Seen("GET", offset, False, 2.0, status, 3.0)


def deleted(came_s: float) -> Seen:
    return Seen("DELETE", None, False, came_s, 200, came_s)


HALF = WHOLE[:50]
# Two of the first 47 characters are of two bytes; of two UTF-16 units.
PLAIN = WHOLE.encode("ascii", "replace").decode()
ACCENTS, FACES = (PLAIN[:20] + 2 * char + PLAIN[22:] for char in "é🙂")
BYTES = len(ACCENTS.encode())
STOPPED = [Row("user", MESSAGE, "complete"), Row("assistant", HALF, "stopped")]


@pytest.mark.parametrize(
    ("scenario", "seen_so", "expected"),
    [
        ("bytes/plain", evidence(), ("PASS", "")),
        ("bytes/plain", evidence(HALF), ("FAIL", f"it takes 50 of {len(WHOLE)} characters for the whole")),
        ("bytes/plain", evidence(HALF, 3), ("WEAK", f"it gave up at 50 of {len(WHOLE)} characters")),
        (
            "bytes/plain",
            evidence(code=None),
            ("FAIL", f"it still ran after 20 s: it has all {len(WHOLE)} characters, and did not exit"),
        ),
        ("bytes/plain", evidence(HALF, None), ("FAIL", "it still ran after 20 s")),
        (
            "errors/401",
            evidence("", None, rows=[], seen=[asked(float(i), status=401) for i in range(10)]),
            ("FAIL", "it still ran after 20 s, and had asked again 9 times after the 401"),
        ),
        (
            "errors/401",
            evidence("", None, rows=[], seen=[asked(0.0, status=401), asked(1.0, status=401)]),
            ("FAIL", "it still ran after 20 s, and had asked again once after the 401"),
        ),
        (
            "cuts/often",
            evidence(HALF, None, rows=[Row("user", MESSAGE, "complete")] * 12, seen=[asked(0.0)] * 12),
            ("FAIL", "it still ran after 20 s, and had asked 12 questions, expected one"),
        ),
        (
            "cuts/often",
            evidence(HALF, None, seen=[asked(0.0)] * 12),
            ("FAIL", "it still ran after 20 s, and had sent the question 12 times"),
        ),
        (
            "cuts/often",
            evidence(HALF, None, seen=[asked(0.0), *[came(50)] * 7]),
            ("FAIL", "it still ran after 20 s, and had come back 7 times"),
        ),
        (
            "bytes/plain",
            evidence(seen=[replace(asked(0.0), stray="the question came without `sim`")]),
            ("FAIL", "the question came without `sim`"),
        ),
        # Its offset is of bytes, of UTF-16 units, is one too few, and is none.
        (
            "cuts/middle",
            evidence(ACCENTS[:47] + ACCENTS[49:], text=ACCENTS, seen=[asked(0.0), came(49)]),
            ("FAIL", "it came back with offset 49, and had 47 characters (49 are its UTF-8 bytes)"),
        ),
        (
            "cuts/astral",
            evidence(FACES[:47] + FACES[49:], text=FACES, seen=[asked(0.0), came(49)]),
            ("FAIL", "it came back with offset 49, and had 47 characters (49 are its UTF-16 units)"),
        ),
        (
            "cuts/middle",
            evidence(HALF + WHOLE[49:], seen=[asked(0.0), came(49)]),
            ("FAIL", "it came back with offset 49, and had 50 characters"),
        ),
        (
            "cuts/middle",
            evidence(HALF + WHOLE, seen=[asked(0.0), came(0)]),
            ("FAIL", "it came back with offset 0, and had 50 characters"),
        ),
        (
            "cuts/done",
            evidence(ACCENTS, 3, text=ACCENTS, seen=[asked(0.0), came(BYTES, 409)]),
            (
                "WEAK",
                f"it had all {len(ACCENTS)} characters, came back with offset {BYTES}, and was told 409"
                f" ({BYTES} are its UTF-8 bytes)",
            ),
        ),
        (
            "cuts/done",
            evidence(WHOLE, 3),
            ("WEAK", f"it had all {len(WHOLE)} characters, and said that it is not the whole"),
        ),
        (
            "cuts/middle",
            evidence(HALF, 3, seen=[asked(0.0), came(500, 409)]),
            ("WEAK", f"it had 50 of {len(WHOLE)} characters, came back with offset 500, and was told 409"),
        ),
        *(
            (
                scenario,
                evidence(WHOLE[:had] + WHOLE, seen=[asked(0.0), asked(2.0)]),
                (
                    "FAIL",
                    f"it began the reply anew at character {had}: "
                    "a stream asked for by its key starts at its start; "
                    f"come back with GET /chat/stream/{{id}}?offset={had}, or skip what it has",
                ),
            )
            for scenario, had in (("cuts/middle", 47), ("cuts/done", len(WHOLE)))
        ),
        (
            "cuts/middle",
            evidence(HALF + WHOLE, seen=[asked(0.0), asked(2.0)], rows=[Row("user", MESSAGE, "complete")] * 2),
            ("FAIL", None),
        ),
        (
            "bytes/plain",
            evidence(code=-11),
            ("FAIL", "its exit code is -11, expected 0 or 3; its last line: 'last'"),
        ),
        (
            "bytes/plain",
            evidence(HALF + "x" * 30, 3),
            ("FAIL", f"it shows what was not said, from character 50 on: {'x' * 20!r}, expected {WHOLE[50:70]!r}"),
        ),
        (
            "bytes/plain",
            evidence(WHOLE + WHOLE, 3),
            ("FAIL", f"it shows what was not said, from character {len(WHOLE)} on: {WHOLE[:20]!r}, expected ''"),
        ),
        ("bytes/plain", evidence(seen=[]), ("FAIL", "it asked nothing")),
        (
            "bytes/plain",
            evidence(rows=[Row("user", "Hi", "complete")]),
            ("FAIL", f"it asked 'Hi', expected {MESSAGE!r}"),
        ),
        ("time/dead", evidence(HALF, None), ("WEAK", "it still waited after 20 s")),
        ("time/dead", evidence(HALF + "x", None), ("FAIL", None)),
        ("errors/429", evidence(seen=[asked(0.0, status=429), asked(3.0, 4.0)]), ("PASS", "")),
        (
            "errors/429",
            evidence(seen=[asked(0.0, status=429), asked(2.5, 3.0)]),
            ("FAIL", "it asked again after 1.5 s, was told 2 s"),
        ),
        ("errors/429", evidence("", 3), ("WEAK", f"it gave up at 0 of {len(WHOLE)} characters")),
        ("errors/401", evidence("", 3, rows=[]), ("PASS", "")),
        (
            "errors/401",
            evidence("", 3, rows=[], seen=[asked(0.0), asked(1.0)]),
            ("FAIL", "it sent the question 2 times, expected once"),
        ),
        ("errors/failed", evidence(HALF, 3, rows=STOPPED), ("PASS", "")),
        ("errors/failed", evidence("", 3, rows=STOPPED), ("FAIL", "it shows 0 of the 50 characters that came")),
        ("cuts/middle", evidence(seen=[asked(0.0), came(50)]), ("PASS", "")),
        ("cuts/middle", evidence(seen=[asked(0.0), came(0)]), ("WEAK", None)),
        ("cuts/middle", evidence(seen=[asked(0.0), asked(2.0)]), ("WEAK", None)),
        ("cuts/done", evidence(), ("FAIL", "it takes the end of a stream for the end of the reply")),
        ("cuts/beyond", evidence(HALF + HALF, 3), ("PASS", "")),
        ("cuts/beyond", evidence(HALF + HALF, 0), ("FAIL", None)),
        (
            "acts/stop",
            evidence(HALF, 3, rows=STOPPED, stop_after=50, seen=[asked(0.0), deleted(9.0)]),
            ("PASS", ""),
        ),
        (
            "acts/stop",
            evidence(WHOLE[:175], 3, rows=STOPPED, stop_after=20, seen=[asked(0.0), deleted(9.0)]),
            ("WEAK", "it stopped at 175 characters, was to at 20"),
        ),
        ("acts/stop", evidence(), ("WEAK", "it did not stop the reply: no DELETE came")),
        (
            "acts/stop",
            evidence(seen=[asked(0.0), deleted(9.0)]),
            ("WEAK", "its Stop came too late: the reply is complete"),
        ),
        (
            "acts/stop",
            evidence(HALF, 3, rows=STOPPED, stop_after=51, seen=[asked(0.0), deleted(9.0)]),
            ("FAIL", "it shows 50 characters, and stopped at 51"),
        ),
        (
            "acts/stop",
            evidence(HALF, 3, rows=STOPPED, stop_after=50, seen=[asked(0.0), deleted(4.0)]),
            ("FAIL", "it went on for 6.0 s after Stop"),
        ),
        (
            "acts/early",
            evidence("", 3, rows=STOPPED, stop_after=0, seen=[asked(0.0), deleted(9.0)]),
            ("FAIL", "it stopped 9.0 s after it was to"),
        ),
    ],
)
def test_verdict(scenario: str, seen_so: Evidence, expected: tuple[str, str | None]) -> None:
    [found] = chosen(scenario)
    worst, why = verdict(seen_so, found.checks)
    assert (worst, why if expected[1] is not None else None) == expected


TOLD = {
    "CHAT_MESSAGE": "Hi",
    "CHAT_SIM": "fin@20",
    "CHAT_ORG": "an org",
    "CHAT_USER": "a user",
    "CHAT_KEY": "a key",
}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, None),
        ({"CHAT_KEY": None}, None),
        (
            {"CHAT_SIM": None},
            "the question came without `sim`, expected CHAT_SIM in the body, or the URL of GET",
        ),
        (
            {"CHAT_USER": None},
            "the question came without `x-user-id`, expected CHAT_USER in a header, or userId in the URL",
        ),
        ({"CHAT_MESSAGE": "Ho"}, "the question came with `message` 'Ho', expected CHAT_MESSAGE: 'Hi'"),
        ({"CHAT_ORG": "none"}, "the question came with `x-org-id` 'none', expected CHAT_ORG: 'an org'"),
        ({"CHAT_KEY": "mine"}, "the question came with `idempotency-key` 'mine', expected CHAT_KEY: 'a key'"),
    ],
)
def test_question_that_is_not_as_its_client_was_told(other: dict[str, str | None], expected: str | None) -> None:
    assert stray({**TOLD, **other}, TOLD) == expected


def test_more_than_the_reply_is_no_part_of_it() -> None:
    assert more_than_the_reply("got You", "You said") == (
        "stdout is for the reply alone, from character 0 on: 'got You', expected 'You said'"
    )
    for printed in ("You said", "You sad", "said", "", "You saidYou said"):
        assert more_than_the_reply(printed, "You said") is None


def test_scenarios_are_of_the_groups_and_named_once() -> None:
    assert list(dict.fromkeys(scenario.group for scenario in SCENARIOS)) == list(GROUPS)
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    assert FULL.long_s == 20


def test_scenarios_are_those_of_the_document() -> None:
    part = DOCUMENTS["tests/README.md"].split("\n## Conformance of a client\n")[1].split("\n## ")[0]
    assert f"of {len(SCENARIOS)} scenarios" in part
    assert re.findall(r"^\| `([a-z]+)` \|", part, re.MULTILINE) == list(GROUPS)
    assert set(re.findall(r"`(CHAT_\w+)`", part)) == set(given_to_clients())


def test_cut_after_characters_of_two_utf_16_units_is_after_some() -> None:
    # White space is an event of its own: 40 of them are 20 words.
    assert max(text_of("text=unicode words=20")) > "\uffff"


# ---- The command


def test_command_says_pass_and_weak_a_line_each_and_writes_junit(
    postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a client without Stop the whole reply is awaited.
    short = [replace(scenario, sim=TEXT) if scenario.name == "acts/stop" else scenario for scenario in SCENARIOS]
    monkeypatch.setattr("tests.conformance.__main__.SCENARIOS", short)
    client, file = shlex.join([*PYTHON, str(CLIENTS / "readme.py")]), tmp_path / "junit.xml"
    args = ("--quick", "--only=bytes/bom acts/stop", f"--junit={file}", f"--database={postgres_url}", client)
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert err == ""
    one, other, summary = out.splitlines()
    assert re.fullmatch(r"PASS  bytes/bom +\d+\.\d s  a byte order mark comes first", one)
    assert other.startswith("WEAK  acts/stop ")
    assert other.endswith(" Stop in the middle: it did not stop the reply: no DELETE came")
    assert summary == "1 of 2 passed, 1 weak, 0 failed"
    suite = ET.parse(file).getroot()
    assert [suite.get(name) for name in ("name", "tests", "failures", "skipped")] == [client, "2", "0", "1"]
    assert [(case.get("name"), len(case)) for case in suite] == [("bytes/bom", 0), ("acts/stop", 1)]


def test_weak_counts_as_failed_where_that_is_asked_for() -> None:
    [stop] = chosen("acts/stop")
    outcome = Outcome(stop, Finding("WEAK", "no <DELETE> came"), 1.5)
    for strict, tag in ((False, "skipped"), (True, "failure")):
        assert fails(outcome, strict) is strict
        [case] = ET.fromstring(junit([outcome], "node client.js", strict))
        assert [(found.tag, found.get("message")) for found in case] == [(tag, "no <DELETE> came")]


def test_client_that_is_none_is_told_in_a_line(
    postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mute = tmp_path / "mute.py"
    mute.write_text(NAIVE.replace("sys.stdout.write", "str"))
    simless = tmp_path / "simless.py"
    simless.write_text(NAIVE.replace(', "sim": os.environ["CHAT_SIM"]', ""))
    talkative = tmp_path / "talkative.py"
    talkative.write_text(NAIVE.replace("sys.stdout.write(", 'print("got", '))
    no_line = tmp_path / "no_line"
    no_line.write_text("true")
    no_line.chmod(0o755)
    for client, said in (
        (
            "no-such-program",
            "the client is 'no-such-program', expected a command: there is no program of that name",
        ),
        ("", "there is no client, expected a command, as make conformance CLIENT='node client.js' gives it"),
        ("node 'client.js", 'the client is "node \'client.js", expected a command: No closing quotation'),
        ("true", "the client sent no request to CHAT_URL; its exit code is 0, "),
        (
            shlex.join([*PYTHON, str(mute)]),
            "the client printed nothing, expected the reply; it was answered [200], ",
        ),
        (
            shlex.join([*PYTHON, str(simless)]),
            "the question came without `sim`, expected CHAT_SIM in the body, or the URL of GET\n",
        ),
        (shlex.join([*PYTHON, str(talkative)]), "stdout is for the reply alone, from character 0 on: 'got "),
        (str(mute), f"the client is '{mute}', expected a command: the file {mute} is not executable\n"),
        (
            str(no_line),
            "the client does not start: Exec format error; has it a first line like #!/bin/sh?\n",
        ),
    ):
        assert main([f"--database={postgres_url}", "--quick", client]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(said)
        assert err.count("\n") == 1
    assert main(["--only=cut", "true"]) == 2
    assert capsys.readouterr().err.startswith(
        f"--only names 'cut', expected some of: {', '.join(GROUPS)}, bytes/plain"
    )


def test_help_names_what_a_client_is_given() -> None:
    command = [*PYTHON, "-m", "tests.conformance", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    assert set(re.findall(r"\bCHAT_\w+", shown)) == set(given_to_clients())
