"""axe-core finds nothing that keeps people out: the page in its states, wide and narrow, light and dark."""

from __future__ import annotations

import pytest
from axe_playwright_python.async_playwright import Axe
from pages import OpenPage, add_chat, browser, context, is_complete, open_page, replies, say, start_server
from playwright.async_api import Page, expect
from serving import StartServer
from support import EVERYTHING, Rows, Tenant, says

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


async def is_clean(page: Page, state: str) -> None:
    # What fades in is judged when it is there.
    await page.evaluate("Promise.all(document.getAnimations().map(({ finished }) => finished.catch(() => {})))")
    results = await Axe().run(page)
    assert results.violations_count == 0, f"{state}:\n{results.generate_report()}"


async def test_wide_page_is_accessible_in_each_state(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    add_chat(rows, tenant, "Old", messages=2)
    page = await open_page(await start_server(model=says(EVERYTHING)), color_scheme="light")
    await expect(page.get_by_role("link", name="Old")).to_be_visible()
    await is_clean(page, "a new chat")
    await say(page, "One\n" * 20)
    await is_complete(replies(page))
    await replies(page).hover()
    await is_clean(page, "a reply in Markdown, and a folded question")
    await page.locator("#messages > .user").get_by_role("button", name="Edit").click()
    await is_clean(page, "a question that is edited")
    await page.locator(".figures").click()
    await page.get_by_text("Requests and their headers").click()
    await is_clean(page, "the inspector beside the thread")
    await page.keyboard.press("Escape")
    await page.get_by_role("link", name="Old").hover()
    for action in ("Rename", "Delete"):
        await page.get_by_role("button", name="Options for Old").click()
        await is_clean(page, "the menu of a chat")
        await page.get_by_role("menuitem", name=action).click()
        await is_clean(page, action)
        await page.keyboard.press("Escape")


async def test_narrow_page_is_accessible_in_each_state(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    for number in range(30):
        add_chat(rows, tenant, f"Chat {number}", messages=2)
    page = await open_page(
        await start_server(model=says("Half a ", RuntimeError())),
        color_scheme="dark",
        viewport={"width": 390, "height": 740},
    )
    await say(page, "Hi")
    await page.locator("#notice summary").click()
    await is_clean(page, "a reply that has failed")
    await page.locator(".figures").click()
    await is_clean(page, "the inspector as a sheet")
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Chats and settings").click()
    await is_clean(page, "the drawer")
    await page.get_by_role("searchbox").fill("Nowhere")
    await expect(page.get_by_text("No title has “Nowhere” in it.")).to_be_visible()
    await is_clean(page, "a search that finds nothing")
    await page.locator("#open-settings").click()
    await page.locator("#org").fill("nobody")
    await page.get_by_role("button", name="Save").click()
    await is_clean(page, "settings with a mistake")
