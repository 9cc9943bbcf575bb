"""Example clients of libraries that people have, through conformance: with `make faults`.

Needs Node and npm (Debian: apt-get install nodejs npm), and npm's registry.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from ledger import FULL
from test_network import node_with
from test_readme import table

from tests.conformance.__main__ import judge
from tests.conformance.scenarios import QUICK, SCENARIOS

CLIENTS = Path(__file__).parents[1] / "conformance/clients"

pytestmark = [
    pytest.mark.skipif(not FULL, reason="LEFT OUT: other people's clients, which `make faults` installs"),
    pytest.mark.timeout(180),
]


@pytest.fixture(scope="module")
def node() -> str:
    """Node, with the libraries of the example clients."""
    return node_with(CLIENTS)


def clients() -> list[tuple[str, str, str]]:
    """Return the file of each client that is listed, how many scenarios it passes, and which it does not."""
    rows = table("tests/README.md", "Conformance of a client")
    found = [(re.search(r"\(conformance/clients/([\w.-]+)\)", row[0]), row) for row in rows]
    return [(match[1], row[1], row[2]) for match, row in found if match]


def test_each_client_is_listed() -> None:
    files = {path.name for path in CLIENTS.iterdir() if path.suffix in (".py", ".mjs")}
    assert {file for file, _, _ in clients()} == files


@pytest.mark.parametrize(("file", "passed", "others"), clients(), ids=[file for file, _, _ in clients()])
async def test_client_does_as_listed(node: str, database: str, file: str, passed: str, others: str) -> None:
    program = sys.executable if file.endswith(".py") else node
    outcomes = await judge(database, [program, str(CLIENTS / file)], SCENARIOS, QUICK)
    said = {scenario.name: finding.why for scenario, finding, _ in outcomes if finding.verdict != "PASS"}
    listed = set(re.findall(r"`(\w+/\w+)`", others))
    assert (set(said), f"{len(SCENARIOS) - len(said)} of {len(SCENARIOS)}") == (listed, passed), said
