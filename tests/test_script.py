"""`tests/test-streaming.sh`, with the bash and curl of this machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp.test_utils import TestServer
from serving import StartServer
from support import Gated, Tenant, base, says

SCRIPT = Path(__file__).parent / "test-streaming.sh"


async def run(*args: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        SCRIPT,
        *args,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin"},
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_whole_run_shows_the_json_then_the_text_then_completion(
    start_server: StartServer, tenant: Tenant
) -> None:
    text = 'Año "x" \\ \U0001f600\u20ac\n\tend \x7f/'
    server = await start_server(model=says(text))
    code, out, err = await run(tenant.org_id, tenant.user_id, base(server))
    assert (code, err) == (0, "")
    title, answer, rest = out.split("\n", 2)
    assert title == "POST /chat"
    assert json.loads(answer)["reply"] == text
    assert rest == f"\nPOST /chat/stream\n{text}\nStream complete!\n"


async def test_tokens_are_printed_as_they_arrive(start_server: StartServer, tenant: Tenant) -> None:
    model = Gated()

    async def whole_or_gated(conversation: Any) -> Any:
        if not conversation.stream:
            yield "reply"
            return
        async for piece in model(conversation):
            yield piece

    server = await start_server(model=whole_or_gated, shutdown_grace_s=0)
    process = await asyncio.create_subprocess_exec(
        SCRIPT, tenant.org_id, tenant.user_id, base(server), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    await process.stdout.readuntil(b"/chat/stream\n")
    for _ in range(2):
        model.go()
        assert await process.stdout.readexactly(5) == b"word "
    process.terminate()
    await process.wait()


async def test_unknown_user_is_a_failure_with_the_servers_message(server: TestServer, tenant: Tenant) -> None:
    code, _, err = await run(tenant.org_id, str(uuid4()), base(server))
    assert (code, err) == (1, "FAILED: The user is not in this org.\n")


async def test_failed_stream_is_a_failure_with_the_servers_message(
    start_server: StartServer, tenant: Tenant
) -> None:
    async def fails_in_streams(conversation: Any) -> Any:
        yield "word "
        if conversation.stream:
            raise RuntimeError

    server = await start_server(model=fails_in_streams)
    code, out, err = await run(tenant.org_id, tenant.user_id, base(server))
    assert (code, err) == (1, "FAILED: The model failed; what it said so far is saved.\n")
    assert "complete!" not in out


async def test_nothing_listening_is_a_failure(tenant: Tenant) -> None:
    code, _, err = await run(tenant.org_id, tenant.user_id, "http://127.0.0.1:1")
    assert code == 1
    assert "FAILED: curl could not reach http://127.0.0.1:1" in err


async def test_missing_arguments_are_answered_with_the_usage() -> None:
    code, _, err = await run()
    assert code == 2
    assert "ORG_ID USER_ID [BASE_URL]" in err
