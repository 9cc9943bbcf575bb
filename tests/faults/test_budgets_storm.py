"""Budgets while everything happens to those who use them; and what clients make of being refused."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import pytest
from ledger import FULL, LONG, SEED, Ledger, Server, all_ended, broken_invariants, ledger, scale
from support import Rows, Tenant, eventually
from test_storm import ask_and_stop, ask_in_a_shared_chat, kill_server, terminate

STORM_S = scale(3, 60)
USERS = 10
CLIENTS_OF_A_USER = 3
MAX_TOKENS = 400

# What a server may log as an error: whose connections are cut cannot save a reply at once, and tries again.
ALLOWED = ('"message": "Reply not stored yet"',)


async def read(clients: Ledger) -> None:
    await clients.ask(clients.entry(clients.rng.choice(["Hi", LONG])))


async def read_in_part(clients: Ledger) -> None:
    await clients.ask(clients.entry(LONG), cut_after=clients.rng.randint(1, 100))


async def ask_for_all(clients: Ledger) -> None:
    await clients.ask_for_all(clients.entry("Hi"))


KINDS = [read, read_in_part, ask_for_all, ask_and_stop, ask_in_a_shared_chat]


class Budgets:
    """One of an org, and one of each of its users."""

    def __init__(self, rows: Rows, tenants: list[Tenant], rng: random.Random) -> None:
        self._rows, self._rng, self._org_id = rows, rng, tenants[0].org_id
        self._owners = [None, *(tenant.user_id for tenant in tenants)]
        for owner in self._owners:
            self._give(owner)

    def _give(self, owner: str | None) -> None:
        units = MAX_TOKENS * (CLIENTS_OF_A_USER * USERS if owner is None else CLIENTS_OF_A_USER) * Decimal("0.7")
        period = "month" if owner is None else "day"
        insert = "insert into budgets (org_id, user_id, period, units) values (%s, %s, %s, %s)"
        self._rows(insert, self._org_id, owner, period, units)

    def raise_one(self) -> None:
        owner = self._rng.choice([None, *self._owners])
        self._rows(
            "update budgets set units = units + %s where org_id = %s and user_id is not distinct from %s",
            MAX_TOKENS * (5 if owner is None else 2),
            self._org_id,
            owner,
        )

    def replace_one(self) -> None:
        owner = self._rng.choice(self._owners)
        self._rows(
            "delete from budgets where org_id = %s and user_id is not distinct from %s", self._org_id, owner
        )
        self._give(owner)

    def exceeded(self) -> list[Any]:
        return self._rows("select * from budgets where used + reserved > units * 1000000")

    def reserved(self) -> Any:
        [(reserved,)] = self._rows("select sum(reserved) from budgets")
        return reserved


def deadlocks(rows: Rows) -> Any:
    [(count,)] = rows("select deadlocks from pg_stat_database where datname = current_database()")
    return count


@pytest.mark.timeout(STORM_S + 120)
async def test_budgets_add_up_and_are_never_exceeded_whatever_happens(
    serve: Callable[..., Server], own_rows: Rows, say: Callable[..., None]
) -> None:
    # Shown with what fails.
    print(f"FAULTS_SEED={SEED}")
    servers = [
        serve(
            **{"MODEL_MAX_TOKENS": str(MAX_TOKENS), "CHECKPOINT_S": "0.2", "RESUME_WINDOW_S": "0.5"},
            **{"WRITE_TIMEOUT_S": "1", "SHUTDOWN_GRACE_S": "1", "DB_TIMEOUT_S": "5"},
        )
        for _ in range(3)
    ]
    rng, over, faults = random.Random(f"budgets {SEED}"), asyncio.Event(), Counter[str]()
    first = own_rows.tenant()
    tenants = [first, *(own_rows.tenant(first.org_id) for _ in range(USERS - 1))]
    budgets, deadlocks_before = Budgets(own_rows, tenants, rng), deadlocks(own_rows)

    async def talk(clients: Ledger) -> None:
        while not over.is_set():
            await clients.rng.choice(KINDS)(clients)
            await asyncio.sleep(0.02)

    async def watch() -> None:
        while not over.is_set():
            assert budgets.exceeded() == []
            if rng.random() < 0.3:
                budgets.raise_one()
            elif rng.random() < 0.02:
                budgets.replace_one()
                faults["replaced"] += 1
            await asyncio.sleep(0.05)

    async def fault() -> None:
        until_s = time.monotonic() + STORM_S
        while time.monotonic() < until_s:
            await asyncio.sleep(rng.uniform(0.2, 0.6))
            if rng.random() < 0.4:
                await kill_server(rng.choice(servers), rng)
                faults["killed"] += 1
            else:
                # Some questions are opened then whose servers are not told, and so taken back.
                terminate(own_rows)
                faults["cut off"] += 1
        over.set()

    async with AsyncExitStack() as stack:
        users = [
            await stack.enter_async_context(ledger(servers, tenant, SEED * USERS + at))
            for at, tenant in enumerate(tenants)
        ]
        async with asyncio.TaskGroup() as storm:
            for clients in users * CLIENTS_OF_A_USER:
                storm.create_task(talk(clients))
            storm.create_task(watch())
            storm.create_task(fault())
        await all_ended(own_rows)
        ends = sum((Counter(clients.compare(own_rows)) for clients in users), Counter[str]())
    statuses = sum((clients.statuses for clients in users), Counter[int | None]())
    spent = own_rows("select count(*) from messages where reason = 'budget'")[0][0]
    say(answers=dict(statuses), ends=dict(ends), spent=spent, faults=dict(faults))
    assert set(statuses) <= {200, 204, 402, 404, 409, 429, 502, 503, None}
    if FULL:
        # It has met with all that it is about.
        assert {200, 402, 429} <= set(statuses)
        assert min(ends["complete"], ends["stopped"], ends["disconnected"], ends["interrupted"], spent) > 0
    assert (budgets.exceeded(), budgets.reserved()) == ([], 0)
    assert broken_invariants(servers[0].database) == {}
    # Those of killed servers, too: by what their rows have.
    assert (
        own_rows(
            "select * from messages where budgets is not null"
            " and charged <> 1000000 * (coalesce(input_tokens, 0) + coalesce(output_tokens, 0))"
        )
        == []
    )
    assert deadlocks(own_rows) == deadlocks_before
    assert [
        line for server in servers for line in server.errors() if not any(message in line for message in ALLOWED)
    ] == []


@pytest.mark.skipif(not FULL, reason="make faults alone: it installs large libraries")
async def test_libraries_of_providers_repeat_what_waits_for_a_reply_to_end_and_not_what_is_spent(
    serve: Callable[..., Server], own_rows: Rows
) -> None:
    """Their own rule, on this server's own answers."""
    import anthropic
    import openai

    server = serve(MODEL_MAX_TOKENS=str(MAX_TOKENS))
    tenant = own_rows.tenant()
    budget = "insert into budgets (org_id, user_id, period, units, reserved, window_start)"
    budget += " values (%s, %s, 'day', %s, %s, date_trunc('day', now(), 'UTC'))"
    total = 0

    def requests() -> int:
        return server.log().count('"path": "/chat"')

    for client_class, errors in ((openai.OpenAI, openai), (anthropic.Anthropic, anthropic)):
        with client_class(api_key="x", base_url=server.base, max_retries=1) as client:
            for reserved, status, asked in ((0, 402, 1), (2 * MAX_TOKENS, 429, 2)):
                own_rows("delete from budgets where org_id = %s", tenant.org_id)
                own_rows(budget, tenant.org_id, tenant.user_id, reserved, reserved * 1_000_000)
                with pytest.raises(errors.APIStatusError) as refused:
                    await asyncio.to_thread(
                        *(client.post, "/chat"),
                        body={"message": "Hi"},
                        cast_to=object,
                        options={"headers": tenant.headers},
                    )
                assert refused.value.status_code == status
                total += asked
                # Lines come in order, but a moment later; one too many would be in the way of the next.
                await eventually(lambda: requests() == total)  # noqa: B023
    own_rows("delete from budgets where org_id = %s", tenant.org_id)
