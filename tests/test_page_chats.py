"""The list of chats in a real Chromium: by day, renamed, deleted, exported, searched, by keyboard and by touch."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pages import (
    FAILED_REQUEST,
    OpenPage,
    add_chat,
    base,
    browser,
    context,
    intercept,
    is_complete,
    open_page,
    replies,
    say,
    start_server,
)
from playwright.async_api import Locator, Page, Route, expect
from serving import StartServer
from support import Gated, Rows, Tenant, eventually, says

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


def listed(page: Page) -> Locator:
    return page.get_by_role("navigation", name="Chats").get_by_role("link")


def titles(rows: Rows, tenant: Tenant) -> list[str]:
    return [title for (title,) in rows("select title from chats where org_id = %s order by 1", tenant.org_id)]


async def choose(page: Page, title: str, action: str) -> None:
    await page.get_by_role("link", name=title).hover()
    await page.get_by_role("button", name=f"Options for {title}").click()
    await page.get_by_role("menuitem", name=action).click()


async def test_chats_are_under_the_day_of_their_last_activity_and_a_new_one_moves_them_up(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    for title, at in (
        ("Of today", midnight),
        ("Of last night", midnight - timedelta(seconds=1)),
        ("Of the morning before", midnight - timedelta(hours=20)),
        ("Of last month", midnight - timedelta(days=30)),
    ):
        chat_id = add_chat(rows, tenant, title, messages=2)
        rows("update chats set updated_at = %s where id = %s", at, chat_id)
    page = await open_page(await start_server(model=says("Hello")))
    await expect(page.locator("#chats")).to_match_aria_snapshot(
        """
        - heading "Today" [level=2]
        - list "Today":
          - listitem:
            - link "Of today"
            - button "Options for Of today"
        - heading "Yesterday" [level=2]
        - list "Yesterday":
          - listitem:
            - link "Of last night"
            - button "Options for Of last night"
          - listitem:
            - link "Of the morning before"
            - button "Options for Of the morning before"
        - heading "Earlier" [level=2]
        - list "Earlier":
          - listitem:
            - link "Of last month"
            - button "Options for Of last month"
        """
    )
    await page.get_by_role("link", name="Of last month").click()
    await say(page, "Go on")
    await is_complete(replies(page).last)
    in_order = ["Of last month", "Of today", "Of last night", "Of the morning before"]
    await expect(page.get_by_role("list", name="Today").get_by_role("link")).to_have_text(in_order[:2])
    await expect(page.get_by_role("heading", name="Earlier")).to_be_hidden()
    await page.reload()
    await expect(listed(page)).to_have_text(in_order)


async def test_list_is_one_tab_stop_and_a_chat_is_renamed_by_keyboard_alone(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    for number in range(3):
        chat_id = add_chat(rows, tenant, f"Chat {number}", messages=2)
        rows("update chats set updated_at = now() - %s * interval '1 s' where id = %s", number, chat_id)
    page = await open_page(await start_server())
    await expect(listed(page)).to_have_text(["Chat 0", "Chat 1", "Chat 2"])
    await page.get_by_role("searchbox", name="Search chats").focus()
    for key, number in (("Tab", 0), ("ArrowDown", 1), ("End", 2), ("ArrowDown", 2), ("ArrowUp", 1), ("Home", 0)):
        await page.keyboard.press(key)
        await expect(listed(page).nth(number)).to_be_focused()
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Settings")).to_be_focused()
    await page.keyboard.press("Shift+Tab")
    await expect(listed(page).nth(1)).to_be_focused()

    await page.keyboard.press("ArrowRight")
    await expect(page.get_by_role("button", name="Options for Chat 1")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("menuitem", name="Rename")).to_be_focused()
    await page.keyboard.press("ArrowUp")
    await expect(page.get_by_role("menuitem", name="Delete")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("menu")).to_have_count(0)
    await expect(page.get_by_role("button", name="Options for Chat 1")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Enter")
    field = page.get_by_role("textbox", name="Title")
    await expect(field).to_be_focused()
    await page.keyboard.type("Left alone")
    await page.keyboard.press("Escape")
    await expect(listed(page).nth(1)).to_be_focused()
    await expect(listed(page)).to_have_text(["Chat 0", "Chat 1", "Chat 2"])

    await page.keyboard.press("F2")
    await page.keyboard.type("  Renamed  ")
    async with page.expect_response("**/chats/*") as answered:
        await page.keyboard.press("Enter")
    assert (await answered.value).status == 200
    await expect(listed(page).nth(1)).to_be_focused()
    await expect(listed(page)).to_have_text(["Chat 0", "Renamed", "Chat 2"])
    assert titles(rows, tenant) == ["Chat 0", "Chat 2", "Renamed"]
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Renamed")
    await page.reload()
    await expect(listed(page)).to_have_text(["Chat 0", "Renamed", "Chat 2"])


async def test_title_that_the_server_refuses_is_the_old_one_again_and_can_be_retried(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Old", messages=2)
    server = await start_server()
    page = await open_page(server, url=f"{base(server)}/#{chat_id}", ignore=FAILED_REQUEST)
    answer = asyncio.Event()

    async def refuse(route: Route) -> None:
        await answer.wait()
        await route.fulfill(status=503, json={"error": "Database unavailable", "message": "Try again."})

    await intercept(page, f"**/chats/{chat_id}", refuse, times=1)
    await choose(page, "Old", "Rename")
    await page.keyboard.type("New")
    await page.locator("#thread").click()  # To leave the field is to have meant it.
    await expect(page.get_by_role("heading", level=1)).to_have_text("New")
    answer.set()
    await expect(page.locator("#chats-notice")).to_contain_text("Database unavailable")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Old")
    await expect(listed(page)).to_have_text(["Old"])
    await page.locator("#chats-notice").get_by_role("button", name="Retry").click()
    await expect(listed(page)).to_have_text(["New"])
    await eventually(lambda: titles(rows, tenant) == ["New"])


async def test_delete_asks_once_in_place_and_takes_the_chat_with_its_running_reply(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    add_chat(rows, tenant, "Other", messages=2)
    model = Gated()
    page = await open_page(await start_server(model=model))
    await say(page, "Running")
    model.go()
    await expect(replies(page).locator(".text")).to_have_text("word ")
    await choose(page, "Running", "Delete")
    asked = page.get_by_role("alertdialog", name="Delete “Running”?")
    await expect(asked.get_by_role("button", name="Keep")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(asked).to_have_count(0)
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    await expect(page.get_by_role("link", name="Running")).to_be_focused()

    await page.keyboard.press("Delete")
    await asked.get_by_role("button", name="Delete").click()
    await expect(listed(page)).to_have_text(["Other"])
    await expect(listed(page)).to_be_focused()
    await expect(page.get_by_role("heading", name="Say something")).to_be_visible()
    assert "#" not in page.url
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert titles(rows, tenant) == ["Other"]
    assert model.closed.is_set()


async def test_each_chat_that_is_to_be_deleted_is_asked_for_by_its_own_name(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    for title in ("One", "Two"):
        add_chat(rows, tenant, title, messages=2)
    page = await open_page(await start_server())
    for title in ("One", "Two"):
        await choose(page, title, "Delete")
    for title in ("One", "Two"):
        await expect(page.get_by_role("alertdialog", name=f"Delete “{title}”?")).to_have_count(1)


async def test_chat_that_cannot_be_deleted_stays_and_can_be_retried(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Old", messages=2)
    page = await open_page(await start_server(), ignore=FAILED_REQUEST)
    refusal = {"error": "Not stopped", "message": "Its reply still runs."}
    await intercept(page, f"**/chats/{chat_id}", lambda route: route.fulfill(status=503, json=refusal), times=1)
    await choose(page, "Old", "Delete")
    await page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    await expect(page.locator("#chats-notice")).to_contain_text("Its reply still runs.")
    await expect(listed(page)).to_have_text(["Old"])
    await page.locator("#chats-notice").get_by_role("button", name="Retry").click()
    await expect(page.get_by_text("Your chats will be listed here.")).to_be_visible()
    assert titles(rows, tenant) == []


async def test_export_is_a_file_with_the_chat_and_each_message(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant, tmp_path: Path
) -> None:
    chat_id = add_chat(rows, tenant, "What / is: it?", messages=120)
    page = await open_page(await start_server())
    async with page.expect_download() as started:
        await choose(page, "What / is: it?", "Export")
    download = await started.value
    assert download.suggested_filename == "What-is-it-.jsonl"
    await download.save_as(tmp_path / "export")
    chat, *messages = map(json.loads, (tmp_path / "export").read_text().splitlines())
    assert chat["chat_id"] == chat_id
    assert [message["content"] for message in messages] == [f"Message {number}" for number in range(1, 121)]


async def test_search_finds_as_one_types_and_an_answer_that_comes_late_is_not_shown(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    for title in ("A story", "Another STORY", "50 % off", "Weather"):
        add_chat(rows, tenant, title, messages=2)
    model = Gated()
    page = await open_page(await start_server(model=model))
    await say(page, "Hi")
    model.go()
    await expect(listed(page)).to_have_count(5)
    late, answer = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        if parse_qs(urlsplit(route.request.url).query).get("q") == ["st"]:
            late.set()
            await answer.wait()
        await route.continue_()

    await intercept(page, "**/chats?*", hold)
    await page.keyboard.press("Control+k")
    search = page.get_by_role("searchbox", name="Search chats")
    await expect(search).to_be_focused()
    await page.keyboard.type("st")
    await late.wait()
    await page.keyboard.type("ory")
    await expect(listed(page)).to_have_text(["Another STORY", "A story"])
    answer.set()
    await search.fill("%")
    await expect(listed(page)).to_have_text(["50 % off"])
    await expect(page.locator("#live > p").last).to_have_text("1 chat found")
    await search.fill("Nowhere")
    await expect(page.get_by_role("status").filter(has_text="No title has “Nowhere” in it.")).to_be_visible()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Hi")
    await page.keyboard.press("Escape")
    await expect(search).to_have_value("")
    await expect(listed(page)).to_have_count(5)
    # It was no Escape for the reply.
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    await page.keyboard.press("ArrowDown")
    await expect(page.get_by_role("link", name="Hi")).to_be_focused()


async def test_who_comes_back_sees_the_chats_of_other_windows(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Old", messages=2)
    page = await open_page(await start_server())
    await expect(listed(page)).to_have_text(["Old"])
    rows("update chats set title = 'Renamed' where id = %s", chat_id)
    add_chat(rows, tenant, "New", messages=2)
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await expect(listed(page)).to_have_text(["New", "Renamed"])


async def test_new_chat_is_listed_and_called_by_its_title_whatever_was_searched_for(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    add_chat(rows, tenant, "A story", messages=2)
    page = await open_page(await start_server(model=says("Hello")))
    await page.get_by_role("searchbox", name="Search chats").fill("story")
    await expect(page.locator("#live > p").last).to_have_text("1 chat found")
    await say(page, "Hi")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Hi")
    await expect(listed(page)).to_have_text(["Hi", "A story"])
    await expect(page.get_by_role("searchbox", name="Search chats")).to_have_value("")


async def test_rest_of_the_list_can_be_had_after_a_search_that_came_in_between(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    for number in range(31):
        add_chat(rows, tenant, f"Chat {number}", messages=2)
    page = await open_page(await start_server())
    await expect(listed(page)).to_have_count(30)
    asked = asyncio.Event()

    async def swallow(route: Route) -> None:
        asked.set()

    await intercept(page, "**/chats?*before=*", swallow, times=1)
    more = page.get_by_role("button", name="More")
    await more.click()
    await asked.wait()
    async with page.expect_response("**/chats?*"):
        # As of a letter that is taken back at once.
        await page.locator("#search").evaluate("(field) => field.dispatchEvent(new Event('input'))")
    await more.click()
    await expect(listed(page)).to_have_count(31)


async def test_chats_are_managed_by_touch(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    add_chat(rows, tenant, "Old", messages=2)
    size = {"width": 390, "height": 740}
    page = await open_page(await start_server(), viewport=size, has_touch=True, is_mobile=True)
    await page.get_by_role("button", name="Chats and settings").tap()
    await page.get_by_role("button", name="Options for Old").tap()
    await expect(page.get_by_role("menu")).to_be_in_viewport(ratio=1)
    small = """() => [...document.querySelectorAll('#side :is(a, button, input):not([hidden])')]
        .filter((element) => Math.min(element.offsetWidth, element.offsetHeight) < 44)
        .map((element) => element.outerHTML)"""
    assert await page.evaluate(small) == []
    await page.get_by_role("menuitem", name="Rename").tap()
    assert await page.evaluate(small) == []
    await page.get_by_role("textbox", name="Title").fill("New")
    await page.keyboard.press("Enter")
    await expect(listed(page)).to_have_text(["New"])
    await page.get_by_role("button", name="Options for New").tap()
    # Beside it is away from it.
    await page.get_by_role("searchbox").tap()
    await expect(page.get_by_role("menu")).to_have_count(0)
    await page.get_by_role("button", name="Options for New").tap()
    await page.get_by_role("menuitem", name="Delete").tap()
    assert await page.evaluate(small) == []
    await page.get_by_role("button", name="Delete").tap()
    await expect(listed(page)).to_have_count(0)
    await eventually(lambda: titles(rows, tenant) == [])
