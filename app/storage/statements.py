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
    text: str
    # In the order of their first use in the text.
    parameters: tuple[str, ...]
    # Those of them that are the same for all calls, as literals. They are not part of the plan, which is for any.
    constants: Mapping[str, str]
    # The others.
    takes: tuple[str, ...]
    result: Callable[[Sequence[Any]], Any]
    # It may be sent again where its connection turned out to be dead after it was sent.
    repeatable: bool
    on_guard: bool

    def prepare(self) -> str:
        """Return the SQL that makes it known to a connection: parsed once, and planned once."""
        numbers = {parameter: f"${i}" for i, parameter in enumerate(self.parameters, 1)}
        return f"prepare {self.name} as\n" + PARAMETER.sub(lambda match: numbers[match[1]], self.text)

    def execute(self) -> str:
        """Return the SQL that runs it, with psycopg2's placeholders for what it takes."""
        arguments = ", ".join(self.constants.get(parameter, "%s") for parameter in self.parameters)
        return f"execute {self.name}({arguments})" if arguments else f"execute {self.name}"


def load(constants: Constants) -> dict[str, Statement]:
    """Return the statements by name.

    Raises:
        StartError: a header does not say what it should.
        TypeError: no statement takes one of the constants.
    """
    statements = {}
    for path in sorted(SQL.glob("*.sql")):
        try:
            statements[path.stem] = parse(path.stem, path.read_text("utf-8"), constants)
        except ValueError as exc:
            raise StartError(f"sql/{path.name}: {exc}") from None
    if unused := constants.keys() - {name for statement in statements.values() for name in statement.constants}:
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
    return Statement(
        name,
        text,
        parameters,
        # psycopg2 takes 1 to 2 us to adapt a value.
        constants={key: adapt(constants[key]).getquoted().decode() for key in parameters if key in constants},
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
