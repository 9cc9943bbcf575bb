"""What is old is forgotten in pieces, however much there is."""

from __future__ import annotations

from typing import Any

import pytest
from support import Rows, Tenant

from app.server import sweep
from app.storage.db import Database
from app.storage.store import Store

PIECE = 10_000

OLD = {
    # As after an import: of one moment.
    "turn_keys": "insert into turn_keys (org_id, user_id, key, asked, reply_id, created_at)"
    " select %s, %s, n::text, '', gen_random_uuid(), now() - interval '2 days' from generate_series(1, %s) as n",
    "tickets": "insert into tickets (org_id, user_id, hash, message, created_at)"
    " select %s, %s, n::text::bytea, 'Hi', now() - interval '2 days' from generate_series(1, %s) as n",
}


class NoLimits:
    def forget_old(self) -> None:
        pass


@pytest.fixture
async def store(postgres_url: str) -> Any:
    database = Database(postgres_url, pool_size=1, timeout_s=5.0)
    yield Store(database)
    await database.close()


def add_old(rows: Rows, tenant: Tenant, table: str, count: int) -> None:
    # Keys of replies that are not there.
    rows("set session_replication_role = replica")
    rows(OLD[table], tenant.org_id, tenant.user_id, count)
    rows("set session_replication_role = origin")


def left(rows: Rows, tenant: Tenant, table: str) -> int:
    [(count,)] = rows(f"select count(*) from {table} where org_id = %s", tenant.org_id)
    return int(count)


def note_pieces(store: Store, table: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many rows each statement that forgets some has forgotten, once it has."""
    pieces: list[int] = []
    name = {"turn_keys": "turn_key_sweep", "tickets": "ticket_sweep"}[table]
    forget = getattr(store, name)

    async def noted(**params: Any) -> Any:
        row = await forget(**params)
        pieces.append(row.forgotten)
        return row

    monkeypatch.setattr(store, name, noted)
    return pieces


@pytest.mark.parametrize("table", OLD)
async def test_backlog_is_forgotten_in_pieces(
    store: Store, rows: Rows, tenant: Tenant, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: Any = NoLimits()
    # What other tests have left.
    await sweep(store, limits)
    add_old(rows, tenant, table, 2 * PIECE + 5000)
    pieces = note_pieces(store, table, monkeypatch)
    await sweep(store, limits)
    assert pieces == [PIECE, PIECE, 5000, 0]
    assert left(rows, tenant, table) == 0
    # With nothing to do, one statement for each table.
    await sweep(store, limits)
    assert pieces[4:] == [0]


@pytest.mark.parametrize("table", OLD)
async def test_row_that_another_server_forgets_is_not_waited_for(
    store: Store, rows: Rows, tenant: Tenant, table: str
) -> None:
    limits: Any = NoLimits()
    add_old(rows, tenant, table, 3)
    rows("begin")
    try:
        rows(f"select from {table} where org_id = %s limit 1 for update", tenant.org_id)
        await sweep(store, limits)
        assert left(rows, tenant, table) == 1
    finally:
        rows("commit")
    await sweep(store, limits)
    assert left(rows, tenant, table) == 0
