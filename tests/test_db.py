"""The database away, frozen, restarted, slow: clear answers, and nothing accepted is lost."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from aiohttp.test_utils import TestClient
from serving import OwnPostgres, StartServer, new_postgres
from support import Gated, Rows, Tenant, events, eventually, logged, says
from yoyo.backends.base import DatabaseBackend

from app.errors import StartError
from app.replies.lease import GIVE_UP_AFTER
from app.server import BELLS, GUARD, create_app, serve
from app.settings import Settings
from app.storage import db
from app.storage import migrate as migrations
from app.storage.db import DATABASE
from app.storage.statements import SQL
from app.storage.store import STORE, Store


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own") / "data"


@pytest.fixture(scope="module")
def own_url(own_folder: Path) -> Iterator[str]:
    with new_postgres(own_folder) as url:
        yield url


@pytest.fixture
def postgres(own_folder: Path, own_url: str) -> Iterator[OwnPostgres]:
    """Running before each test and after it."""
    postgres = OwnPostgres(own_folder, own_url)
    yield postgres
    with suppress(psutil.NoSuchProcess):
        postgres.thaw()
    postgres.start()


@pytest.fixture
def own_rows(postgres: OwnPostgres) -> Iterator[Rows]:
    rows = Rows(postgres.url)
    yield rows
    rows.close()


@pytest.fixture
def own_tenant(own_rows: Rows) -> Tenant:
    return own_rows.tenant()


async def test_database_away_is_503_before_the_stream_and_heals_by_itself(
    start_server: StartServer, aiohttp_client: Any, postgres: OwnPostgres, own_tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(database_url=postgres.url, db_timeout_s=1.0))
    postgres.kill()
    for path in ("/chat", "/chat/stream"):
        response = await client.post(path, json={"message": "Hi"}, headers=own_tenant.headers)
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert (await response.json())["error"] == "Database unavailable"
    assert (await client.get("/chats", headers=own_tenant.headers)).status == 503
    assert (await client.get("/ready")).status == 503
    assert (await client.get("/health")).status == 200

    postgres.start()
    assert (await client.get("/ready")).status == 200
    response = await client.post("/chat", json={"message": "Hi"}, headers=own_tenant.headers)
    assert response.status == 200


async def test_restarted_database_is_found_at_once_by_statements_that_may_be_repeated(
    start_server: StartServer, aiohttp_client: Any, postgres: OwnPostgres, own_tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(database_url=postgres.url))
    # Fill the pool with connections that will be dead.
    await asyncio.gather(*(client.get("/chats", headers=own_tenant.headers) for _ in range(10)))
    postgres.kill()
    postgres.start()
    for _ in range(3):
        assert (await client.get("/chats", headers=own_tenant.headers)).status == 200


async def test_dead_connections_in_the_pool_cost_no_time(
    start_server: StartServer, aiohttp_client: Any, postgres: OwnPostgres, own_tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(database_url=postgres.url))
    await asyncio.gather(*(client.get("/chats", headers=own_tenant.headers) for _ in range(10)))
    postgres.kill()
    # The reader of a dead connection stays readable: watched on, it would keep the loop spinning.
    used_s, began_s = time.process_time(), time.monotonic()
    await asyncio.sleep(1)
    assert (time.process_time() - used_s) / (time.monotonic() - began_s) < 0.3


async def test_database_that_goes_away_during_the_stream_stops_no_token_and_done_is_not_said(
    start_server: StartServer,
    aiohttp_client: Any,
    postgres: OwnPostgres,
    own_tenant: Tenant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Gated()

    async def five_words(conversation: Any) -> Any:
        async for piece in model(conversation):
            yield piece
            if model.said == 5:
                return

    client = await aiohttp_client(
        await start_server(database_url=postgres.url, model=five_words, db_timeout_s=1.0)
    )
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=own_tenant.headers)
    model.go(2)
    await response.content.readuntil(b"\n\n")
    postgres.kill()
    model.go(3)
    *_, last = events(await response.read())
    assert model.said == 5
    assert last == {
        "error": "Cut short",
        "message": "The database did not answer. The reply may go on: come back for the rest.",
    }
    assert logged(caplog, "Stream completed") == []

    # It is saved as soon as the database is back.
    postgres.start()
    rows = Rows(postgres.url)
    await eventually(lambda: rows.messages(own_tenant.org_id)[1] == ("assistant", "word " * 5, "complete"))
    rows.close()


async def test_save_that_waits_for_the_database_is_tried_once_more_at_the_stop(
    start_server: StartServer, aiohttp_client: Any, postgres: OwnPostgres, own_tenant: Tenant
) -> None:
    model = Gated()
    server = await start_server(database_url=postgres.url, model=model, db_timeout_s=1.0, resume_window_s=0)
    client = await aiohttp_client(server)
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=own_tenant.headers)
    model.go()
    await response.content.readuntil(b"\n\n")
    postgres.kill()
    response.close()
    await model.closed.wait()
    postgres.start()
    await server.close()
    rows = Rows(postgres.url)
    assert rows.messages(own_tenant.org_id)[1] == ("assistant", "word ", "disconnected")
    rows.close()


async def test_save_that_finds_the_pool_closed_by_a_stop_is_given_up_without_a_traceback(
    start_server: StartServer,
    aiohttp_client: Any,
    postgres: OwnPostgres,
    own_tenant: Tenant,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(db, "CLOSE_TIMEOUT_S", 0.01)
    server = await start_server(database_url=postgres.url, db_timeout_s=0.5)
    client = await aiohttp_client(server)
    assert (await client.get("/chats", headers=own_tenant.headers)).status == 200
    postgres.freeze()
    response = await client.post("/chat", json={"message": "Hi"}, headers=own_tenant.headers)
    assert response.status == 503
    # What may have been opened is being closed: its second try would find the pool closed.
    await server.close()
    assert logged(caplog, "Reply not saved") == []


async def test_frozen_database_is_503_within_the_timeout_and_no_half_opened_turn_stays_open(
    start_server: StartServer, aiohttp_client: Any, postgres: OwnPostgres, own_tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(database_url=postgres.url, db_timeout_s=0.5, db_pool_size=2))
    postgres.freeze()
    began_s = time.monotonic()
    responses = await asyncio.gather(
        *(client.post("/chat", json={"message": "Hi"}, headers=own_tenant.headers) for _ in range(20))
    )
    assert {response.status for response in responses} == {503}
    assert time.monotonic() - began_s < 4
    postgres.thaw()
    async with asyncio.timeout(10):
        while (await client.get("/ready")).status != 200:
            pass
    rows = Rows(postgres.url)
    await eventually(
        lambda: rows("select 1 from messages where status = 'streaming' and org_id = %s", own_tenant.org_id) == []
    )
    rows.close()
    response = await client.post("/chat", json={"message": "Hi"}, headers=own_tenant.headers)
    assert response.status == 200


async def test_statement_that_postgresql_gives_up_is_503_and_not_an_empty_answer(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server()
    client = await aiohttp_client(server)
    with rows.locked("chats"):
        answer = asyncio.ensure_future(client.post("/chat", json={"message": "Hi"}, headers=tenant.headers))
        [(pid,)] = await eventually(
            lambda: rows("select pid from pg_locks where not granted and locktype = 'relation'")
        )
        rows("select pg_cancel_backend(%s)", pid)
        response = await answer
    assert response.status == 503
    [record] = logged(caplog, "Database unavailable")
    assert (record.statement, record.cause) == ("turn_open", "statement_timeout")
    await eventually(lambda: rows.messages(tenant.org_id) == [])


async def test_statement_that_waits_longer_than_the_timeout_is_503(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(db_timeout_s=1.0))
    with rows.locked("chats"):
        response = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)
    assert response.status == 503


async def test_question_that_postgresql_undoes_for_a_deadlock_is_asked_again_on_the_same_connection(
    start_server: StartServer,
    aiohttp_client: Any,
    rows: Rows,
    tenant: Tenant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = await aiohttp_client(await start_server())
    connections = "select pid from pg_stat_activity where application_name = 'llm-app'"
    before = rows(connections)
    # Counted where nothing is undone.
    rows("create sequence tries")
    rows(
        """
        create function undo_first() returns trigger language plpgsql as $$
        begin
            if nextval('tries') = 1 then
                raise exception 'deadlock detected' using errcode = 'deadlock_detected';
            end if;
            return new;
        end
        $$
        """
    )
    rows(
        "create trigger undo_first before insert on chats for each row"
        f" when (new.org_id = '{tenant.org_id}') execute function undo_first()"
    )
    try:
        response = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)
    finally:
        rows("drop function undo_first cascade")
        [(tries,)] = rows("select last_value from tries")
        rows("drop sequence tries")
    assert (response.status, tries) == (200, 2)
    assert len(rows.messages(tenant.org_id)) == 2
    assert set(before) <= set(rows(connections))
    [record] = logged(caplog, "Database unavailable")
    assert (record.statement, record.cause) == ("turn_open", "DeadlockDetected 40P01: deadlock detected")


async def test_terminated_connections_are_replaced(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server())
    for _ in range(3):
        assert (await client.get("/chats", headers=tenant.headers)).status == 200
        assert rows(
            "select count(pg_terminate_backend(pid)) > 0 from pg_stat_activity where application_name = 'llm-app'"
        ) == [(True,)]


async def test_no_connection_is_held_while_streaming(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    model = Gated()
    server = await start_server(model=model, db_pool_size=1)
    client = await aiohttp_client(server)
    streams = [await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers) for _ in range(5)]
    assert server.app
    assert server.app[DATABASE].connections_in_use == 0
    assert (await client.get("/chats", headers=tenant.headers)).status == 200
    for stream in streams:
        stream.close()


async def test_pool_of_2_serves_200_turns_at_once(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(db_pool_size=2))
    responses = await asyncio.gather(
        *(client.post("/chat", json={"message": "Hi"}, headers=tenant.headers) for _ in range(200))
    )
    assert {response.status for response in responses} == {200}
    assert rows("select count(*) from messages where org_id = %s", tenant.org_id) == [(400,)]


async def test_turn_costs_two_statements(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server()
    client = await aiohttp_client(server)
    ran: list[str] = []
    attempt = db.Database._attempt

    async def spy(self: db.Database, statement: Any, params: Any) -> Any:
        if statement.name.startswith("turn_") and statement.name != "turn_interrupt":
            ran.append(statement.name)
        return await attempt(self, statement, params)

    monkeypatch.setattr(db.Database, "_attempt", spy)
    response = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    await response.read()
    assert ran == ["turn_open", "turn_close"]


async def test_concurrent_turns_of_one_chat_keep_each_reply_behind_its_question(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(model=says("reply")))
    first = await client.post("/chat", json={"message": "0"}, headers=tenant.headers)
    chat_id = (await first.json())["chat_id"]

    async def ask(n: int) -> None:
        while True:
            body = {"message": str(n), "chat_id": chat_id}
            async with client.post("/chat", json=body, headers=tenant.headers) as response:
                if response.status == 200:
                    return
                assert response.status == 409

    await asyncio.gather(*(ask(n) for n in range(1, 30)))
    assert rows(
        "select array_agg(position order by position), array_agg(role order by position) from messages"
        " where chat_id = %s",
        chat_id,
    ) == [(list(range(1, 61)), ["user", "assistant"] * 30)]


async def test_open_replies_of_a_dead_server_are_interrupted_soon_after_the_start(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.server.GUARD_S", 0.02)
    rows(
        "with c as (insert into chats (org_id, id, user_id, title, message_count)"
        " values (%s, gen_random_uuid(), %s, 'Hi', 2) returning org_id, id)"
        " insert into messages (org_id, id, chat_id, position, role, content, status, finished_at, server_id)"
        " select org_id, gen_random_uuid(), id, 1, 'user', 'Hi', 'complete', now(), null from c union all"
        " select org_id, gen_random_uuid(), id, 2, 'assistant', '', 'streaming', null, 1 from c",
        tenant.org_id,
        tenant.user_id,
    )
    await start_server()
    interrupted = [("user", "Hi", "complete"), ("assistant", "", "interrupted")]
    await eventually(lambda: rows.messages(tenant.org_id) == interrupted)


async def test_closed_reply_is_never_closed_again(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=says("reply"))
    client: TestClient = await aiohttp_client(server)
    answer = await (await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)).json()
    store: Store = server.app[STORE]  # type: ignore[index]
    ids = {"org_id": tenant.org_id, "reply_id": answer["message_id"]}
    cost = {"input_tokens": 9, "output_tokens": 9, "is_estimated": False}
    before = rows("select * from messages where org_id = %s", tenant.org_id)
    for content, status in (("reply", "complete"), ("reply", "failed"), ("other", "complete"), (None, "stopped")):
        said = {"content": content, "status": status, "reason": None}
        assert await store.turn_close(**ids, **said, **cost) is None
    row = await store.turn_checkpoint(
        org_ids=[tenant.org_id],
        reply_ids=[answer["message_id"]],
        contents=["other"],
        inputs=[1],
        outputs=[1],
        channels=[],
        payloads=[],
    )
    assert row.saved == []
    assert await store.turn_undo(**ids) is None
    assert rows("select * from messages where org_id = %s", tenant.org_id) == before


async def test_ids_are_text_in_and_out(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=says("reply"))
    client: TestClient = await aiohttp_client(server)
    answer = await (await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)).json()
    store: Store = server.app[STORE]  # type: ignore[index]
    reply_id = answer["message_id"]
    row = await store.reply_find(org_id=tenant.org_id, user_id=tenant.user_id, reply_id=reply_id)
    assert row is not None
    assert row.chat_id == answer["chat_id"]
    messages = await store.message_list(
        org_id=tenant.org_id,
        user_id=tenant.user_id,
        chat_id=row.chat_id,
        before=reply_id,
        page_size=2,
        page_bytes=1,
    )
    question = rows("select id::text from messages where org_id = %s and role = 'user'", tenant.org_id)
    assert [(message.chat_id, message.message_id) for message in messages] == [(row.chat_id, *question[0])]


def test_migration_runs_again_without_effect(postgres_url: str, rows: Rows) -> None:
    applied = rows("select migration_id, applied_at_utc from _yoyo_migration")
    migrations.migrate(postgres_url, timeout_s=5)
    assert rows("select migration_id, applied_at_utc from _yoyo_migration") == applied


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_database_that_does_not_hold_all_characters_is_refused(
    postgres_url: str, rows: Rows, encoding: str
) -> None:
    rows(f"create database narrow encoding '{encoding}' locale 'C' template template0")
    try:
        with pytest.raises(StartError) as caught:
            migrations.migrate(postgres_url.replace("/llm_app", "/narrow"), timeout_s=5)
        assert str(caught.value) == (
            f"the encoding of the database of DATABASE_URL is {encoding}, expected UTF8:"
            " create database … encoding 'UTF8' template template0"
        )
    finally:
        rows("drop database narrow")


def test_unreachable_database_is_one_line_without_the_password() -> None:
    with pytest.raises(StartError) as caught:
        migrations.migrate("postgresql://user:secret@127.0.0.1:1/none", timeout_s=2)
    assert "127.0.0.1" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_start_that_has_too_few_connections_is_told_so(postgres_url: str, rows: Rows) -> None:
    rows("create role poor login connection limit 2")
    try:
        with pytest.raises(StartError, match=r"cannot be used: .*FATAL: too many connections for role \"poor\"$"):
            migrations.migrate(postgres_url.replace("postgres:@", "poor:@"), timeout_s=5)
    finally:
        rows("drop role poor")


async def test_database_that_goes_away_during_the_start_is_told_with_its_cause() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(Settings(database_url="postgresql://user:secret@127.0.0.1:1/none"))
        with pytest.raises(StartError) as caught:
            await serve(app, listener)
    assert "Connection refused" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_save_refused_by_a_database_that_was_made_read_only_is_tried_until_it_is_stored(
    start_server: StartServer, aiohttp_client: Any, postgres: OwnPostgres, own_rows: Rows, own_tenant: Tenant
) -> None:
    model = Gated()
    client = await aiohttp_client(await start_server(database_url=postgres.url, model=model, resume_window_s=0))
    stream = await client.post("/chat/stream", json={"message": "Hi"}, headers=own_tenant.headers)
    model.go()
    await stream.content.readuntil(b"\n\n")
    own_rows("alter database llm_app set default_transaction_read_only = on")
    own_rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'llm-app'")
    try:
        response = await client.post("/chat", json={"message": "Hi"}, headers=own_tenant.headers)
        assert response.status == 503
        stream.close()
        await model.closed.wait()
    finally:
        own_rows("set default_transaction_read_only = off")
        own_rows("alter database llm_app reset default_transaction_read_only")
        own_rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'llm-app'")
    await eventually(lambda: own_rows.messages(own_tenant.org_id)[1] == ("assistant", "word ", "disconnected"))


async def test_server_leaves_a_postgresql_that_is_the_primary_no_longer_with_lock_and_bell(
    start_server: StartServer, aiohttp_client: Any, postgres: OwnPostgres, own_rows: Rows, own_tenant: Tenant
) -> None:
    server = await start_server(database_url=postgres.url)
    client = await aiohttp_client(server)
    await server.app[BELLS].listening.wait()  # type: ignore[index]
    ours = "select array_agg(pid) from pg_stat_activity where application_name like 'llm-app%%'"
    [(before,)] = own_rows(ours)
    # These connections stay, and take no more writes.
    own_rows("alter system set default_transaction_read_only = on")
    own_rows("select pg_reload_conf()")
    try:
        await eventually(lambda: own_rows("show default_transaction_read_only") == [("on",)])
        response = await client.post("/chat", json={"message": "Hi"}, headers=own_tenant.headers)
        assert response.status == 503
        left = "select 1 from pg_stat_activity where pid = any(%s)"
        await eventually(lambda: own_rows(left, before) == [])
    finally:
        own_rows("alter system reset default_transaction_read_only")
        own_rows("select pg_reload_conf()")
    await eventually(lambda: own_rows("show default_transaction_read_only") == [("off",)])
    await server.app[GUARD].beat()  # type: ignore[index]
    response = await client.post("/chat", json={"message": "Hi"}, headers=own_tenant.headers)
    assert response.status == 200
    await eventually(lambda: own_rows(ours)[0][0] and len(own_rows(ours)[0][0]) == 3)


async def test_bell_is_not_listened_for_any_longer_at_a_postgresql_that_hangs(
    start_server: StartServer, postgres: OwnPostgres
) -> None:
    server = await start_server(database_url=postgres.url, db_timeout_s=0.5)
    listening = server.app[BELLS].listening  # type: ignore[index]
    await listening.wait()
    postgres.freeze()
    await eventually(lambda: not listening.is_set())
    postgres.thaw()
    await eventually(listening.is_set)


@pytest.mark.parametrize("given_up", ["set", "listen"])
async def test_bell_whose_statement_postgresql_gives_up_is_lost_and_not_cancelled(
    monkeypatch: pytest.MonkeyPatch, given_up: str
) -> None:
    class Given:
        closed = False

        def cursor(self) -> Given:
            return self

        async def __aenter__(self) -> Given:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def execute(self, text: str) -> None:
            if text.startswith(given_up):
                # As aiopg does for a statement_timeout.
                raise asyncio.CancelledError

        def close(self) -> None:
            self.closed = True

    async def first(*_: object) -> Given:
        return given

    given = Given()
    monkeypatch.setattr("app.storage.connect.first", first)
    database = db.Database("", pool_size=1, timeout_s=1.0)
    with pytest.raises(OSError, match="given up"):
        await anext(database.listen("bell", lambda: None))
    assert given.closed


async def test_log_of_the_embedded_database_holds_no_message_text(
    start_server: StartServer,
    aiohttp_client: Any,
    postgres: OwnPostgres,
    own_folder: Path,
    own_rows: Rows,
    own_tenant: Tenant,
) -> None:
    async def ask() -> int:
        response = await client.post("/chat", json={"message": "Quince"}, headers=own_tenant.headers)
        return response.status  # type: ignore[no-any-return]

    client = await aiohttp_client(await start_server(database_url=postgres.url, db_timeout_s=1.0))
    log = own_folder / "log"
    begin = log.stat().st_size

    def logged(line: str) -> bool:
        return line.encode() in log.read_bytes()[begin:]

    # What is slow, waits or is refused.
    own_rows("alter table messages add constraint sober check (content <> 'Quince') not valid")
    assert await ask() == 500
    own_rows("alter table messages drop constraint sober")
    assert logged('violates check constraint "sober"')
    with own_rows.locked("chats"):
        assert await ask() == 503
    await eventually(lambda: logged("canceling statement due to"))
    # Two statements that wait for each other.
    own_rows("set deadlock_timeout = '10ms'")
    own_rows("select pg_advisory_lock(1)")
    with closing(Rows(postgres.url)) as other:
        other("select pg_advisory_lock(2)")
        waiting = asyncio.create_task(asyncio.to_thread(other, "select 'Quince', pg_advisory_lock(1)"))
        await eventually(lambda: own_rows("select 1 from pg_locks where not granted") != [])
        with suppress(psycopg2.errors.DeadlockDetected):
            own_rows("select 'Quince', pg_advisory_lock(2)")
        own_rows("select pg_advisory_unlock_all()")
        with suppress(psycopg2.errors.DeadlockDetected):
            await waiting
    assert logged("deadlock detected")
    # One that is running in a process that crashes, and all others with it. There is a connection: a new one
    # would wait for the table before that, to prepare the statements.
    assert (await client.get("/chats", headers=own_tenant.headers)).status == 200
    own_rows("begin")
    own_rows("lock table chats in exclusive mode")
    asked = [asyncio.create_task(ask())]
    waits = "select pid from pg_stat_activity where wait_event_type = 'Lock' and query like 'execute turn_open%%'"

    def waiting() -> Any:
        if asked[-1].done():
            # Too soon after what was before, and so answered with 503, or by now in vain.
            asked.append(asyncio.create_task(ask()))
        # In a transaction, PostgreSQL shows the same activity again and again, unless it is told to look.
        own_rows("select pg_stat_clear_snapshot()")
        return own_rows(waits)

    [(pid,)] = await eventually(waiting)
    psutil.Process(pid).kill()
    assert await asked[-1] == 503
    await eventually(lambda: logged("was terminated by signal 9") and logged("ready to accept connections"))
    assert b"Quince" not in log.read_bytes()


async def test_turn_opened_after_nobody_waited_for_it_any_longer_is_taken_back(
    start_server: StartServer, aiohttp_client: Any, postgres: OwnPostgres, own_rows: Rows, own_tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(database_url=postgres.url, db_timeout_s=0.5))
    assert (await client.get("/chats", headers=own_tenant.headers)).status == 200
    # The next statement goes to one of these, which will run it late.
    backends = [
        psutil.Process(pid)
        for (pid,) in own_rows("select pid from pg_stat_activity where application_name = 'llm-app'")
    ]
    for backend in backends:
        backend.suspend()
    response = await client.post("/chat", json={"message": "Hi"}, headers=own_tenant.headers)
    assert response.status == 503
    for backend in backends:
        backend.resume()
    idle = "select count(*) from pg_stat_activity where application_name = 'llm-app' and state <> 'idle'"
    await eventually(lambda: own_rows(idle) == [(0,)] and own_rows.messages(own_tenant.org_id) == [])


@pytest.fixture
def lose_answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Let a server's next open be stored, and its answer be lost."""

    def lose(server: Any) -> None:
        store = server.app[STORE]
        turn_open = store.turn_open

        async def open_and_lose(**params: Any) -> Any:
            monkeypatch.setattr(store, "turn_open", turn_open)
            assert (await turn_open(**params)).chat_id is not None
            raise db.DatabaseAway(sent=True)

        monkeypatch.setattr(store, "turn_open", open_and_lose)

    return lose


