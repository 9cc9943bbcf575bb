"""Many servers on one database: what their leases, their looks for dead ones and their bells cost PostgreSQL."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from statistics import median
from uuid import uuid4

import psutil
import pytest
from ledger import Server, scale
from serving import OwnPostgres
from support import Rows, Tenant

from app.parsers import TOKEN
from app.replies.bells import Call, bell
from app.replies.guard import SILENCE_S
from app.storage.db import Database
from app.storage.store import Store

SERVERS = scale(3, 50)
WINDOW_S = scale(0.5, 20.0)
# How often each of them rings, a second. 0: nobody reads at another server than a reply's home. 10: as often as a
# home rings at most, however many do.
RINGS = scale((10,), (0, 1, 10))

HOLDERS = (
    "select classid::bigint << 32 | objid::bigint from pg_locks"
    " where locktype = 'advisory' and objsubid = 1 and granted"
)


@pytest.fixture
def room(postgres: OwnPostgres, own_rows: Rows) -> Iterator[Rows]:
    """PostgreSQL with room for three connections of each: while nobody asks, the guard's, the bell's, a pool's."""
    own_rows(f"alter system set max_connections = {3 * SERVERS + 50}")
    postgres.kill()
    postgres.start()
    with closing(Rows(postgres.url)) as rows:
        yield rows


@pytest.mark.timeout(600)
async def test_leases_of_many_servers_hold_and_cost_little(
    postgres: OwnPostgres, room: Rows, tmp_path: Path, say: Callable[..., None]
) -> None:
    servers: list[Server] = []
    try:
        with ThreadPoolExecutor(4) as starts:
            servers += starts.map(lambda i: Server(postgres.url, tmp_path / f"{i}.log"), range(SERVERS))
        await live(postgres, room, say)
    finally:
        for server in servers:
            server.close()
    assert [server.errors() for server in servers] == [[]] * SERVERS


async def live(postgres: OwnPostgres, rows: Rows, say: Callable[..., None]) -> None:
    ids = [server_id for (server_id,) in rows(HOLDERS)]
    assert len(ids) == SERVERS
    tenant = rows.tenant()
    for server_id in ids:
        add_running(rows, tenant, server_id)
    database = Database(postgres.url, pool_size=10, timeout_s=5.0)
    for rings in RINGS:
        cost = await measure(postgres, Store(database), ids, rings)
        say(servers=SERVERS, rings_each=rings, **{name: f"{figure:.3g}" for name, figure in cost.items()})
        assert cost["cores"] < 1.0
        # All keep up with hearing.
        [(usage,)] = rows("select pg_notification_queue_usage()")
        assert usage < 0.001
    await database.close()
    running = "select count(*) from messages where status = 'streaming'"
    # Not one was taken for dead meanwhile.
    assert rows(running) == [(SERVERS,)]


def add_running(rows: Rows, tenant: Tenant, server_id: int) -> None:
    """Store a reply that a server has running."""
    rows(
        "with chat as (insert into chats (org_id, id, user_id, title, message_count)"
        " values (%s, gen_random_uuid(), %s, 'Hi', 2) returning org_id, id)"
        " insert into messages (org_id, id, chat_id, position, role, content, status, server_id)"
        " select org_id, gen_random_uuid(), id, 2, 'assistant', '', 'streaming', %s from chat",
        *(tenant.org_id, tenant.user_id, server_id),
    )


async def measure(postgres: OwnPostgres, store: Store, ids: Sequence[int], rings: int) -> dict[str, float]:
    """Return cores of CPU that PostgreSQL has taken, bells a second, and milliseconds of one server's look."""
    looks_ms: list[float] = []
    ringing = asyncio.create_task(ring(store, ids, rings * len(ids)))
    began_s, before_s = time.monotonic(), cpu_s(postgres)
    while (took_s := time.monotonic() - began_s) < WINDOW_S:
        asked_at_s = time.monotonic()
        await store.turn_interrupt(given_up=[], silence_s=SILENCE_S, **TOKEN._asdict())
        looks_ms.append((time.monotonic() - asked_at_s) * 1000)
        await asyncio.sleep(0.2)
    ringing.cancel()
    [rung] = await asyncio.gather(ringing)
    return {"cores": (cpu_s(postgres) - before_s) / took_s, "bells": rung / took_s, "look_ms": median(looks_ms)}


def cpu_s(postgres: OwnPostgres) -> float:
    """Return the CPU time of all its processes, those that have ended too."""
    postmaster, *others = postgres.processes()
    total: float = sum(postmaster.cpu_times()[:4])
    for process in others:
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


async def ring(store: Store, ids: Sequence[int], a_second: int) -> int:
    """Ring servers in turn, by a statement each, until cancelled; return how many bells."""
    rung = 0

    async def ring_one(server_id: int) -> None:
        nonlocal rung
        channel, payload = bell(server_id, Call("said", str(uuid4()), server_id))
        rung += (await store.server_call(channels=[channel], payloads=[payload])).rung

    now_s = asyncio.get_running_loop().time
    began_s = now_s()
    try:
        async with asyncio.TaskGroup() as group:
            for i, server_id in enumerate(itertools.cycle(ids) if a_second else ()):
                group.create_task(ring_one(server_id))
                await asyncio.sleep(began_s + i / a_second - now_s())
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    return rung
