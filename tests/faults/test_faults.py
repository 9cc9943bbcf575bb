"""What happens to replies when things break: short here, long with `make faults` (FAULTS=full)."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from ledger import (
    CUTS,
    LONG,
    SEED,
    Server,
    all_ended,
    broken_invariants,
    cut,
    expected_text,
    ledger,
    scale,
    under_database_faults,
)
from serving import OwnPostgres
from support import Rows, eventually


@pytest.mark.timeout(900)
async def test_soak_loses_and_repeats_no_token_and_grows_by_nothing(
    serve: Callable[..., Server],
    own_rows: Rows,
    database: str,
    say: Callable[..., None],
) -> None:
    streams, seconds = scale(40, 500), scale(4, 300)
    # Slower in full: one Python process reads all of it.
    server = serve(SIM_DELAY_MS=scale("2-8", "40-80"))
    tenant = own_rows.tenant()
    async with ledger([server], tenant, SEED) as clients:

        async def talk(until: float) -> None:
            while time.monotonic() < until:
                await clients.ask(clients.entry(LONG))

        # What the first streams build stays.
        await asyncio.gather(*(talk(time.monotonic() + seconds / 4) for _ in range(streams)))
        before = server.usage()
        await asyncio.gather(*(talk(time.monotonic() + seconds) for _ in range(streams)))
        after = server.usage()
        assert [entry for entry in clients.entries if not entry.is_done][:3] == []
        assert clients.compare(own_rows) == {"complete": len(clients.entries)}
    say(streams=len(clients.entries), rss=f"{after[0] / before[0]:.3f}x", fds=f"{before[1]}->{after[1]}")
    assert after[0] < before[0] * 1.05
    assert after[1] <= before[1] * 1.05
    assert server.errors() == []
    assert broken_invariants(database) == {}


@pytest.mark.timeout(300)
async def test_clients_cut_in_every_way_leave_final_statuses_and_exact_prefixes(
    serve: Callable[..., Server], own_rows: Rows, database: str, say: Callable[..., None]
) -> None:
    count = scale(80, 2000)
    server = serve(RESUME_WINDOW_S="0.5", WRITE_TIMEOUT_S="2")
    tenant = own_rows.tenant()
    rng = random.Random(SEED)
    at_once = asyncio.Semaphore(200)
    open_ones: list[socket.socket] = []
    loop = asyncio.get_running_loop()
    seen: dict[str, bytes] = {}

    async def one(i: int) -> None:
        async with at_once:
            client = socket.socket()
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            body = f'{{"message": "tell a story {i}"}}'
            await loop.sock_sendall(
                client,
                f"POST /chat/stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode(),
            )
            read, wanted = b"", rng.randint(0, 300)
            while read.count(b"\ndata: ") < wanted and b'"done":true' not in read:
                got = await loop.sock_recv(client, 65536)
                assert got
                read += got
            seen[f"tell a story {i}"] = read
            how = rng.choice(CUTS)
            cut(how, client)
            if how in ("FIN", "RST"):
                client.close()
            open_ones.append(client)

    await asyncio.gather(*(one(i) for i in range(count)))
    await eventually(
        lambda: (
            own_rows("select count(*) from messages where role = 'user' and org_id = %s", tenant.org_id)
            == [(count,)]
        ),
        30,
    )
    await all_ended(own_rows)
    pairs = own_rows(
        "select question.content, reply.content, reply.status from messages as question join messages as reply"
        " on reply.chat_id = question.chat_id and reply.position = 2"
        " where question.org_id = %s and question.position = 1",
        tenant.org_id,
    )
    assert len(pairs) == count
    for question, content, status in pairs:
        assert status in ("complete", "disconnected")
        assert expected_text(question).startswith(content)
        tokens = [
            json.loads(line[6:]).get("token", "")
            for line in seen[question].split(b"\n")
            if line.startswith(b"data: ") and line.endswith(b"}")
        ]
        assert content.startswith("".join(tokens))
    for client in open_ones:
        client.close()
    say(clients=count, disconnected=sum(status == "disconnected" for _, _, status in pairs))
    assert server.errors() == []
    assert broken_invariants(database) == {}


@pytest.mark.timeout(300)
async def test_streams_cut_and_resumed_over_two_servers_are_exact(
    serve: Callable[..., Server], own_rows: Rows, database: str, say: Callable[..., None]
) -> None:
    count = scale(30, 500)
    servers = [serve(), serve()]
    async with ledger(servers, own_rows.tenant(), SEED) as clients:
        entries = [clients.entry(LONG) for _ in range(count)]
        await asyncio.gather(*(clients.until_done(entry, cuts=clients.rng.randint(1, 5)) for entry in entries))
        assert [entry for entry in entries if entry.seen != expected_text(entry.question)] == []
        assert clients.compare(own_rows) == {"complete": count}
    say(streams=count)
    assert [server.errors() for server in servers] == [[], []]
    assert broken_invariants(database) == {}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.timeout(120)
async def test_sigterm_under_load_saves_all_and_tells_each_client(
    serve: Callable[..., Server], own_rows: Rows, database: str, times: int
) -> None:
    count = scale(50, 200)
    server = serve(SIM_DELAY_MS="20-40", SHUTDOWN_GRACE_S="1")
    async with ledger([server], own_rows.tenant(), SEED) as clients:
        entries = [clients.entry(LONG) for _ in range(count)]
        running = [asyncio.create_task(clients.ask(entry)) for entry in entries]
        await eventually(lambda: all(entry.seen for entry in entries))
        began = time.monotonic()
        for _ in range(times):
            server.signal(signal.SIGTERM)
            await asyncio.sleep(0.2 if times > 1 else 0)
        await asyncio.gather(*running)
        assert await asyncio.to_thread(server.end) == 0
        assert time.monotonic() - began < 1 + 5
        assert [entry for entry in entries if entry.last is None] == []
        assert clients.compare(own_rows) == {"interrupted": count}
    assert server.errors() == []
    assert broken_invariants(database) == {}


@pytest.mark.timeout(300)
async def test_killed_servers_lose_no_question_and_the_living_close_their_replies(
    serve: Callable[..., Server], own_rows: Rows, database: str, say: Callable[..., None]
) -> None:
    kills = scale(2, 20)
    servers = [serve(), serve()]
    stop = asyncio.Event()
    async with ledger(servers, own_rows.tenant(), SEED) as clients:

        async def talk() -> None:
            while not stop.is_set():
                await clients.until_done(clients.entry(LONG), cuts=clients.rng.randint(0, 2))

        load = [asyncio.create_task(talk()) for _ in range(20)]
        for i in range(kills):
            await asyncio.sleep(0.5)
            victim = servers[i % 2]
            victim.signal(signal.SIGKILL)
            await asyncio.to_thread(victim.end)
            await asyncio.to_thread(victim.start)
        stop.set()
        await asyncio.gather(*load)
        await all_ended(own_rows)
        counts = clients.compare(own_rows)
    say(kills=kills, **counts)
    assert counts["interrupted"] > 0
    assert broken_invariants(database) == {}


@pytest.mark.timeout(600)
async def test_questions_of_a_chat_at_several_servers_each_know_the_turn_before(
    serve: Callable[..., Server], own_rows: Rows, database: str, say: Callable[..., None]
) -> None:
    turns, chats = scale(400, 5000), scale(3, 3)
    servers = [serve(SIM_DELAY_MS="0-0") for _ in range(scale(2, 4))]
    async with ledger(servers, own_rows.tenant(), SEED) as clients:
        for chat in range(chats):
            first = clients.entry("Hi")
            await clients.ask_for_all(first)
            clients.shared[chat] = first.chat_id

        async def talk() -> None:
            while len(clients.entries) < turns:
                entry = clients.entry("Hi", clients.shared[clients.rng.randrange(chats)])
                while entry.status != 200:
                    await clients.ask_for_all(entry)
                    assert entry.status in (200, 409), entry

        await asyncio.gather(*(talk() for _ in range(12)))
        counts = clients.compare(own_rows)
    say(**counts, refused=clients.statuses[409])
    assert counts == {"complete": len(clients.entries)}
    assert broken_invariants(database) == {}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("cut_off", [True, False])
async def test_server_that_was_frozen_says_no_word_of_a_reply_that_others_have_closed(
    serve: Callable[..., Server], own_rows: Rows, database: str, cut_off: bool
) -> None:
    frozen, living = serve(SIM_DELAY_MS="50-50"), serve()
    async with ledger([living], own_rows.tenant(), SEED) as clients:
        entry = clients.entry(LONG)
        asked = asyncio.create_task(clients.ask(entry, base=frozen.base))
        await eventually(lambda: entry.seen)
        frozen.signal(signal.SIGSTOP)
        try:
            if cut_off:
                # Its lock is gone at once; the others connect again.
                ours = "application_name like 'llm-app%%'"
                own_rows(f"select pg_terminate_backend(pid) from pg_stat_activity where {ours}")
            status = "select status from messages where id = %s"
            await eventually(lambda: own_rows(status, entry.reply_id) == [("interrupted",)], timeout_s=20)
            await clients.stop(entry)
            assert entry.told == "interrupted"
            newer = clients.entry("Hi", entry.chat_id)
            await clients.ask(newer)
            assert newer.is_done
            stored = own_rows("select content from messages where id = %s", entry.reply_id)
            seen = entry.seen
        finally:
            frozen.signal(signal.SIGCONT)
        await asked
        assert entry.seen == seen
        # Its client has more than was stored by then.
        assert entry.last is not None
        assert entry.last["error"] == "Bad offset"
        await clients.stop(entry)
        assert entry.told == "interrupted"
        assert own_rows("select content from messages where id = %s", entry.reply_id) == stored
        assert clients.compare(own_rows) == {"interrupted": 1, "complete": 1}
    assert broken_invariants(database) == {}


@pytest.mark.timeout(300)
async def test_terminated_connections_are_replaced_and_nothing_acknowledged_is_lost(
    serve: Callable[..., Server], own_rows: Rows, database: str, say: Callable[..., None]
) -> None:
    async def terminate() -> None:
        own_rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'llm-app%%'")
        await asyncio.sleep(scale(0.3, 1))

    clients = await under_database_faults([serve(), serve()], own_rows, terminate, times=scale(3, 20))
    await all_ended(own_rows)
    counts = clients.compare(own_rows)
    say(**counts)
    assert counts["complete"] > 0
    assert broken_invariants(database) == {}


@pytest.mark.timeout(300)
async def test_frozen_database_is_a_clean_503_and_recovery_needs_no_restart(
    serve: Callable[..., Server], own_rows: Rows, postgres: OwnPostgres, say: Callable[..., None]
) -> None:
    async def freeze() -> None:
        postgres.freeze()
        try:
            await asyncio.sleep(scale(2, 20))
        finally:
            postgres.thaw()

    clients = await under_database_faults([serve(DB_TIMEOUT_S="1")], own_rows, freeze)
    await all_ended(own_rows)
    counts = clients.compare(own_rows)
    say(**counts)
    assert broken_invariants(postgres.url) == {}


@pytest.mark.timeout(300)
async def test_killed_database_is_found_again_and_nothing_acknowledged_is_lost(
    serve: Callable[..., Server], own_rows: Rows, postgres: OwnPostgres, say: Callable[..., None]
) -> None:
    """Without fsync, too: what its processes have written is the kernel's."""

    async def kill() -> None:
        await asyncio.to_thread(postgres.kill)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(postgres.start)

    kills = scale(1, 10)
    clients = await under_database_faults([serve(), serve()], own_rows, kill, times=kills)
    with closing(Rows(postgres.url)) as rows:
        await all_ended(rows)
        counts = clients.compare(rows)
    say(kills=kills, **counts)
    assert counts["complete"] > 0
    assert broken_invariants(postgres.url) == {}


@pytest.mark.timeout(120)
async def test_pool_of_two_serves_many_streams(
    serve: Callable[..., Server], own_rows: Rows, database: str, say: Callable[..., None]
) -> None:
    count = scale(100, 500)
    server = serve(DB_POOL_SIZE="2")
    async with ledger([server], own_rows.tenant(), SEED) as clients:
        entries = [clients.entry("Hi") for _ in range(count)]
        await asyncio.gather(*(clients.ask(entry) for entry in entries))
        assert all(entry.is_done for entry in entries)
        longest = max(entry.first_word_s or 99 for entry in entries)
        assert clients.compare(own_rows) == {"complete": count}
    say(streams=count, first_word_max=f"{longest:.2f}s")
    assert longest < 5
    assert server.errors() == []
    assert broken_invariants(database) == {}
