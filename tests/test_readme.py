"""The README's own text, run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import async_playwright
from serving import StartServer
from support import Rows, Tenant, events, says

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def snippet(language: str, part: str) -> str:
    """Return the fenced block of this language that holds `part`."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    [found] = [text for tag, text in blocks if tag == language and part in text]
    return str(found)


def base(server: TestServer) -> str:
    return f"http://{server.host}:{server.port}"


async def test_curl_line_gives_the_bytes_shown(start_server: StartServer, rows: Rows) -> None:
    server = await start_server(model=says("Hello", " world"), seed_demo=True)
    command = snippet("sh", "curl -N http").replace("http://127.0.0.1:3000", base(server))
    process = await asyncio.create_subprocess_exec(
        *shlex.split(command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    shown = snippet("", '"fullText"')
    pattern = re.escape(shown.strip()).replace("…", "[0-9a-f-]+")
    assert re.fullmatch(pattern, out.decode().strip())
    rows.forget_demo()


async def test_curl_line_that_resumes_gives_the_rest(start_server: StartServer, rows: Rows) -> None:
    server = await start_server(model=says("Hello", " world"), seed_demo=True)
    ask = ["bash", "-c", snippet("sh", "curl -N http").replace("http://127.0.0.1:3000", base(server))]
    resume = ["bash", "-c", snippet("sh", "$ID").replace("http://127.0.0.1:3000", base(server))]

    async def run(command: list[str], **environ: str) -> list[dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(
            *command, env=os.environ | environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        return events((await process.communicate())[0])

    done = (await run(ask))[-1]
    rest = await run(resume, ID=done["message_id"], N="8")
    assert [event["token"] for event in rest] == ["rld", ""]
    assert rest[-1] == done


def test_error_event_shown_is_the_one_sent() -> None:
    assert "The model failed; what it said so far is saved." in snippet("", '"error"')


@pytest.fixture
async def chunked(tenant: Tenant) -> AsyncIterator[TestServer]:
    """A server that sends the reply "Añ 😀" as raw UTF-8, one byte a chunk."""
    done = {"token": "", "done": True, "fullText": "Añ 😀"}
    events = [{"token": token, "done": False} for token in ("Añ", " ", "😀")] + [done]
    wire = b": ping\n\n" + b"".join(
        b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events
    )

    async def stream(request: web.Request) -> web.StreamResponse:
        assert await request.json() == {"message": "Hi"}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for byte in wire:
            await response.write(bytes([byte]))
            await asyncio.sleep(0)
        return response

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html>", content_type="text/html")

    app = web.Application()
    app.add_routes([web.post("/chat/stream", stream), web.get("/", page)])
    server = TestServer(app)
    await server.start_server()
    yield server
    await server.close()


def python_chat() -> Any:
    names: dict[str, Any] = {}
    exec(snippet("python", "def chat("), names)
    return names["chat"]


async def test_python_client_survives_any_chunks(chunked: TestServer, tenant: Tenant) -> None:
    headers = tenant.headers | {"content-type": "application/json"}
    tokens = await asyncio.to_thread(lambda: list(python_chat()(base(chunked), headers, "Hi")))
    assert tokens == ["Añ", " ", "😀"]


async def test_python_client_against_the_server(start_server: StartServer, tenant: Tenant) -> None:
    headers = tenant.headers | {"content-type": "application/json"}
    server = await start_server(model=says("Hello", " world"))
    assert await asyncio.to_thread(lambda: "".join(python_chat()(base(server), headers, "Hi"))) == "Hello world"
    server = await start_server(model=says("Hello", RuntimeError()))
    with pytest.raises(RuntimeError, match="The model failed"):
        await asyncio.to_thread(lambda: list(python_chat()(base(server), headers, "Hi")))


@pytest.mark.browser
async def test_javascript_clients_in_a_browser(
    chunked: TestServer, start_server: StartServer, tenant: Tenant
) -> None:
    fetch_client = snippet("js", "async function chat(")
    event_source = snippet("js", "new EventSource(")
    headers = tenant.headers | {"content-type": "application/json"}
    run = fetch_client + textwrap.dedent("""
        async ([url, headers]) => {
          const tokens = [];
          try {
            const done = await chat(url, headers, 'Hi', (token) => tokens.push(token));
            return [tokens.join(''), done.fullText];
          } catch (error) {
            return [tokens.join(''), error.message];
          }
        }
    """)
    run = f"(args) => {{ {fetch_client}\nconst run = {run[len(fetch_client) :]}; return run(args); }}"
    listen = (
        "([url, orgId, userId]) => new Promise((resolve) => {"
        " const message = 'Hi'; let text = ''; const show = (token) => { text += token; };"
        f" {event_source}"
        " const inner = source.onmessage;"
        " source.onmessage = (m) => { inner(m); if (source.readyState === EventSource.CLOSED) resolve(text); };"
        "})"
    )
    server = await start_server(model=says("Hello", " world"))
    failing = await start_server(model=says("Hello", RuntimeError()))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=os.environ["CHROMIUM"], args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        page = await browser.new_page()
        await page.goto(base(chunked))
        assert await page.evaluate(run, [base(chunked), headers]) == ["Añ 😀", "Añ 😀"]
        for target, expected in (
            (server, ["Hello world", "Hello world"]),
            (failing, ["Hello", "The model failed; what it said so far is saved."]),
        ):
            await page.goto(base(target) + "/health")
            assert await page.evaluate(run, [base(target), headers]) == expected
        await page.goto(base(server) + "/health")
        ids = [base(server), tenant.org_id, tenant.user_id]
        assert await page.evaluate(listen, ids) == "Hello world"
        await browser.close()


async def test_real_model_speaks_through_the_seam(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    closed = asyncio.Event()

    async def completions(request: web.Request) -> web.StreamResponse:
        asked.append((request.headers["Authorization"], await request.json()))
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in ("Hel", "lo", None, " world"):
            chunk = {"choices": [{"delta": {"content": piece} if piece else {"role": "assistant"}}]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if "hang" in str(asked[-1]):
            try:
                while True:
                    await response.write(b": wait\n\n")
                    await asyncio.sleep(0.01)
            finally:
                closed.set()
        if "cut" not in str(asked[-1]):
            await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    stub = TestServer(app)
    await stub.start_server()
    monkeypatch.setenv("LLM_BASE_URL", f"{base(stub)}/v1")
    monkeypatch.setenv("LLM_API_KEY", "key")
    monkeypatch.setenv("LLM_MODEL", "model-1")
    names: dict[str, Any] = {}
    exec(snippet("python", "async def completions("), names)
    client = await aiohttp_client(await start_server(model=names["completions"], resume_window_s=0))

    async def ask(message: str) -> bytes:
        response = await client.post("/chat/stream", json={"message": message}, headers=tenant.headers)
        return bytes(await response.read())

    assert b'"fullText":"Hello world"' in await ask("Hi")
    assert asked == [
        ("Bearer key", {"model": "model-1", "stream": True, "messages": [{"role": "user", "content": "Hi"}]})
    ]
    assert b"The model failed; what it said so far is saved." in await ask("cut")

    # A client that leaves ends the upstream request, and so the bill.
    response = await client.post("/chat/stream", json={"message": "hang"}, headers=tenant.headers)
    await response.content.readuntil(b"\n\n")
    response.close()
    await asyncio.wait_for(closed.wait(), 5)
    await stub.close()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_link_leads_somewhere(link: str) -> None:
    assert (Path(__file__).parent.parent / link).exists()
