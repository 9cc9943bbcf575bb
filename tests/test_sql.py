"""The statements as PostgreSQL plans them, their headers, and the methods that are made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2
import pytest

from app.errors import StartError
from app.storage import statements
from app.storage.db import Database
from app.storage.migrate import migrate
from app.storage.statements import Statement, load, parse
from app.storage.store import Store

ORG_ALONE = re.compile(r"\(org_id = [^()]+\)")
TABLES = {"orgs", "users", "chats", "messages", "turn_keys", "tickets", "budgets", "deleted_replies"}
STATEMENTS = load({})

VALUES: dict[str, Any] = {
    "title": "Hi",
    "content": "Hi",
    "status": "complete",
    "server_id": 1,
    "history_limit": 40,
    "page_size": 51,
    "page_bytes": 1_000_000,
    "key": "key",
    "asked": b"",
    "create_caller": True,
    "hash": b"",
    "lifetime_s": 60.0,
    "age_s": 3600.0,
    "given_up": [1],
    "silence_s": 5.0,
    "org_ids": [str(uuid4())],
    "reply_ids": [str(uuid4())],
    "contents": ["Hi"],
    "inputs": [1],
    "outputs": [1],
    "input_tokens": 1,
    "output_tokens": 1,
    "is_estimated": True,
    "reason": None,
    "max_tokens": 4096,
    "min_tokens": 50,
    "system_bytes": 0,
    "input_price": Decimal(1),
    "output_price": Decimal(1),
    "lengths": [0],
    "channels": ["channels"],
    "payloads": ["{}"],
    "message": "Hi",
    "before_at": None,
    "words": "Hi",
}


@pytest.fixture(scope="module")
def cursor(postgres_url: str) -> Iterator[Any]:
    """A cursor in a database of its own: of tables that PostgreSQL has analyzed, its plans vary."""
    name = f"plans_{uuid4().hex}"
    with closing(psycopg2.connect(postgres_url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"create database {name}")
    url = re.sub(r"/llm_app\b", f"/{name}", postgres_url)
    migrate(url, timeout_s=5)
    with closing(psycopg2.connect(url, options="-c plan_cache_mode=force_generic_plan")) as connection:
        yield connection.cursor()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def explain(cursor: Any, name: str) -> dict[str, Any]:
    """Return the plan of a statement where the planner scans a whole table only if no index serves."""
    statement = STATEMENTS[name]
    cursor.execute("deallocate all")
    cursor.execute(statement.prepare)
    cursor.execute("set enable_seqscan = off")
    params = [VALUES.get(parameter, str(uuid4())) for parameter in statement.takes]
    cursor.execute("explain (format json) " + statement.execute, params)
    [[[explained]]] = cursor.fetchall()
    plan: dict[str, Any] = explained["Plan"]
    return plan


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_reads_no_whole_table(cursor: Any, name: str) -> None:
    for node in nodes(explain(cursor, name)):
        if node.get("Relation Name") in TABLES:
            assert node["Node Type"] != "Seq Scan", node
            # An index read from one end to the other is no better, but for that of the few open replies.
            conditions = [node[kind] for kind in ("Index Cond", "Recheck Cond", "TID Cond") if kind in node]
            whole = "Scan" in node["Node Type"] and not conditions
            assert not whole or (name, node.get("Index Name")) == ("turn_interrupt", "messages_running"), node
            # Nor is all that an org has, or has running. (Of budgets it has few, until PostgreSQL knows better.)
            if node["Relation Name"] == "budgets":
                continue
            assert not any(map(ORG_ALONE.fullmatch, conditions)), json.dumps(node)
            # And of this index an id is the last column: without a user's it is looked for among all of an org.
            assert node.get("Index Name") != "chats_active" or "user_id" in conditions[0], json.dumps(node)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("chat_list", "chats_active"),
        ("message_list", "messages_org_id_chat_id_position_key"),
        ("turn_open", "messages_org_id_chat_id_position_key"),
        ("turn_interrupt", "messages_running"),
    ],
)
def test_page_is_read_in_the_order_of_its_index(cursor: Any, name: str, index: str) -> None:
    used = [node.get("Index Name") for node in nodes(explain(cursor, name))]
    assert index in used


HEADER = """\
-- Do what is to be done.
-- takes:   one (a remark; with, all: signs), two (another that goes on
--          in the next line), three
-- returns: a row (sum: of all); some words
-- repeat:  yes
--
-- returns in the prose says nothing.
"""
TEXT = "select %(two)s + %(one)s * %(two)s - %(three)s as sum\n"


def test_header_says_what_the_statement_is() -> None:
    statement = parse("add", HEADER + TEXT, {})
    assert statement.takes == ("two", "one", "three")
    assert statement.result([1, 2]) == 1
    assert (statement.repeatable, statement.on_guard) == (True, False)
    assert statement.execute == "execute add(%s, %s, %s)"
    assert statement.prepare == f"prepare add as\n{HEADER}select $1 + $2 * $1 - $3 as sum\n"


def test_constant_is_no_part_of_the_plan_and_not_taken() -> None:
    statement, same = (parse("add", HEADER + TEXT, constants) for constants in ({"one": Decimal("0.5")}, {}))
    assert (statement.takes, statement.execute) == (("two", "three"), "execute add(%s, 0.5, %s)")
    assert statement.prepare == same.prepare


def test_constant_that_no_statement_takes_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="constants are servr_id, server_id, no statement takes servr_id"):
        load({"servr_id": 1, "server_id": 1})


@pytest.mark.parametrize(
    ("returns", "none", "one", "two"),
    [
        ("a row or none", None, "a", "a"),
        ("rows", [], ["a"], ["a", "b"]),
        ("nothing", None, None, None),
    ],
)
def test_result_is_what_the_header_returns(returns: str, none: Any, one: Any, two: Any) -> None:
    result = parse("add", HEADER.replace("a row (", f"{returns} (") + TEXT, {}).result
    assert (result([]), result(["a"]), result(["a", "b"])) == (none, one, two)


def test_statement_without_parameters_takes_nothing() -> None:
    statement = parse("ping", "-- takes:   nothing\n-- returns: nothing\n-- repeat:  no\nselect 1", {})
    assert (statement.takes, statement.execute, statement.repeatable) == ((), "execute ping", False)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (", three\n", "\n", "takes is one, two, expected two, one, three, which the text uses"),
        (
            ", three\n",
            ", three, four\n",
            "takes is one, two, three, four, expected two, one, three, which the text uses",
        ),
        (", three\n", ", tree\n", "takes is one, two, tree, expected two, one, three, which the text uses"),
        (
            ", three\n",
            ", three, one\n",
            "takes is one, two, three, one, expected two, one, three, which the text uses",
        ),
        (
            "a row (",
            "one row (",
            "returns is 'one row', expected 'a row' or 'a row or none' or 'rows' or 'nothing'",
        ),
        ("a row (", "a row for each (", "returns is 'a row for each', expected 'a row' or"),
        ("yes", "once", "repeat is 'once', expected 'yes' or 'no'"),
        ("yes", "yes\n-- on:      a", "on is 'a', expected 'any connection' or \"the guard's connection\""),
        (
            "-- repeat:  yes\n",
            "",
            "the header has takes, returns, expected takes, returns, repeat, and at most on",
        ),
        ("-- repeat:", "-- repaet:", "the header has takes, returns, repaet, expected"),
        ("-- repeat:", "-- at:      once\n-- repeat:", "the header has takes, returns, at, repeat, expected"),
        ("-- repeat:", "-- repeat:  no\n-- repeat:", "the header has takes, returns, repeat, repeat, expected"),
    ],
)
def test_wrong_header_is_fatal_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str, message: str
) -> None:
    monkeypatch.setattr(statements, "SQL", tmp_path)
    assert right in HEADER
    (tmp_path / "add.sql").write_text(HEADER.replace(right, wrong) + TEXT)
    with pytest.raises(StartError) as caught:
        load({})
    assert str(caught.value).startswith(f"sql/add.sql: {message}")
    assert "\n" not in str(caught.value)


class Recorder(Database):
    """Answers with what it was asked."""

    async def run(self, statement: Statement, params: Any) -> Any:
        return statement.name, params


@pytest.fixture
def store() -> Store:
    return Store(Recorder("postgresql://", pool_size=1, timeout_s=1))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `sql/`, to be changed."""
    for path in statements.SQL.glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(statements, "SQL", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "becomes", "message"),
    [
        ("turn_open", None, "sql/ lacks turn_open of Store, and has nothing beside it"),
        ("turn_open", "turn_opn", "sql/ lacks turn_open of Store, and has turn_opn beside it"),
    ],
)
def test_method_without_a_file_is_fatal(files: Path, file: str, becomes: str | None, message: str) -> None:
    path = files / f"{file}.sql"
    if becomes is None:
        path.unlink()
    else:
        path.rename(files / f"{becomes}.sql")
    with pytest.raises(StartError) as caught:
        Store(Recorder("postgresql://", pool_size=1, timeout_s=1))
    assert str(caught.value) == message


