"""The statements on tables that are partitioned by org: each goes where its org is.

That is what a distributed PostgreSQL sends it by.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from support import Rows, Tenant
from test_sql import nodes

from app.parsers import TOKEN
from app.storage.db import Database
from app.storage.migrate import migrate
from app.storage.statements import load
from app.storage.store import DEMO_ORG_ID, DEMO_USER_ID, Store

PARTITIONS = 4

PRICE = TOKEN._asdict()

# Those that are for all orgs: what servers do for each other, and for time that passes.
FOR_ALL_ORGS = {"ticket_sweep", "turn_interrupt", "turn_key_sweep"}

OURS = "from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' and relname !~ 'yoyo'"

# So much that the planner has something to choose from; every fifth chat has a running reply.
FILL = """
-- Foreign keys need no check while the rows are made up.
set session_replication_role = replica;
insert into orgs (id, name) select gen_random_uuid(), 'Org' from generate_series(1, 8);
insert into users (org_id, id, email)
    select orgs.id, gen_random_uuid(), n || '@example.com' from orgs, generate_series(1, 5) as n;
insert into chats (org_id, id, user_id, title, message_count)
    select org_id, gen_random_uuid(), id, 'Chat ' || n, 10 from users, generate_series(1, 20) as n;
insert into messages (org_id, id, chat_id, position, role, content, status, server_id, finished_at)
    select org_id, gen_random_uuid(), id, n,
        case when n %% 2 = 1 then 'user' else 'assistant' end, 'Hi', 'complete',
        case when n %% 2 = 0 then 1 end, now()
    from chats, generate_series(1, 10) as n;
update messages set status = 'streaming', server_id = hashtext(id::text), finished_at = null
    where position = 10 and hashtext(chat_id::text) %% 5 = 0;
