"""The bench starts, and each of its figures comes out; what they are is for `make bench` to tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that no other test run closes to PostgreSQL's user, as pytest does with its own."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


def bench(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.bench"],
        cwd=ROOT,
        env=os.environ | {"SMOKE": "1", "BENCH_BUILD": str(folder)} | environ,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the bench reads /proc and pins processes")
def test_bench_gives_every_figure(folder: Path) -> None:
    ran = bench(folder)
    assert ran.returncode == 0, ran.stderr
    summary = json.loads((folder / "results.json").read_text())
    targets = {target["name"]: target["value"]["min"] for target in summary["targets"]}
    assert len(targets) == 7
    assert all(value > 0 for value in targets.values()), targets
    for candidate in ("ours", "ours-pull", "bare"):
        assert summary["streams"]["30"][candidate]["cpu_us_per_word"]["median"] > 0
    assert summary["first_word"]["4"]["ours"]["first_word_ms"]["median"] > 0
    assert summary["turns"]["10"]["ours"]["cpu_us_per_turn"]["median"] > 0
    assert {"turn_open, a new chat", "turn_close, a new chat"} <= set(summary["growth"]["statements"])
    table = (folder / "results.txt").read_text()
    assert table == ran.stdout
    assert all(name in table for name in targets)
    assert ElementTree.parse(folder / "results.svg").getroot().tag.endswith("svg")


@pytest.mark.skipif(sys.platform != "linux", reason="the bench reads /proc and pins processes")
def test_bench_without_a_compiler_says_what_to_install(folder: Path) -> None:
    ran = bench(folder, PATH=str(folder))
    assert ran.returncode == 1
    assert ran.stderr == "bench: cc is missing: install a C compiler (Debian: apt-get install gcc libc6-dev)\n"