def test_file_without_a_method_is_fatal(files: Path) -> None:
    (files / "extra.sql").write_text(HEADER + TEXT)
    with pytest.raises(StartError) as caught:
        Store(Recorder("postgresql://", pool_size=1, timeout_s=1))
    assert str(caught.value) == "sql/ lacks nothing of Store, and has extra beside it"


def test_lock_is_taken_from_a_connection_that_was_lost(postgres_url: str) -> None:
    lock = (statements.SQL / "server_lock.sql").read_text()
    with (
        closing(psycopg2.connect(postgres_url)) as lost,
        closing(psycopg2.connect(postgres_url)) as other,
        closing(psycopg2.connect(postgres_url)) as new,
    ):
        for connection, server_id in ((lost, 2**63 - 7), (lost, 2**63 - 7), (other, 2**63 - 8), (new, 2**63 - 7)):
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(lock, {"server_id": server_id})
            assert cursor.fetchone() == (True,)
        with pytest.raises(psycopg2.OperationalError):
            lost.cursor().execute("select")
        other.cursor().execute("select")


async def test_constant_is_no_parameter_of_a_method() -> None:
    store = Store(Recorder("postgresql://", pool_size=1, timeout_s=1, constants={"server_id": 1}))
    assert await store.server_lock() == ("server_lock", {})
    with pytest.raises(TypeError, match="server_lock is given server_id, expected nothing"):
        store.server_lock(server_id=1)


async def test_method_passes_its_parameters_on_by_name(store: Store) -> None:
    params = {"channels": "one", "payloads": "two"}
    assert await store.server_call(**params) == ("server_call", params)  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("args", "params", "given"),
    [
        ((), {"channels": 1}, "channels"),
        ((), {}, "nothing"),
        ((), {"channels": 1, "paylod": 2}, "channels, paylod"),
        ((), {"channels": 1, "payloads": 2, "more": 3}, "channels, payloads, more"),
        ((1, 2), {}, "an unnamed one, an unnamed one"),
        ((1,), {"payloads": 2}, "payloads, an unnamed one"),
    ],
)
def test_other_parameters_are_an_error_at_the_call(store: Store, args: Any, params: Any, given: str) -> None:
    with pytest.raises(TypeError) as caught:
        store.server_call(*args, **params)
    assert str(caught.value) == f"server_call is given {given}, expected channels, payloads"
