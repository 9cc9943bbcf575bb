"""The statements in `sql/`, and what their headers say of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from psycopg2.extensions import adapt

from app.errors import StartError

Value = TypeVar("Value")

Constants = Mapping[str, bool | int | Decimal]

SQL = Path(__file__).parents[2] / "sql"

PARAMETER = re.compile(r"%\((\w+)\)s")

# A field of a header goes on in the lines that are indented. A remark is for people.
FIELD = re.compile(r"^-- (\w+): +(.+(?:\n--  +.+)*)", re.MULTILINE)
REMARK = re.compile(r"\([^()]*\)")

# What `returns` begins with, and what a method makes of the rows.
RETURNS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "a row": lambda rows: rows[0],
    "a row or none": lambda rows: rows[0] if rows else None,
    "rows": lambda rows: rows,
    "nothing": lambda rows: None,
}
REPEAT = {"yes": True, "no": False}
ON = {"any connection": False, "the guard's connection": True}


class Statement(NamedTuple):
    name: str
    # The SQL that makes it known to a connection: parsed once, and planned once.
    prepare: str
    # The SQL that runs it, with psycopg2's placeholders for what it takes.
    execute: str
    # What each call gives, in the order of its first use in the text.
    takes: tuple[str, ...]
    result: Callable[[Sequence[Any]], Any]
    # It may be sent again where its connection turned out to be dead after it was sent.
    repeatable: bool
    on_guard: bool


def load(constants: Constants) -> dict[str, Statement]:
    """Return the statements by name.

    Raises:
        StartError: a header does not say what it should.
        TypeError: no statement takes one of the constants.
    """
    statements, unused = {}, set(constants)
    for path in sorted(SQL.glob("*.sql")):
        text = path.read_text("utf-8")
        unused -= set(PARAMETER.findall(text))
        try:
            statements[path.stem] = parse(path.stem, text, constants)
        except ValueError as exc:
            raise StartError(f"sql/{path.name}: {exc}") from None
    if unused:
        raise TypeError(f"constants are {listed(constants)}, no statement takes {listed(sorted(unused))}")
    return statements


def parse(name: str, text: str, constants: Constants) -> Statement:
    """Return what a file says.

    Raises:
        ValueError: its header does not say what it should.
    """
    header = "\n".join(takewhile(lambda line: line.startswith("--"), text.splitlines()))
    names = [field for field, _ in FIELD.findall(header)]
    if sorted(name for name in names if name != "on") != ["repeat", "returns", "takes"]:
        raise ValueError(f"the header has {listed(names)}, expected takes, returns, repeat, and at most on")
    fields = {field: re.sub(r"\n--  +", " ", value) for field, value in FIELD.findall(header)}
    takes = [word.strip() for word in REMARK.sub("", fields["takes"]).split(",")]
    parameters = tuple(dict.fromkeys(PARAMETER.findall(text)))
    if sorted(takes) != sorted(parameters or ["nothing"]):
        raise ValueError(f"takes is {listed(takes)}, expected {listed(parameters)}, which the text uses")
    numbers = {key: f"${i}" for i, key in enumerate(parameters, 1)}
    # Constants are literals here, because psycopg2 takes 1 to 2 us to adapt a value; the plan is for any.
    arguments = ", ".join(
        adapt(constants[key]).getquoted().decode() if key in constants else "%s" for key in parameters
    )
    return Statement(
        name,
        prepare=f"prepare {name} as\n" + PARAMETER.sub(lambda match: numbers[match[1]], text),
        execute=f"execute {name}({arguments})" if arguments else f"execute {name}",
        takes=tuple(key for key in parameters if key not in constants),
        # The form ends where its columns, or more words for people, begin.
        result=choose("returns", re.split(r" \(|[,;]", fields["returns"])[0], RETURNS),
        repeatable=choose("repeat", fields["repeat"], REPEAT),
        on_guard=choose("on", fields.get("on", "any connection"), ON),
    )


def choose(field: str, given: str, choices: Mapping[str, Value]) -> Value:
    if given not in choices:
        raise ValueError(f"{field} is {given!r}, expected {' or '.join(map(repr, choices))}")
    return choices[given]


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
