"""Large answers, asked for and dropped: what they held is given back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from ledger import Server, scale
from support import Rows, Tenant, eventually

# The longest question there may be, in the characters that take the most bytes in JSON.
LONGEST = "\U0001f642" * 32_000
MIB = 1024 * 1024


def add_long_chat(rows: Rows, tenant: Tenant) -> str:
    [(chat_id,)] = rows(
        "with chat as (insert into chats (org_id, id, user_id, title, message_count)"
        " values (%s, gen_random_uuid(), %s, 'Long', 50) returning org_id, id),"
        " said as (insert into messages"
        " (org_id, id, chat_id, position, role, content, status, finished_at, server_id)"
        " select org_id, gen_random_uuid(), chat.id, n, case n %% 2 when 1 then 'user' else 'assistant' end, %s,"
        " 'complete', now(), case n %% 2 when 0 then 1 end from chat, generate_series(1, 50) as n)"
        " select id::text from chat",
        tenant.org_id,
        tenant.user_id,
        LONGEST,
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