async def test_turn_whose_answer_was_lost_is_taken_back_and_its_key_is_free(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, lose_answer: Callable[[Any], None]
) -> None:
    server = await start_server(model=says("word"))
    client = await aiohttp_client(server)
    headers = tenant.headers | {"Idempotency-Key": "one"}
    lose_answer(server)
    assert (await client.post("/chat", json={"message": "Hi"}, headers=headers)).status == 503
    await eventually(lambda: rows("select count(*) from chats where org_id = %s", tenant.org_id) == [(0,)])
    assert rows.messages(tenant.org_id) == []
    assert rows("select count(*) from turn_keys where org_id = %s", tenant.org_id) == [(0,)]
    answer = await client.post("/chat", json={"message": "Hi"}, headers=headers)
    assert (answer.status, (await answer.json())["reply"]) == (200, "word")


async def test_turn_whose_answer_was_lost_leaves_its_chat_as_it_was(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, lose_answer: Callable[[Any], None]
) -> None:
    server = await start_server(model=says("word"))
    client = await aiohttp_client(server)
    answer = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)
    question = {"message": "And?", "chat_id": (await answer.json())["chat_id"]}
    before = rows.messages(tenant.org_id)
    lose_answer(server)
    assert (await client.post("/chat", json=question, headers=tenant.headers)).status == 503
    await eventually(lambda: rows.messages(tenant.org_id) == before)
    assert (await client.post("/chat", json=question, headers=tenant.headers)).status == 200
    assert len(rows.messages(tenant.org_id)) == 4
    assert rows("select message_count from chats where org_id = %s", tenant.org_id) == [(4,)]


