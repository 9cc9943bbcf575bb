"""All faults at once, drawn from one seed (FAULTS_SEED): what holds after each alone holds after all."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress

import aiohttp
import pytest
from ledger import LONG, SEED, Ledger, Server, all_ended, broken_invariants, ledger, scale
from serving import OwnPostgres
from support import Rows

LENGTH_S = scale(8, 600)
CLIENTS = scale(12, 60)

# What a server may log as an error: it tells that the database is away at the very end of a reply.
ALLOWED_ERRORS = {"Reply not stored yet"}


class Storm:
    """Servers on one PostgreSQL, and what is done to them."""

    def __init__(self, servers: list[Server], postgres: OwnPostgres, rng: random.Random) -> None:
        self.servers = servers
        self.postgres = postgres
        self.rng = rng

    def faults(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.kill_server,
            self.terminate_server,
            self.freeze_server,
            self.kill_postgres,
            self.freeze_postgres,
            self.drop_connections,
            self.hold_half_requests,
        ]

    async def kill_server(self) -> None:
        server = self.rng.choice(self.servers)
        server.signal(signal.SIGKILL)
        await asyncio.to_thread(server.end)
        await asyncio.to_thread(server.start)

    async def terminate_server(self) -> None:
        server = self.rng.choice(self.servers)
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.end) == 0
        await asyncio.to_thread(server.start)

    async def freeze_server(self) -> None:
        server = self.rng.choice(self.servers)
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(0.2, scale(0.5, 2.0)))
        server.signal(signal.SIGCONT)

    async def kill_postgres(self) -> None:
        await asyncio.to_thread(self.postgres.kill)
        await asyncio.sleep(self.rng.uniform(0, scale(0.2, 1.0)))
        await asyncio.to_thread(self.postgres.start)

    async def freeze_postgres(self) -> None:
        self.postgres.freeze()
        await asyncio.sleep(self.rng.uniform(0.2, scale(0.5, 2.0)))
        self.postgres.thaw()

    async def drop_connections(self) -> None:
        with closing(Rows(self.postgres.url)) as rows:
            rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'llm-app%%'")

    async def hold_half_requests(self) -> None:
        server = self.rng.choice(self.servers)
        writers = [(await asyncio.open_connection("127.0.0.1", server.port))[1] for _ in range(20)]
        for writer in writers:
            writer.write(b"POST /chat/stream HTTP/1.1\r\nHost: x\r\n")
        await asyncio.sleep(self.rng.uniform(0, scale(0.2, 1.0)))
        for writer in writers:
            writer.close()


async def ask_for_all(clients: Ledger, storm: Storm) -> None:
    """`POST /chat`: whoever is told of a reply finds it stored."""
    entry = clients.entry("Hi")
    url = f"{clients.somewhere()}/chat"
    with suppress(aiohttp.ClientError, TimeoutError):
        async with clients.session.post(
            url, json={"message": entry.question}, headers=clients.tenant.headers
        ) as response:
            entry.status = response.status
            assert response.status in (200, 503), await response.text()
            if response.status == 200:
                body = await response.json()
                entry.reply_id, entry.seen = body["message_id"], body["reply"]
                entry.last = {"done": True}


async def read_to_the_end(clients: Ledger, storm: Storm) -> None:
    await clients.until_done(clients.entry(LONG), cuts=clients.rng.randint(0, 4), patience_s=90)


async def leave(clients: Ledger, storm: Storm) -> None:
    await clients.ask(clients.entry(LONG), cut_after=clients.rng.randint(1, 60))


async def stop_reply(clients: Ledger, storm: Storm) -> None:
    entry = clients.entry(LONG)
    await clients.ask(entry, cut_after=clients.rng.randint(1, 60))
    with suppress(aiohttp.ClientError, TimeoutError):
        async with clients.session.delete(
            f"{clients.somewhere()}/chat/stream/{entry.reply_id}", headers=clients.tenant.headers
        ) as response:
            # 400: there was no reply to stop.
            assert response.status in ((200, 503) if entry.reply_id else (400, 503)), await response.text()


async def look(clients: Ledger, storm: Storm) -> None:
    with suppress(aiohttp.ClientError, TimeoutError):
        async with clients.session.get(
            f"{clients.somewhere()}/chats?limit=5", headers=clients.tenant.headers
        ) as response:
            assert response.status in (200, 503), await response.text()


async def ready(server: Server, clients: Ledger) -> float:
    """Return the seconds until the server takes requests, at most 5."""
    began_s = time.monotonic()
    async with asyncio.timeout(5):
        while True:
            with suppress(aiohttp.ClientError):
                async with clients.session.get(f"{server.base}/ready") as response:
                    if response.status == 200:
                        return time.monotonic() - began_s
            await asyncio.sleep(0.02)


@pytest.mark.timeout(LENGTH_S + 180)
async def test_storm_of_all_faults_breaks_no_promise(
    serve: Callable[..., Server], own_rows: Rows, postgres: OwnPostgres, say: Callable[..., None]
) -> None:
    rng = random.Random(SEED)
    storm = Storm([serve(DB_TIMEOUT_S="2") for _ in range(3)], postgres, rng)
    tenant = own_rows.tenant()
    done: Counter[str] = Counter()
    until_s = time.monotonic() + LENGTH_S
    over = asyncio.Event()
    async with ledger(storm.servers, tenant, SEED) as clients:

        async def talk() -> None:
            behaviors = [read_to_the_end, read_to_the_end, leave, stop_reply, ask_for_all, look]
            while not over.is_set():
                await clients.rng.choice(behaviors)(clients, storm)
                await asyncio.sleep(0.02)

        talkers = [asyncio.create_task(talk()) for _ in range(CLIENTS)]
        faults = storm.faults()
        # Each at least once, in an order of the seed.
        order = rng.sample(faults, len(faults))
        while order or time.monotonic() < until_s:
            fault = order.pop() if order else rng.choice(faults)
            await fault()
            done[fault.__name__] += 1
            await asyncio.sleep(rng.uniform(0.1, 0.5))
        over.set()
        await asyncio.gather(*talkers)
        slowest = max([await ready(server, clients) for server in storm.servers])
        with closing(Rows(postgres.url)) as rows:
            await all_ended(rows)
            counts = clients.compare(rows)
    errors = [json.loads(line) for server in storm.servers for line in server.errors()]
    say(faults=done.total(), entries=len(clients.entries), **counts, slowest_recovery=f"{slowest:.2f}s")
    assert [error for error in errors if error["message"] not in ALLOWED_ERRORS] == []
    assert counts["complete"] > 0
    assert broken_invariants(postgres.url) == {}
