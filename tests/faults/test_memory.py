"""Large answers: what those held that are dropped is given back, and what is streamed is not held at all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aiohttp import ClientSession
from ledger import Server, scale
from support import Rows, Tenant, eventually

# The longest question there may be, in the characters that take the most bytes in JSON.
LONGEST = "\U0001f642" * 32_000
MIB = 1024 * 1024


def add_long_chat(rows: Rows, tenant: Tenant, count: int = 50) -> str:
    [(chat_id,)] = rows(
        "with chat as (insert into chats (org_id, id, user_id, title, message_count)"
        " values (%s, gen_random_uuid(), %s, 'Long', %s) returning org_id, id),"
        " said as (insert into messages"
        " (org_id, id, chat_id, position, role, content, status, finished_at, server_id)"
        " select org_id, gen_random_uuid(), chat.id, n, case n %% 2 when 1 then 'user' else 'assistant' end, %s,"
        " 'complete', now(), case n %% 2 when 0 then 1 end from chat, generate_series(1, %s) as n)"
        " select id::text from chat",
        *(tenant.org_id, tenant.user_id, count, LONGEST, count),
    )
    return str(chat_id)


async def test_large_pages_that_are_asked_for_and_dropped_leave_nothing_behind(
    serve: Callable[..., Server], own_rows: Rows, say: Callable[..., None]
) -> None:
    tenant = own_rows.tenant()
    path = f"/chats/{add_long_chat(own_rows, tenant)}/messages"
    server = serve()
    request = (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
        f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n\r\n"
    ).encode()

    async def ask_and_drop() -> None:
        reader, writer = await asyncio.open_connection(server.host, server.port, limit=4096)
        writer.write(request)
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.close()

    for _ in range(5):
        await ask_and_drop()
    before, peak = server.usage()[0], 0
    for _ in range(scale(150, 1500)):
        await ask_and_drop()
        peak = max(peak, server.usage()[0])
    await eventually(lambda: server.usage()[0] < 1.3 * before)
    say(before=f"{before / MIB:.0f}MiB", peak=f"{peak / MIB:.0f}MiB", after=f"{server.usage()[0] / MIB:.0f}MiB")
    assert peak < 300 * MIB
    assert server.errors() == []


async def test_export_of_a_long_chat_is_never_in_memory_as_a_whole(
    serve: Callable[..., Server], own_rows: Rows, say: Callable[..., None]
) -> None:
    tenant = own_rows.tenant()
    count = scale(200, 1600)
    chat_id = add_long_chat(own_rows, tenant, count)
    server = serve()
    before, peak, size, lines = server.usage()[0], 0, 0, 0
    async with (
        ClientSession(read_bufsize=65_536) as session,
        session.get(f"{server.base}/chats/{chat_id}/export", headers=tenant.headers) as response,
    ):
        assert response.status == 200
        async for chunk in response.content.iter_any():
            size, lines = size + len(chunk), lines + chunk.count(b"\n")
            peak = max(peak, server.usage()[0])
    assert lines == 1 + count
    say(size=f"{size / MIB:.0f}MiB", before=f"{before / MIB:.0f}MiB", peak=f"{peak / MIB:.0f}MiB")
    assert peak < before + 40 * MIB
    assert server.errors() == []
