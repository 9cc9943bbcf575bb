"""The page in a real Chromium: how tests open it, and what they do with it."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, BrowserContext, Locator, Page, Route, async_playwright, expect
from serving import StartServer, serving
from support import Gated, Rows, Tenant, base

# One browser, and so one event loop, for all the tests of a file.
pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

NOWHERE = "http://127.0.0.1:9"
SETTINGS_KEY = "streaming-chat.settings"
FAILED_REQUEST = "Failed to load resource|CORS policy"

CHROMIUM_ARGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

OpenPage = Callable[..., Awaitable[Page]]

expect.set_options(timeout=10_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM"), args=CHROMIUM_ARGS, chromium_sandbox=False
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def context(browser: Browser) -> BrowserContext:
    """What most pages share: a context of its own for each would take as long as a short test."""
    return await browser.new_context()


@pytest_asyncio.fixture(loop_scope="module")
async def start_server(postgres_url: str) -> AsyncIterator[StartServer]:
    """The fixture of the other tests, in the loop of these."""
    async with serving(postgres_url) as start:
        yield start


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(
    browser: Browser, context: BrowserContext, start_server: StartServer, tenant: Tenant
) -> AsyncIterator[OpenPage]:
    """Give a function that opens a server's page as the tenant: `open_page(server, url=…, settings=…, …)`.

    What the browser complains about, of the Content Security Policy or else, fails the test, unless it
    matches `ignore`. Options are those of a browser context.
    """
    complaints: list[str] = []
    pages: list[Page] = []

    async def open_page(
        server: TestServer,
        *,
        url: str | None = None,
        settings: dict[str, str] | None = None,
        ignore: str = "^$",
        init: str = "",
        **options: Any,
    ) -> Page:
        page = await (await browser.new_context(**options) if options or settings == {} else context).new_page()
        pages.append(page)
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def listen(message: Any) -> None:
            if message.type in ("error", "warning") and not re.search(ignore, message.text):
                complaints.append(message.text)

        page.on("console", listen)
        if settings != {}:
            stored = {"server": base(server), "org": tenant.org_id, "user": tenant.user_id} | (settings or {})
            # Once: a page that is loaded again has what it has stored itself.
            init += f"""
                const key = '{SETTINGS_KEY}' + location.pathname.replace(/\\/[^/]*$/, '');
                if (!sessionStorage.begun) localStorage[key] = JSON.stringify({stored});
                sessionStorage.begun = true;
            """
        await page.add_init_script(init)
        await page.goto(url or f"{base(server)}/")
        await expect(page.locator("#account")).not_to_be_empty()
        return page

    yield open_page
    for page in pages:
        await page.close()
    assert complaints == [], complaints


async def say(page: Page, text: str) -> None:
    await page.get_by_role("textbox", name="Message").fill(text)
    await page.keyboard.press("Enter")


async def intercept(page: Page, url: str, handler: Callable[[Route], Any], **options: Any) -> None:
    """Route the requests of a page from now on. Chromium tells a page that is open a moment later than it says."""
    await page.route(url, handler, **options)
    await page.route("**/is-intercepted", lambda route: route.fulfill(body="yes"))
    async with asyncio.timeout(10):
        while await page.evaluate("fetch('/is-intercepted').then((answer) => answer.text())") != "yes":
            pass
    await page.unroute("**/is-intercepted")


async def lose_answers(page: Page, url: str) -> asyncio.Event:
    """Let requests reach the server, and no answer the page; return what is set when one was answered."""
    answered = asyncio.Event()

    async def swallow(route: Route) -> None:
        await route.fetch()
        answered.set()

    await intercept(page, url, swallow)
    return answered


def replies(page: Page) -> Locator:
    return page.locator("#messages > .assistant")


def said(page: Page) -> Locator:
    """What is read aloud, but for what a busy machine may have it begin with."""
    return page.locator("#live > p").filter(has_not_text="Thinking…")


async def read_word(page: Page, model: Gated) -> None:
    """Ask, and let a model say its first "word "."""
    await say(page, "Hi")
    model.go()
    await expect(replies(page).locator(".text")).to_have_text("word ")


async def read_half(page: Page, model: Gated) -> None:
    """Ask, and let a model of "one ", "two ", … say these two."""
    await say(page, "Hi")
    model.go(2)
    await expect(replies(page).locator(".text")).to_have_text("one two ")


async def shown(locator: Locator) -> str:
    """Return the exact text of a question as it is shown, and of a reply as it has come, before it is rendered."""
    text = "(item) => item.matches('.user') ? item.querySelector('.text').textContent : thread.sources.get(item)"
    return str(await locator.evaluate(text))


async def is_complete(reply: Locator) -> None:
    # Looks at every frame, where expect() looks ever more seldom.
    done = "(item) => item.dataset.status === 'complete'"
    await reply.page.wait_for_function(done, arg=await reply.element_handle())


async def stop_clock(page: Page) -> None:
    """Let the time of a page stand still, until its clock is told to run or to resume."""
    await page.clock.install()
    # It may stand still only at a moment to come; no timer of the page is to ring by then.
    await page.clock.pause_at(await page.evaluate("Date.now() / 1000 + 10"))


async def save_settings(page: Page, **values: str) -> None:
    await page.locator("#open-settings").click()
    for name, value in values.items():
        await page.locator(f"#{name}").fill(value)
    await page.get_by_role("button", name="Save").click()


def add_chat(rows: Rows, tenant: Tenant, title: str, messages: int) -> str:
    chat_id = str(uuid.uuid4())
    rows(
        "insert into chats (org_id, id, user_id, title, message_count) values (%s, %s, %s, %s, %s)",
        tenant.org_id,
        chat_id,
        tenant.user_id,
        title,
        messages,
    )
    rows(
        "insert into messages (org_id, id, chat_id, position, role, content, status, finished_at, server_id)"
        " select %s, gen_random_uuid(), %s, n, case n %% 2 when 1 then 'user' else 'assistant' end,"
        " 'Message ' || n, 'complete', now(), case n %% 2 when 0 then 1 end from generate_series(1, %s) as n",
        tenant.org_id,
        chat_id,
        messages,
    )
    return chat_id
