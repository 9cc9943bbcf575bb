"""All faults at once, drawn from one seed: no single one of them is the cause of what only two together break."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress

import aiohttp
import psutil
import psycopg2
import pytest
from ledger import LONG, SEED, DidNotStart, Ledger, Server, all_ended, broken_invariants, ledger, scale
from serving import OwnPostgres
from support import Rows

STORM_S = scale(8, 600)
CLIENTS = scale(10, 30)
SHARED_CHATS = 5
SLOW_CONNECTIONS = scale(20, 100)

# What a server may log as an error: with the database away a reply cannot be saved at once, and is tried again.
ALLOWED = ('"message": "Reply not stored yet"',)


async def start(server: Server) -> None:
    """As a supervisor does: again, where the database was away."""
    while True:
        with suppress(DidNotStart):
            return await asyncio.to_thread(server.start)
        await asyncio.sleep(0.1)


async def kill_server(server: Server, rng: random.Random) -> None:
    server.signal(signal.SIGKILL)
    await asyncio.to_thread(server.end)
    await start(server)


async def stop_server(server: Server, rng: random.Random) -> None:
    server.signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.end) == 0
    await start(server)


async def freeze_server(server: Server, rng: random.Random) -> None:
    server.signal(signal.SIGSTOP)
    await asyncio.sleep(rng.uniform(0.5, 2))
    server.signal(signal.SIGCONT)


async def freeze_server_and_cut_it_off(server: Server, rng: random.Random) -> None:
    """For long enough that the others close its replies."""
    server.signal(signal.SIGSTOP)
    # In a thread: the database may be frozen, and thawed by this very event loop.
    await asyncio.to_thread(cut_off, server.database)
    await asyncio.sleep(rng.uniform(4, 6))
    server.signal(signal.SIGCONT)


def cut_off(database: str) -> None:
    """End all connections; the servers that live connect again."""
    # Where the database is away, the frozen one is cut off as well.
    with (
        suppress(psycopg2.OperationalError),
        closing(psycopg2.connect(database, connect_timeout=2)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'llm-app%'"
        )


async def send_slow_headers(server: Server, rng: random.Random) -> None:
    writers = []
    for _ in range(SLOW_CONNECTIONS):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /chat/stream HTTP/1.1\r\nHost: localhost\r\n")
        writers.append(writer)
    await asyncio.sleep(rng.uniform(0.5, 2))
    for writer in writers:
        writer.close()


async def kill_postgres(postgres: OwnPostgres, rng: random.Random) -> None:
    await asyncio.to_thread(postgres.kill)
    await asyncio.sleep(rng.uniform(0, 2))
    await asyncio.to_thread(postgres.start)


async def freeze_postgres(postgres: OwnPostgres, rng: random.Random) -> None:
    postgres.freeze()
    try:
        await asyncio.sleep(rng.uniform(0.5, 2))
    finally:
        postgres.thaw()


async def kill_connection(postgres: OwnPostgres, rng: random.Random) -> None:
    """PostgreSQL then ends all the others too, and recovers."""
    with closing(await connected(postgres)) as rows:
        for pid in rng.sample(found := connections(rows), min(1, len(found))):
            # It may be over by now.
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()


async def terminate_connections(postgres: OwnPostgres, rng: random.Random) -> None:
    with closing(await connected(postgres)) as rows:
        terminate(rows)


def terminate(rows: Rows) -> None:
    rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'llm-app%%'")


async def connected(postgres: OwnPostgres) -> Rows:
    async with asyncio.timeout(scale(20, 5)):
        while True:
            with suppress(psycopg2.OperationalError):
                return Rows(postgres.url)
            await asyncio.sleep(0.05)


def connections(rows: Rows) -> list[int]:
    return [pid for (pid,) in rows("select pid from pg_stat_activity where application_name like 'llm-app%%'")]


async def read_and_go_on(clients: Ledger) -> None:
    """Two questions in one chat, each asked again and resumed until it has ended."""
    chat_id = None
    for _ in range(2):
        entry = clients.entry(clients.rng.choice(["Hi", LONG]), chat_id)
        await clients.until_done(entry, cuts=clients.rng.randint(0, 3))
        chat_id = entry.chat_id


async def ask_for_all(clients: Ledger) -> None:
    entry = clients.entry("Hi")
    while entry.status not in (200, 502):
        await clients.ask_for_all(entry)
        await asyncio.sleep(0.2)


async def ask_and_stop(clients: Ledger) -> None:
    entry = clients.entry(LONG)
    await clients.ask(entry, cut_after=clients.rng.randint(1, 100))
    while entry.reply_id is not None and entry.told is None:
        await clients.stop(entry)
        await asyncio.sleep(0.2)


async def ask_in_a_shared_chat(clients: Ledger) -> None:
    """Once, where others ask too; often nobody reads the reply to its end."""
    chat = clients.rng.randrange(SHARED_CHATS)
    entry = clients.entry(clients.rng.choice(["Hi", LONG]), clients.shared.get(chat))
    cut_after = clients.rng.choice([None, clients.rng.randint(1, 100)])
    await clients.ask(entry, cut_after=cut_after)
    if entry.reply_id is not None:
        clients.shared.setdefault(chat, entry.chat_id)
        if cut_after is not None and clients.rng.random() < 0.3:
            await clients.stop(entry)


async def list_chats(clients: Ledger) -> None:
    await clients.list_chats()


async def ready(server: Server, session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(scale(20, 5)):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(f"{server.base}/ready") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)


@pytest.mark.timeout(STORM_S + 120)
async def test_storm_of_all_faults_leaves_nothing_open_nothing_lost_and_nothing_made_up(
    serve: Callable[..., Server], own_rows: Rows, postgres: OwnPostgres, say: Callable[..., None]
) -> None:
    # Shown with what fails.
    print(f"FAULTS_SEED={SEED}")
    servers = [
        serve(
            SHUTDOWN_GRACE_S="1",
            DB_TIMEOUT_S="2",
            WRITE_TIMEOUT_S="2",
            KEEPALIVE_TIMEOUT_S="3",
            # In the end, what nobody comes back to is waited for.
            RESUME_WINDOW_S=scale("4", "20"),
        )
        for _ in range(3)
    ]
    began_s, over = time.monotonic(), asyncio.Event()
    faults = 0

    async def weather(
        name: str, kinds: list[Callable[..., Awaitable[None]]], victims: list[Server] | list[OwnPostgres]
    ) -> None:
        """Do all kinds of fault to one victim after the other, in an order of the seed's."""
        nonlocal faults
        rng = random.Random(f"{name} {SEED}")
        while True:
            for kind in rng.sample(kinds, len(kinds)):
                await asyncio.sleep(rng.uniform(0, 1))
                if time.monotonic() > began_s + STORM_S:
                    return
                victim = rng.randrange(len(victims))
                print(f"{time.monotonic() - began_s:.1f} s: {kind.__name__} {victim}")
                await kind(victims[victim], rng)
                faults += 1

    async with ledger(servers, own_rows.tenant(), SEED) as clients:

        async def talk() -> None:
            kinds = [
                read_and_go_on,
                ask_in_a_shared_chat,
                ask_in_a_shared_chat,
                ask_for_all,
                ask_and_stop,
                list_chats,
            ]
            while not over.is_set():
                await clients.rng.choice(kinds)(clients)
                await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as load:
            for _ in range(CLIENTS):
                load.create_task(talk())
            async with asyncio.TaskGroup() as storm:
                server_faults = [
                    kill_server,
                    stop_server,
                    freeze_server,
                    freeze_server_and_cut_it_off,
                    send_slow_headers,
                ]
                storm.create_task(weather("servers", server_faults, servers))
                database_faults = [kill_postgres, freeze_postgres, kill_connection, terminate_connections]
                storm.create_task(weather("database", database_faults, [postgres]))
            await asyncio.gather(*(ready(server, clients.session) for server in servers))
            over.set()
        with closing(await connected(postgres)) as rows:
            await all_ended(rows)
            counts = clients.compare(rows)
    say(faults=faults, answers=dict(clients.statuses), **counts)
    assert set(clients.statuses) <= {200, 204, 409, 502, 503, None}
    assert counts["complete"] > 0
    assert [
        line for server in servers for line in server.errors() if not any(message in line for message in ALLOWED)
    ] == []
    assert broken_invariants(postgres.url) == {}
