"""Rows that are deleted by hand: what is below them goes with them, and no server stumbles over what is gone."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from house import answer, ask, chat_of, open_house, pause, question, read_at_the_door, read_pieces, waiting
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, logged, post, says

from app.errors import StartError
from app.storage import migrate as migrations
from app.storage.statements import SQL

KEY = "Idempotency-Key: one\r\n"
NOT_STORED = {"error": "Not stored", "message": "The question is not stored, or no longer; ask again."}

# The last migration before rows could be deleted so.
BEFORE = "0007"

DELETES = {
    "orgs": "delete from orgs where id = %s",
    "users": "delete from users where org_id = %s",
    "chats": "delete from chats where org_id = %s",
}


def counts(rows: Rows, tenant: Tenant) -> dict[str, int]:
    return {
        table: rows(f"select count(*) from {table} where {key} = %s", tenant.org_id)[0][0]
        for table, key in (
            *(("orgs", "id"), ("users", "org_id"), ("chats", "org_id"), ("messages", "org_id")),
            *(("turn_keys", "org_id"), ("tickets", "org_id")),
        )
    }


@contextmanager
def uncommitted(rows: Rows, statement: str, *params: object) -> Iterator[None]:
    """Carry out a statement, and commit it in the end."""
    rows("begin")
    try:
        rows(statement, *params)
        yield
    finally:
        rows("commit")


@pytest.mark.parametrize(
    ("table", "left"),
    [
        ("chats", {"orgs": 1, "users": 1, "chats": 0, "messages": 0, "turn_keys": 0, "tickets": 1}),
        ("users", {"orgs": 1, "users": 0, "chats": 0, "messages": 0, "turn_keys": 0, "tickets": 0}),
        ("orgs", {"orgs": 0, "users": 0, "chats": 0, "messages": 0, "turn_keys": 0, "tickets": 0}),
    ],
)
async def test_row_takes_what_is_below_it_and_nothing_else(
    start_server: StartServer, rows: Rows, tenant: Tenant, table: str, left: dict[str, int]
) -> None:
    server = await start_server(model=says("Hello"))
    other = rows.tenant()
    for each in (tenant, other):
        client, _ = await ask(server, each, KEY)
        await client.read_chunks()
        client.send(post("/chat/stream/ticket", b'{"message": "Hi"}', each))
        assert (await answer(client))[0] == 200
    rows(DELETES[table], tenant.org_id)
    assert counts(rows, tenant) == left
    assert counts(rows, other) == {"orgs": 1, "users": 1, "chats": 1, "messages": 2, "turn_keys": 1, "tickets": 1}


@pytest.mark.parametrize("when", ["between two checkpoints", "at its end"])
async def test_reply_whose_chat_is_deleted_ends_for_its_reader(
    start_server: StartServer,
    rows: Rows,
    tenant: Tenant,
    when: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Gated(pieces=["one ", "two ", "three "])
    house = await open_house(start_server, False, model, checkpoint_s=0.02 if "checkpoints" in when else 0)
    client, reply_id = await ask(house.home, tenant)
    await read_pieces(client, model, 2)
    rows("delete from chats where id = %s", chat_of(rows, reply_id))
    model.go(1 if "checkpoints" in when else 2)
    read = events(b"".join(await client.read_chunks()))
    assert read[-1] == NOT_STORED
    await model.closed.wait()
    assert house.turns.running.total() == 0
    await eventually(lambda: house.turns.find(reply_id) is None)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("when", ["running", "ended"])
async def test_chat_whose_last_reply_is_deleted_goes_on(
    start_server: StartServer, rows: Rows, tenant: Tenant, when: str
) -> None:
    model = Gated(pieces=["one ", "two "])
    house = await open_house(start_server, False, model, checkpoint_s=0)
    client, reply_id = await ask(house.home, tenant)
    chat_id = chat_of(rows, reply_id)
    if when == "running":
        rows("delete from messages where id = %s", reply_id)
    model.go(2)
    await client.read_chunks()
    if when == "ended":
        rows("delete from messages where id = %s", reply_id)
    again = await question(house.home, tenant, chat_id)
    assert (await again.read_head())[0] == b"HTTP/1.1 200 OK"
    stored = rows("select position, role from messages where chat_id = %s order by position", chat_id)
    assert stored == [(1, "user"), (3, "user"), (4, "assistant")]


@pytest.mark.usefixtures("often")
async def test_reply_whose_chat_is_deleted_ends_for_its_reader_elsewhere(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, True, Gated(pieces=["one ", "two ", "three "]))
    reply_id, reader, _ = await read_at_the_door(house, tenant)
    rows("delete from chats where id = %s", chat_of(rows, reply_id))
    assert events(b"".join(await reader.read_chunks()))[-1] == NOT_STORED


async def test_unread_reply_whose_chat_is_deleted_leaves_nothing_behind(
    start_server: StartServer, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    house = await open_house(start_server, False, Gated(), resume_window_s=0.1)
    reply_id, _ = await pause(house, tenant)
    rows("delete from chats where id = %s", chat_of(rows, reply_id))
    await eventually(lambda: house.turns.find(reply_id) is None)
    assert len(logged(caplog, "Reply ended")) == 1


async def test_key_whose_chat_is_deleted_asks_anew(start_server: StartServer, rows: Rows, tenant: Tenant) -> None:
    server = await start_server(model=says("Hello"))
    client = await RawClient.connect(server)
    chats = []
    for _ in range(2):
        client.send(post("/chat", b'{"message": "Hi"}', tenant, headers=KEY))
        status, body = await answer(client)
        assert status == 200
        chats.append(body["chat_id"])
        rows("delete from chats where id = %s", body["chat_id"])
    assert chats[0] != chats[1]


@pytest.mark.parametrize("path", ["/chat", "/chat/stream/ticket"])
async def test_question_of_a_user_who_is_being_deleted_is_403(
    start_server: StartServer, rows: Rows, tenant: Tenant, path: str
) -> None:
    client = await RawClient.connect(await start_server(model=says("Hello")))
    with uncommitted(rows, "delete from users where id = %s", tenant.user_id):
        client.send(post(path, b'{"message": "Hi"}', tenant, headers=KEY))
        await waiting(rows, 1)
    status, body = await answer(client)
    assert (status, body["error"]) == (403, "Forbidden")


async def test_question_in_a_chat_that_is_being_deleted_is_404(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=says("Hello"))
    client, reply_id = await ask(server, tenant)
    await client.read_chunks()
    chat_id = chat_of(rows, reply_id)
    with uncommitted(rows, "delete from chats where id = %s", chat_id):
        client = await question(server, tenant, chat_id)
        await waiting(rows, 1)
    assert (await answer(client))[0] == 404


def migrate_to(last: str, url: str, folder: Path) -> None:
    for path in SQL.glob("schema/*.sql"):
        if path.name[:4] <= last:
            (folder / "schema").mkdir(exist_ok=True)
            shutil.copy(path, folder / "schema")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "SQL", folder)
        migrations.migrate(url, timeout_s=5)


@pytest.fixture
def old_url(postgres_url: str, rows: Rows, tmp_path: Path) -> Any:
    """A database whose schema is of before, with a turn, and a key whose reply was deleted by hand."""
    rows("create database old")
    url = postgres_url.replace("/llm_app", "/old")
    migrate_to(BEFORE, url, tmp_path)
    with closing(Rows(url)) as old:
        tenant = old.tenant()
        old(
            "with chat as (insert into chats (org_id, id, user_id, title, message_count)"
            "  values (%s, gen_random_uuid(), %s, 'Hi', 0) returning org_id, id, user_id),"
            " reply as (insert into messages (org_id, id, chat_id, position, role, content, status, server_id)"
            "  select org_id, gen_random_uuid(), id, 2, 'assistant', '', 'streaming', 1 from chat returning id)"
            " insert into turn_keys (org_id, user_id, key, asked, reply_id)"
            " select org_id, user_id, 'kept', ''::bytea, reply.id from chat, reply"
            " union all select org_id, user_id, 'dangling', '', gen_random_uuid() from chat",
            tenant.org_id,
            tenant.user_id,
        )
    yield url
    rows("drop database old with (force)")


def test_rows_from_before_are_kept_but_for_keys_whose_reply_is_gone(old_url: str) -> None:
    migrations.migrate(old_url, timeout_s=5)
    with closing(Rows(old_url)) as old:
        assert old("select key from turn_keys") == [("kept",)]
        assert old("select count(*) from messages") == [(1,)]
        assert old("select conname from pg_constraint where not convalidated") == []
        old("delete from orgs")
        assert old("select count(*) from turn_keys") == [(0,)]


def test_migration_gives_up_where_a_table_is_in_use_for_long_and_is_made_once_it_is_not(old_url: str) -> None:
    with closing(Rows(old_url)) as dump, uncommitted(dump, "select count(*) from messages"):
        began_s = time.monotonic()
        with pytest.raises(StartError, match="lock timeout"):
            migrations.migrate(old_url, timeout_s=5)
        # Others wait behind it for so long.
        assert time.monotonic() - began_s < 3
    migrations.migrate(old_url, timeout_s=5)


def test_migration_gives_up_whatever_table_another_session_has(rows: Rows, postgres_url: str) -> None:
    rows("create database half_made")
    url = postgres_url.replace("/llm_app?", "/half_made?")
    with closing(Rows(url)) as other:
        other("begin")
        other("create table users ()")
        with pytest.raises(StartError, match="lock timeout"):
            migrations.migrate(url, timeout_s=5)
    migrations.migrate(url, timeout_s=5)
    rows("drop database half_made with (force)")


def test_each_migration_is_a_transaction_so_that_none_keeps_the_locks_of_another(old_url: str) -> None:
    migrations.migrate(old_url, timeout_s=5)
    with closing(Rows(old_url)) as old:
        assert old("select count(distinct xmin::text) = count(*) from _yoyo_migration") == [(True,)]


async def test_rows_are_written_while_those_from_before_are_looked_through(old_url: str, tmp_path: Path) -> None:
    await asyncio.to_thread(migrate_to, "0008", old_url, tmp_path)
    with closing(Rows(old_url)) as other, closing(Rows(old_url)) as server:
        with uncommitted(other, "select from turn_keys where key = 'dangling' for update"):
            migrating = asyncio.create_task(asyncio.to_thread(migrations.migrate, old_url, timeout_s=5))
            await waiting(server, 1)
            server("set lock_timeout = '1s'")
            server("update messages set content = 'Hello'")
            server("update turn_keys set asked = '' where key = 'kept'")
        await migrating
        assert server("select content from messages") == [("Hello",)]
