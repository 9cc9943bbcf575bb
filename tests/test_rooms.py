"""The architecture: how large a room may be, and who may know of whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parent.parent / "app"
ROOMS = sorted(APP.rglob("*.py"))

FILE_LINES = 300
LINES = {ast.ClassDef: 150, ast.FunctionDef: 40, ast.AsyncFunctionDef: 40}

# What each folder may use of the others.
BELOW = {
    "api": {"replies", "models", "storage"},
    "replies": {"models", "storage"},
    "models": set(),
    "storage": set(),
}


def name(room: Path) -> str:
    return ".".join(room.relative_to(APP.parent).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name(room) for room in ROOMS}


def used(room: Path) -> Iterator[str]:
    """Yield the rooms that a room imports, wherever in it."""
    for node in ast.walk(ast.parse(room.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NAMES)
        elif isinstance(node, ast.ImportFrom) and node.module in NAMES:
            # Either a room of that folder, or something in its __init__.
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (room if room in NAMES else node.module for room in inside)


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_room_is_no_larger_than_one_reads_at_a_time(room: Path) -> None:
    text = room.read_text()
    sizes = {name(room): (len(text.splitlines()), FILE_LINES)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            sizes[node.name] = (node.end_lineno - node.lineno + 1, LINES[type(node)])
    assert {what: size for what, size in sizes.items() if size[0] > size[1]} == {}


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_room_uses_only_what_is_below_it(room: Path) -> None:
    folder, *_ = room.relative_to(APP).parts
    above = set(BELOW) - BELOW.get(folder, set(BELOW)) - {folder}
    assert [other for other in used(room) if other.split(".")[1:2] and other.split(".")[1] in above] == []


def test_no_two_rooms_use_each_other() -> None:
    # Raises CycleError, with the circle.
    assert set(TopologicalSorter({name(room): set(used(room)) for room in ROOMS}).static_order()) == NAMES
