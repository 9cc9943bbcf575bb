"""The statements as PostgreSQL plans them, and their headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg2
import pytest

from app.storage import db

TABLES = {"orgs", "users", "chats", "messages", "turn_keys", "tickets"}
NAMES = sorted(path.stem for path in db.SQL.glob("*.sql"))

VALUES: dict[str, Any] = {
    "title": "Hi",
    "content": "Hi",
    "status": "complete",
    "server_id": 1,
    "history_limit": 40,
    "page_size": 51,
    "key": "key",
    "asked": b"",
    "hash": b"",
    "resume_window_s": 20.0,
    "lifetime_s": 60.0,
    "age_s": 3600.0,
    "given_up": [1],
    "channel": "channel",
    "payload": "{}",
    "message": "Hi",
}


@pytest.fixture(scope="module")
def cursor(postgres_url: str) -> Iterator[Any]:
    connection = psycopg2.connect(postgres_url, options="-c plan_cache_mode=force_generic_plan")
    yield connection.cursor()
    connection.close()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def explain(cursor: Any, name: str) -> dict[str, Any]:
    """Return the plan of a statement where the planner scans a whole table only if no index serves."""
    text = (db.SQL / f"{name}.sql").read_text()
    cursor.execute("deallocate all")
    cursor.execute(db.prepare(name, text))
    cursor.execute("set enable_seqscan = off")
    params = {parameter: VALUES.get(parameter, str(uuid4())) for parameter in db.parameters(text)}
    cursor.execute("explain (format json) " + db.execute(name, text), params)
    [[[explained]]] = cursor.fetchall()
    plan: dict[str, Any] = explained["Plan"]
    return plan


@pytest.mark.parametrize("name", NAMES)
def test_statement_reads_no_whole_table(cursor: Any, name: str) -> None:
    for node in nodes(explain(cursor, name)):
        if node.get("Relation Name") in TABLES:
            assert node["Node Type"] != "Seq Scan", node
            # An index read from one end to the other is no better, but for that of the few open replies.
            whole = "Scan" in node["Node Type"] and "Index Cond" not in node and "Recheck Cond" not in node
            assert not whole or node.get("Index Name") == "messages_running", node


@pytest.mark.parametrize("name", NAMES)
def test_statement_says_what_it_takes_and_returns(name: str) -> None:
    text = (db.SQL / f"{name}.sql").read_text()
    header, returns = text.split("-- returns: ")
    assert header.startswith("-- ")
    assert "\n-- takes:   " in header
    assert returns
    for parameter in re.findall(r"%\((\w+)\)s", text):
        assert parameter in header


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("chat_list", "chats_newest"),
        ("message_list", "messages_org_id_chat_id_position_key"),
        ("turn_open", "messages_org_id_chat_id_position_key"),
        ("turn_interrupt", "messages_running"),
        ("turn_interrupt", "messages_resumable"),
    ],
)
def test_page_is_read_in_the_order_of_its_index(cursor: Any, name: str, index: str) -> None:
    used = [node.get("Index Name") for node in nodes(explain(cursor, name))]
    assert index in used