@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_question_asked_again_before_its_turn_is_taken_back_is_told_so_and_then_answered(
    start_server: StartServer,
    aiohttp_client: Any,
    rows: Rows,
    tenant: Tenant,
    lose_answer: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    first, second = [await start_server(model=says("word")) for _ in range(2)]
    store, may_undo = first.app[STORE], asyncio.Event()  # type: ignore[index]
    turn_undo = store.turn_undo

    async def undo_late(**params: Any) -> bool:
        await may_undo.wait()
        return bool(await turn_undo(**params))

    monkeypatch.setattr(store, "turn_undo", undo_late)
    lose_answer(first)
    headers = tenant.headers | {"Idempotency-Key": "one"}
    client, elsewhere = await aiohttp_client(first), await aiohttp_client(second)
    assert (await client.post(path, json={"message": "Hi"}, headers=headers)).status == 503
    finds = asyncio.Event()
    reply_find = second.app[STORE].reply_find  # type: ignore[index]

    async def find(**params: Any) -> Any:
        row = await reply_find(**params)
        finds.set()
        return row

    monkeypatch.setattr(second.app[STORE], "reply_find", find)  # type: ignore[index]
    again = asyncio.create_task(elsewhere.post(path, json={"message": "Hi"}, headers=headers))
    await finds.wait()
    may_undo.set()
    answer = await again
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert (await answer.json())["message"] == "The question was not stored; ask again."
    answer = await elsewhere.post(path, json={"message": "Hi"}, headers=headers)
    assert answer.status == 200
    await answer.read()
    assert rows.messages(tenant.org_id) == [("user", "Hi", "complete"), ("assistant", "word", "complete")]


async def test_start_of_a_second_server_leaves_the_streams_of_the_first_alone(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()

    async def two_words(conversation: Any) -> Any:
        async for piece in model(conversation):
            yield piece
            if model.said == 2:
                return

    client = await aiohttp_client(await start_server(model=two_words))
    stream = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    model.go()
    await stream.content.readuntil(b"\n\n")
    second = await start_server()
    for _ in range(GIVE_UP_AFTER + 1):
        await second.app[GUARD].look()  # type: ignore[index]
    assert rows.messages(tenant.org_id)[1][2] == "streaming"
    model.go()
    assert events(b"\n\n" + await stream.read())[-1]["fullText"] == "word word "
    assert rows.messages(tenant.org_id)[1] == ("assistant", "word word ", "complete")


async def test_server_that_loses_its_lock_for_a_moment_keeps_its_replies(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.server.GUARD_S", 3600)
    model = Gated()
    first = await start_server(model=model)
    client = await aiohttp_client(first)
    stream = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    model.go()
    await stream.content.readuntil(b"\n\n")
    second = (await start_server()).app[GUARD]  # type: ignore[index]
    first_id = first.app[BELLS].server_id  # type: ignore[index]
    held = "select pid from pg_locks where locktype = 'advisory' and (classid::bigint << 32 | objid::bigint) = %s"
    for lost in (True, True, False, True, True, True):
        if lost:
            rows("select pg_terminate_backend(pid) from (" + held + ") as held", first_id)
            await eventually(lambda: rows(held, first_id) == [])
        else:
            await first.app[GUARD].beat()  # type: ignore[index]
        await second.look()
        assert rows.messages(tenant.org_id)[1][2] == "streaming"
    await second.look()
    assert rows.messages(tenant.org_id)[1][2] == "interrupted"


async def test_reply_that_others_have_closed_stays_as_they_closed_it(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    model = Gated(pieces=["one ", "two"])
    client = await aiohttp_client(await start_server(model=model))
    stream = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    model.go()
    await stream.content.readuntil(b"\n\n")
    rows(
        "update messages set status = 'interrupted', finished_at = now()"
        " where status = 'streaming' and org_id = %s",
        tenant.org_id,
    )
    model.go()
    last = events(b"\n\n" + await stream.read())[-1]
    # The client has more than others have left.
    assert last["error"] == "Bad offset"
    assert rows.messages(tenant.org_id)[1] == ("assistant", "", "interrupted")
    url = f"/chat/stream/{stream.headers['x-message-id']}"
    stopped = await client.delete(url, headers=tenant.headers)
    assert (await stopped.json())["status"] == "interrupted"


async def test_lock_that_shows_a_server_lives_is_taken_again_after_its_connection_was_lost(
    start_server: StartServer, rows: Rows
) -> None:
    server = await start_server()
    server_id = server.app[BELLS].server_id  # type: ignore[index]
    held = "select pid from pg_locks where locktype = 'advisory' and (classid::bigint << 32 | objid::bigint) = %s"
    [(pid,)] = rows(held, server_id)
    rows("select pg_terminate_backend(%s)", pid)
    await eventually(lambda: rows(held, server_id) == [])
    await server.app[GUARD].beat()  # type: ignore[index]
    assert len(rows(held, server_id)) == 1


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has all these options")
async def test_connections_over_tcp_are_given_up_by_both_sides_10_s_after_the_other_machine_died(
    start_server: StartServer, postgres: OwnPostgres
) -> None:
    with postgres.on_tcp() as url:
        server = await start_server(database_url=url)
        database = server.app[DATABASE]  # type: ignore[index]
        for pool, locks in ((database._guard, 1), (database._pool, 0)):
            session = await pool.take()
            # What PostgreSQL shows of these is what its socket has.
            await session.cursor.execute(
                "select (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),"
                " (select json_object_agg(name, setting) from pg_settings where name like 'tcp\\_%')"
            )
            assert await session.cursor.fetchall() == [
                (
                    locks,
                    {
                        "tcp_keepalives_idle": "4",
                        "tcp_keepalives_interval": "2",
                        "tcp_keepalives_count": "3",
                        "tcp_user_timeout": "10000",
                    },
                )
            ]
            with socket.socket(fileno=os.dup(session.connection.raw.fileno())) as ours:
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
                assert [ours.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [4, 2, 3, 10_000]
            pool.give_back(session)
        await server.close()


def test_migration_that_is_cut_off_before_it_is_noted_is_made_again(
    postgres_url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows("create database cut_off")
    url = postgres_url.replace("/llm_app", "/cut_off")
    mark_one = DatabaseBackend.mark_one
    cuts = iter([False, True])

    def cut_off(backend: Any, migration: Any, *args: Any, **kwargs: Any) -> None:
        if next(cuts, False):
            raise SystemExit
        mark_one(backend, migration, *args, **kwargs)

    monkeypatch.setattr(DatabaseBackend, "mark_one", cut_off)
    with pytest.raises(SystemExit):
        migrations.migrate(url, timeout_s=5)
    migrations.migrate(url, timeout_s=5)
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from _yoyo_migration")
        assert cursor.fetchall() == [(len(list((SQL / "schema").glob("*.sql"))),)]
    rows("drop database cut_off")


def test_malformed_url_is_one_line_without_the_password() -> None:
    with pytest.raises(StartError) as caught:
        migrations.migrate("postgresql://app:100%secret@h/d", timeout_s=2)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_user_who_may_not_create_tables_is_told_so(postgres_url: str, rows: Rows) -> None:
    rows("create database bare")
    rows("create role reader login")
    with pytest.raises(StartError, match="may its user create tables"):
        migrations.migrate(postgres_url.replace("postgres:@/llm_app", "reader:@/bare"), timeout_s=5)
    rows("drop database bare")
    rows("drop role reader")


async def test_schema_changed_under_a_running_server_costs_no_request(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server())
    assert (await client.get("/chats", headers=tenant.headers)).status == 200
    rows("alter table chats alter title type varchar(500)")
    try:
        assert (await client.get("/chats", headers=tenant.headers)).status == 200
    finally:
        rows("alter table chats alter title type text")


async def test_schema_changed_under_several_connections_costs_no_request(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server())
    with rows.locked("chats", "access exclusive"):
        answers = [asyncio.ensure_future(client.get("/chats", headers=tenant.headers)) for _ in range(4)]
        await eventually(lambda: rows.waiting() == 4)
    assert [(await answer).status for answer in answers] == [200] * 4
    rows("alter table chats alter title type varchar(500)")
    try:
        assert (await client.get("/chats", headers=tenant.headers)).status == 200
    finally:
        rows("alter table chats alter title type text")


async def test_reply_that_the_database_refuses_has_failed_and_its_chat_is_free(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    client = await aiohttp_client(await start_server(model=says("Quince")))
    rows("alter table messages add constraint sober check (content <> 'Quince') not valid")
    try:
        stream = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
        assert events(await stream.read())[-1]["error"] == "Bad offset"
        plain = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)
        assert plain.status == 502
    finally:
        rows("alter table messages drop constraint sober")
    assert [status for _, _, status in rows.messages(tenant.org_id)] == ["complete", "failed"] * 2
    assert len(logged(caplog, "Reply not saved")) == 2
    assert "Quince" not in caplog.text
    question = {"message": "And?", "chat_id": stream.headers["x-chat-id"]}
    assert (await client.post("/chat", json=question, headers=tenant.headers)).status == 200