set session_replication_role = origin;
analyze;
"""


def spread(rows: Rows) -> None:
    """Make each table anew as one that is partitioned by hash of its org; all else stays as the schema has it."""
    tables = [table for (table,) in rows(f"select relname {OURS}")]
    foreign_keys = rows(
        "select conrelid::regclass, pg_get_constraintdef(oid) from pg_constraint"
        " where contype = 'f' and conrelid in (select oid " + OURS + ")"
    )
    for table in tables:
        org_id = "id" if table == "orgs" else "org_id"
        rows(f"alter table {table} rename to whole_{table}")
        rows(f"create table {table} (like whole_{table} including all) partition by hash ({org_id})")
        for i in range(PARTITIONS):
            rows(
                f"create table {table}_{i} partition of {table}"
                f" for values with (modulus {PARTITIONS}, remainder {i})"
            )
    for table in tables:
        rows(f"drop table whole_{table} cascade")
    for table, definition in foreign_keys:
        rows(f"alter table {table} add {definition}")


@pytest.fixture(scope="module")
def spread_url(postgres_url: str, rows: Rows) -> Iterator[str]:
    rows("create database spread")
    url = postgres_url.replace("/llm_app", "/spread")
    migrate(url, timeout_s=10)
    with closing(Rows(url)) as spread_rows:
        spread(spread_rows)
        spread_rows(FILL)
    yield url
    rows("drop database spread with (force)")


@pytest.fixture
def spread_rows(spread_url: str) -> Iterator[Rows]:
    with closing(Rows(spread_url)) as spread_rows:
        yield spread_rows


class Explained(Database):
    """Explains each statement before it runs it."""

    def __init__(self, url: str) -> None:
        super().__init__(url, pool_size=2, timeout_s=5.0)
        self._connection = psycopg2.connect(url, options="-c plan_cache_mode=force_generic_plan")
        with self._connection.cursor() as cursor:
            # Tables of this size would be read whole.
            cursor.execute("set enable_seqscan = off")
            for statement in self.statements.values():
                cursor.execute(statement.prepare)
        self._connection.commit()
        # What each statement has read, and what it was given.
        self.reads: list[tuple[str, Any, set[str], set[str]]] = []

    async def run(self, statement: Any, params: Any) -> Any:
        with self._connection.cursor() as cursor:
            # With two orgs in an array, that a partition is not read shows only when it runs.
            analyze = "analyze, " if "org_ids" in params else ""
            given = [params[name] for name in statement.takes]
            cursor.execute(f"explain ({analyze}format json) {statement.execute}", given)
            [[[explained]]] = cursor.fetchall()
        # What it has done in the course of it is undone.
        self._connection.rollback()
        scans = [
            node for node in nodes(explained["Plan"]) if "Scan" in node["Node Type"] and "Relation Name" in node
        ]
        planned = {node["Relation Name"] for node in scans}
        run = {node["Relation Name"] for node in scans if node.get("Actual Loops", 1)}
        self.reads.append((statement.name, params, planned, run))
        return await super().run(statement, params)

    async def close(self) -> None:
        self._connection.close()
        await super().close()


@pytest.fixture
async def database(spread_url: str) -> AsyncIterator[Explained]:
    database = Explained(spread_url)
    yield database
    await database.close()


class Turns:
    """Opens turns of a user."""

    def __init__(self, store: Store, tenant: Tenant) -> None:
        self.caller = {"org_id": tenant.org_id, "user_id": tenant.user_id}
        self._store = store

    async def open(
        self, chat_id: str | None = None, key: str | None = None, replaces: str | None = None
    ) -> tuple[str, str]:
        """Return its chat and its reply."""
        reply_id = str(uuid4())
        opened = await self._store.turn_open(
            **self.caller,
            create_caller=False,
            chat_id=chat_id,
            title="Hi",
            reply_id=reply_id,
            replaces=replaces,
            last=None,
            content="Hi",
            server_id=1,
            history_limit=40,
            key=key,
            asked=b"Hi",
            max_tokens=4096,
            min_tokens=50,
            system_bytes=0,
            **PRICE,
        )
        assert opened.chat_id is not None
        return opened.chat_id, reply_id


async def use_all(store: Store, tenant: Tenant) -> None:
    """Run each statement, and see that it does what it is for."""
    turns = Turns(store, tenant)
    org, caller, new = {"org_id": tenant.org_id}, turns.caller, {"create_caller": False}
    chat_id, reply_id = await turns.open(key="key")
    ours = {**org, "reply_id": reply_id, "server_id": 1}
    said = {"org_ids": [tenant.org_id], "reply_ids": [reply_id]}
    bells: dict[str, Any] = {"channels": ["bell"], "payloads": ["{}"]}
    saved = await store.turn_checkpoint(server_id=1, **said, contents=["One"], inputs=[1], outputs=[2], **bells)
    assert (saved.saved, saved.rung) == ([reply_id], 1)
    assert [row.more for row in await store.reply_look(**said, lengths=[1])] == ["ne"]
    assert [row.id for row in await store.turn_prove(server_id=1, **said)] == [reply_id]
    cost: dict[str, Any] = {"input_tokens": 1, "output_tokens": 4, "is_estimated": False, **PRICE}
    assert await store.turn_close(**ours, content="One two", status="complete", reason="length", **cost)
    found = await store.reply_find(**caller, reply_id=reply_id)
    assert found is not None
    assert (found.content, found.status, found.reason) == ("One two", "complete", "length")
    earlier = await store.turn_by_key(**caller, key="key", asked=b"Hi", replaces=None)
    assert earlier is not None
    assert (earlier.reply_id, earlier.same) == (reply_id, True)
    _, undone_id = await turns.open(chat_id)
    assert await store.turn_undo(**ours | {"reply_id": undone_id})
    chats: dict[str, Any] = {"before_at": None, "before_id": None, "page_size": 10}
    assert [row.chat_id for row in await store.chat_list(**caller, **chats, words="h")] == [chat_id]
    renamed = await store.chat_rename(**caller, chat_id=chat_id, title="Ho")
    assert (await store.chat_find(**caller, chat_id=chat_id)) == renamed
    page: dict[str, Any] = {"page_size": 10, "page_bytes": 1000, "chat_id": chat_id}
    messages = await store.message_list(**caller, **page, before=None)
    assert [row.content for row in messages] == ["Hi", "One two"]
    messages = await store.message_list(**caller, **page, before=reply_id)
    assert [row.content for row in messages] == ["Hi"]
    exported = await store.message_export(**caller, **page, after=messages[0].message_id)
    assert [row.content for row in exported] == ["One two"]
    ticket: dict[str, Any] = {**org, "hash": b"ticket"}
    of_none: dict[str, Any] = {"chat_id": None, "replaces": None, "last": None}
    assert await store.ticket_issue(**ticket, **new, **of_none, user_id=tenant.user_id, message="Hi")
    kept = await store.ticket_find(**ticket, lifetime_s=60.0)
    assert kept is not None
    assert (kept.user_id, kept.message) == (tenant.user_id, "Hi")
    usage = await store.usage_read(**caller)
    assert (usage.day_turns, usage.month_input, usage.month_output) == (1, 1, 4)
    await store.demo_seed(org_id=DEMO_ORG_ID, user_id=DEMO_USER_ID)
    assert (await store.database_ping()).ok
    assert (await store.server_lock(server_id=1)).locked
    assert (await store.server_call(**bells)).rung == 1
    assert (await store.ticket_sweep(age_s=0.0)).forgotten
    assert (await store.turn_key_sweep(age_s=0.0)).forgotten
    _, busy_id = await turns.open(chat_id, key="key", replaces=reply_id)
    assert await store.reply_find(**caller, reply_id=reply_id) is None
    busy = ours | {"reply_id": busy_id}
    assert await store.turn_close(**busy, content="", status="failed", reason="busy", **cost)
    earlier = await store.turn_by_key(**caller, key="key", asked=b"Hi", replaces=reply_id)
    assert earlier is not None
    assert (earlier.reply_id, earlier.to_replace) == (busy_id, True)
    _, last_id = await turns.open(chat_id, key="key", replaces=busy_id)
    assert await store.turn_close(
        **ours | {"reply_id": last_id}, content="", status="stopped", reason=None, **cost
    )
    await store.turn_interrupt(given_up=[], silence_s=5.0, **PRICE)
    deleted = await store.chat_delete(**caller, chat_id=chat_id)
    assert (deleted.caller_known, deleted.running_id, deleted.overtaken) == (True, None, False)
    gone = await store.chat_find(**caller, chat_id=chat_id)
    assert gone is not None
    assert gone.chat_id is None


async def test_statement_goes_to_the_partition_of_its_org_alone(database: Explained, spread_rows: Rows) -> None:
    store = Store(database)
    # Until there were orgs in two partitions.
    partitions: set[str] = set()
    while len(partitions) < 2:
        tenant = spread_rows.tenant()
        await use_all(store, tenant)
        [(users,)] = spread_rows("select tableoid::regclass::text from users where id = %s", tenant.user_id)
        partitions.add(users[-1])
        for name, params, planned, run in database.reads:
            if "org_id" in params and params["org_id"] == tenant.org_id:
                # Known when it starts: what it is given says so, not what it reads.
                assert {table[-1] for table in planned} <= {users[-1]}, (name, planned)
            elif "org_ids" in params and params["org_ids"] == [tenant.org_id]:
                assert {table[-1] for table in run} == {users[-1]}, (name, run)
    assert {name for name, *_ in database.reads} == load({}).keys()
    for_all = {name for name, params, planned, _ in database.reads if len({table[-1] for table in planned}) > 1}
    assert for_all - FOR_ALL_ORGS <= {name for name, params, *_ in database.reads if "org_ids" in params}


async def test_statement_for_replies_of_several_orgs_reads_each_in_its_own_partition(
    database: Explained, spread_rows: Rows
) -> None:
    store = Store(database)
    replies: dict[str, tuple[str, str]] = {}
    while len(replies) < 2:
        tenant = spread_rows.tenant()
        [(users,)] = spread_rows("select tableoid::regclass::text from users where id = %s", tenant.user_id)
        _, reply_id = await Turns(store, tenant).open()
        replies[users[-1]] = (tenant.org_id, reply_id)
    said = {"org_ids": [org for org, _ in replies.values()], "reply_ids": [reply for _, reply in replies.values()]}
    saved = await store.turn_checkpoint(
        server_id=1, **said, contents=["One", "Two"], inputs=[1, 1], outputs=[2, 2], channels=[], payloads=[]
    )
    assert sorted(saved.saved) == sorted(said["reply_ids"])
    rows = await store.reply_look(**said, lengths=[0, 1])
    assert {row.id: row.more for row in rows} == dict(zip(said["reply_ids"], ["One", "wo"], strict=True))
    for _, _, _, run in database.reads[-2:]:
        assert {table[-1] for table in run} == replies.keys()


def test_every_unique_index_begins_with_the_org(rows: Rows) -> None:
    firsts = rows(
        "select indrelid::regclass::text, indexrelid::regclass::text, attname from pg_index"
        " join pg_attribute on attrelid = indrelid and attnum = indkey[0]"
        " where indisunique and indrelid in (select oid " + OURS + ") and attname <> 'org_id'"
    )
    # What else names an org is the org itself.
    assert firsts == [("orgs", "orgs_pkey", "id")]


def test_every_foreign_key_stays_within_its_org(rows: Rows) -> None:
    keys = rows(
        "select conname, confrelid::regclass::text, own.attname, other.attname from pg_constraint"
        " join pg_attribute as own on own.attrelid = conrelid and own.attnum = conkey[1]"
        " join pg_attribute as other on other.attrelid = confrelid and other.attnum = confkey[1]"
        " where contype = 'f' and conrelid in (select oid " + OURS + ")"
    )
    assert len(keys) >= 6
    for name, table, own, other in keys:
        assert (own, other) == ("org_id", "id" if table == "orgs" else "org_id"), name
