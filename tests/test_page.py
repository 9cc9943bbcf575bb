"""The test page in a real Chromium, against the real server."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pages import (
    FAILED_REQUEST,
    NOWHERE,
    SETTINGS_KEY,
    OpenPage,
    add_chat,
    base,
    browser,
    context,
    intercept,
    is_complete,
    lose_answers,
    open_page,
    read_half,
    read_word,
    replies,
    said,
    save_settings,
    say,
    shown,
    start_server,
    stop_clock,
)
from playwright.async_api import Error, Page, Route, expect
from serving import StartServer
from support import EVERYTHING, Gated, Rows, Tenant, eventually, says

from app.models import Conversation
from app.server import BELLS, drain
from app.storage.store import DEMO_ORG_ID

# One browser, and so one event loop, for all the tests.
pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

WEB = Path(__file__).parent.parent / "web"


# ---- Streaming


async def test_reply_is_shown_to_the_character_as_it_is_stored(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    text = "  Two  blanks,\n\n\ttab, e\u0301, שלום, \U0001f469\u200d\U0001f680, \u2028 and \\u0041 \n"
    page = await open_page(await start_server(model=says(*re.findall(r"\s*\S+|\s+", text))))
    await say(page, "Grüße\n  דוד")
    await is_complete(replies(page).last)
    assert await shown(replies(page).last) == text
    assert await shown(page.locator("#messages > .user")) == "Grüße\n  דוד"
    assert rows.messages(tenant.org_id) == [("user", "Grüße\n  דוד", "complete"), ("assistant", text, "complete")]


async def test_page_as_it_comes_talks_to_its_own_server_as_the_demo_user(
    start_server: StartServer, open_page: OpenPage, rows: Rows
) -> None:
    server = await start_server(seed_demo=True, model=says("Hello"))
    page = await open_page(server, settings={})
    await expect(page.locator("#account")).to_have_text(f"{server.host}:{server.port}")
    await page.get_by_role("button", name="A long story").click()
    await is_complete(replies(page).last)
    assert ("user", "Tell me a long story about a lighthouse.", "complete") in rows.messages(str(DEMO_ORG_ID))
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()


async def test_text_and_cursor_are_shown_while_the_model_still_speaks(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model))
    await say(page, "Hi")
    reply = replies(page).last
    cursor = "(element) => getComputedStyle(element, '::after').animationName"
    assert await reply.locator(".text").evaluate(cursor) == "blink"
    end = reply.locator(".text > p")
    for words in ("word ", "word word word "):
        model.go(words.count("word") - model.said)
        await expect(reply.locator(".text")).to_have_text(words)
        assert await end.evaluate(cursor) == "blink"
    await expect(page.locator(".figures")).to_contain_text(" · 3 words")
    await page.emulate_media(reduced_motion="reduce")
    assert await end.evaluate(cursor) == "none"
    await page.keyboard.press("Escape")
    await expect(reply).to_have_attribute("data-status", "stopped")
    assert await end.evaluate("(element) => getComputedStyle(element, '::after').content") == "none"


@pytest.mark.parametrize("by", ["button", "Escape"])
async def test_stop_keeps_what_has_arrived_and_ends_the_turn_on_the_server(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant, by: str
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model))
    await say(page, "Hi")
    model.go(3)
    await expect(replies(page).locator(".text")).to_have_text("word word word ")
    await (page.get_by_role("button", name="Stop").click() if by == "button" else page.keyboard.press("Escape"))

    await expect(replies(page).locator(".status")).to_have_text("Stopped")
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    assert await shown(replies(page)) == "word word word "
    await eventually(lambda: rows.messages(tenant.org_id)[1] == ("assistant", "word word word ", "stopped"))
    assert model.closed.is_set()

    # The chat goes on.
    await say(page, "Again")
    model.go()
    await expect(replies(page).last.locator(".text")).to_have_text("word ")
    assert rows("select count(*) from chats where org_id = %s", tenant.org_id) == [(1,)]


async def test_double_click_on_send_does_not_stop_the_reply(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated(pieces=["one ", "two "])
    page = await open_page(await start_server(model=model))
    await read_half(page, model)
    await is_complete(replies(page))
    await page.get_by_role("textbox", name="Message").fill("Once more")
    # The buttons are in the same place.
    await page.get_by_role("button", name="Send").dblclick()
    model.go(2)
    await is_complete(replies(page).last)


async def test_stop_needs_no_connection_of_the_windows_that_have_or_want_one(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    server = await start_server(model=model)
    pages = [await open_page(server) for _ in range(7)]
    # A browser opens six connections to a host: the seventh waits.
    for number, page in enumerate(pages, 1):
        await say(page, "Hi")
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await eventually(lambda number=number: len(rows.messages(tenant.org_id)) == 2 * min(number, 6))
    model.go(6)
    for page in pages[:6]:
        await expect(replies(page).locator(".text")).to_have_text("word ")
    await pages[0].keyboard.press("Escape")
    await expect(replies(pages[0]).locator(".status")).to_have_text("Stopped")
    await eventually(lambda: len(rows.messages(tenant.org_id)) == 2 * 7)
    query = "select status, count(*) from messages where org_id = %s and role = 'assistant' group by 1 order by 1"
    assert rows(query, tenant.org_id) == [("stopped", 1), ("streaming", 6)]


async def test_stop_before_the_answer_to_a_question_stops_its_reply(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model))
    with rows.locked("messages"):
        await say(page, "Hi")
        await eventually(rows.waiting)
        await page.keyboard.press("Escape")
        await expect(replies(page).locator(".status")).to_have_text("Stopping…")
    await expect(replies(page).locator(".status")).to_have_text("Stopped")
    assert rows.messages(tenant.org_id) == [("user", "Hi", "complete"), ("assistant", "", "stopped")]

    # The chat goes on.
    await say(page, "Again")
    model.go()
    await expect(replies(page).last.locator(".text")).to_have_text("word ")
    assert rows("select count(*) from chats where org_id = %s", tenant.org_id) == [(1,)]


async def test_stop_before_a_question_is_sent_keeps_it_here(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Slow", messages=2)
    server = await start_server()
    page = await open_page(server)
    asked, left = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        asked.set()
        await left.wait()
        await route.continue_()

    await intercept(page, f"**/chats/{chat_id}/messages?*", hold)
    await page.get_by_role("link", name="Slow").click()
    await asked.wait()
    await say(page, "Hi")
    await page.keyboard.press("Escape")
    left.set()
    await expect(page.locator("#messages > .user").last.locator(".status")).to_have_text("Not sent")
    await page.locator("#notice").get_by_role("button", name="Edit").click()
    await expect(page.get_by_role("textbox", name="Message")).to_have_value("Hi")
    assert len(rows.messages(tenant.org_id)) == 2


async def test_question_waits_for_a_history_that_could_not_be_had(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Old", messages=2)
    server = await start_server(model=says("Hello"))
    page = await open_page(server, ignore=FAILED_REQUEST)
    await intercept(page, f"**/chats/{chat_id}/messages?*", lambda route: route.abort(), times=2)
    await page.get_by_role("link", name="Old").click()
    notice = page.locator("#notice").get_by_role("alert")
    await expect(notice).to_contain_text("does not answer")
    # It is not asked below nothing, as if there were nothing above it.
    await say(page, "Hi")
    await expect(page.locator("#messages > .user .status")).to_have_text("Not sent")
    await notice.get_by_role("button", name="Retry").click()
    await is_complete(replies(page).last)
    await expect(page.locator("#messages .text")).to_have_text(["Message 1", "Message 2", "Hi", "Hello"])
    assert len(rows.messages(tenant.org_id)) == 4


async def test_page_is_touched_once_a_frame_however_fast_the_tokens_come(
    start_server: StartServer, open_page: OpenPage
) -> None:
    words = 5000
    page = await open_page(await start_server(model=says(*["word "] * words)))
    await page.evaluate(
        """() => {
            window.touched = 0;
            const observer = new MutationObserver((records) => { window.touched += records.length; });
            observer.observe(messages, { characterData: true, subtree: true });
        }"""
    )
    await say(page, "Hi")
    await is_complete(replies(page).last)
    assert await shown(replies(page).last) == "word " * words
    await expect(page.locator(".figures")).to_contain_text(f" · {words} words")
    assert 0 < await page.evaluate("touched") < words / 20


async def test_reply_is_announced_by_the_sentence_and_not_by_the_token(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated("One, two. Three ")
    page = await open_page(await start_server(model=model))
    await say(page, "Hi")
    live = said(page)
    model.go()
    await expect(live).to_have_text(["One, two. "])
    model.go()
    await expect(live).to_have_text(["One, two. ", "Three One, two. "])
    await page.keyboard.press("Escape")
    await expect(live).to_have_text(["One, two. ", "Three One, two. ", "Three ", "Stopped"])
    assert await page.locator("#live").get_attribute("aria-live") == "polite"


async def test_reply_is_announced_by_the_sentence_in_languages_without_spaces_and_by_the_block(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated(pieces=["你好。再", "见", "\n\n- one\n- two", "\n\nEnd", "."])
    page = await open_page(await start_server(model=model))
    await say(page, "Hi")
    expected: list[str] = []
    for added in (["你好。"], [], ["再见"], ["one two"]):
        model.go()
        expected += added
        await expect(said(page)).to_have_text(expected)
    await expect(replies(page)).to_have_attribute("data-status", "live")


async def test_reply_is_rendered_as_markdown_alike_as_it_comes_and_from_the_history(
    start_server: StartServer, open_page: OpenPage
) -> None:
    text = (
        "# On *it*\n\n- one\n- **two**\n\n```py\nprint(1)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<b>x</b> & y."
    )
    page = await open_page(await start_server(model=says(*re.findall(r"\s*\S+", text))))
    await say(page, "**Hi**")
    await is_complete(replies(page).last)
    await expect(page.locator("#messages > .user .text")).to_have_text("**Hi**")
    shown_live = await replies(page).locator(".text").inner_html()
    tags = "(element) => Array.from(element.children, ({ localName }) => localName)"
    assert await replies(page).locator(".text").evaluate(tags) == ["h1", "ul", "div", "div", "p"]
    spoken = " ".join(" ".join(await said(page).all_inner_texts()).split())
    assert spoken.startswith("On it one two print(1) a b 1 2 <b>x</b> & y.")
    assert not re.search(r"[#*|`]", spoken)
    await page.reload()
    await expect(replies(page).locator("h1")).to_have_text("On it")
    assert await replies(page).locator(".text").inner_html() == shown_live


async def test_code_is_copied_to_the_character(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(
        await start_server(model=says("```py\n", "if a:\n", "\tprint('<&')\n\n", "```")),
        permissions=["clipboard-read", "clipboard-write"],
    )
    await say(page, "Hi")
    await is_complete(replies(page).last)
    await page.locator(".code").get_by_role("button", name="Copy").click()
    await expect(page.locator(".code").get_by_role("button", name="Copied")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == "if a:\n\tprint('<&')\n\n"


async def test_nothing_moves_while_a_reply_comes(start_server: StartServer, open_page: OpenPage) -> None:
    watched = asyncio.Event()

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        for number, piece in enumerate(re.findall(r"\s*\S+", EVERYTHING)):
            if number > 3:
                await watched.wait()
            await asyncio.sleep(0.005)
            yield piece

    page = await open_page(await start_server(model=model), viewport={"width": 1280, "height": 2000})
    await say(page, "Hi")
    await expect(replies(page).locator("h1")).to_have_text("A heading")
    await page.evaluate(
        """() => {
            window.moved = [];
            // What has no node is the cursor.
            const note = ({ node }) => node?.parentElement?.closest('#messages') && moved.push(node.textContent);
            const noteAll = (list) => list.getEntries().forEach(({ sources }) => sources.forEach(note));
            new PerformanceObserver(noteAll).observe({ type: 'layout-shift' });
        }"""
    )
    watched.set()
    await is_complete(replies(page).last)
    assert await page.evaluate("moved") == []


# ---- History and chats


async def test_reload_keeps_the_settings_and_the_chat(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    page = await open_page(await start_server(model=says("Hello", " world")))
    other = rows.tenant(tenant.org_id)
    await save_settings(page, user=other.user_id)
    await say(page, "Remember me")
    await is_complete(replies(page).last)
    await page.reload()
    await expect(page.locator("#messages .text")).to_have_text(["Remember me", "Hello world"])
    await expect(page.get_by_role("heading", level=1)).to_have_text("Remember me")
    await page.get_by_role("button", name="Settings").click()
    await expect(page.locator("#user")).to_have_value(other.user_id)


async def test_reload_in_the_middle_of_a_reply_goes_on_with_it(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated(pieces=["one ", "two ", "three ", "four"])
    page = await open_page(await start_server(model=model))
    await read_half(page, model)
    await page.reload()
    await expect(replies(page).locator(".text")).to_have_text("one two ")
    model.go(2)
    await expect(replies(page).locator(".text")).to_have_text("one two three four")
    await is_complete(replies(page).last)
    assert rows.messages(tenant.org_id)[1] == ("assistant", "one two three four", "complete")


async def test_page_that_comes_back_later_goes_on_with_the_reply(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated(pieces=["one ", "two ", "three ", "four"])
    # The other page has no icon.
    page = await open_page(await start_server(model=model), ignore=FAILED_REQUEST)
    await read_half(page, model)
    await page.goto(page.url.partition("#")[0] + "health")
    await eventually(lambda: rows.messages(tenant.org_id)[1][1] == "one two ")
    await page.go_back()
    await expect(replies(page).locator(".text")).to_have_text("one two ")
    model.go()
    await expect(replies(page).locator(".text")).to_have_text("one two three ")
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    model.go()
    await is_complete(replies(page).last)
    assert await shown(replies(page)) == "one two three four"


async def test_page_that_comes_back_after_the_resume_window_shows_how_it_ended(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    # The other page has no icon.
    page = await open_page(await start_server(model=model, resume_window_s=0), ignore=FAILED_REQUEST)
    await say(page, "Hi")
    model.go(2)
    await expect(replies(page).locator(".text")).to_have_text("word word ")
    await page.goto(page.url.partition("#")[0] + "health")
    await eventually(lambda: rows.messages(tenant.org_id)[1][2] == "disconnected")
    await page.go_back()
    await expect(replies(page).locator(".status")).to_have_text("Left before the end")
    await expect(replies(page).locator(".text")).to_have_text("word word ")


async def test_history_tells_which_replies_are_not_whole(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Old", messages=8)
    for position, status in ((2, "disconnected"), (4, "failed"), (6, "interrupted")):
        rows("update messages set status = %s where chat_id = %s and position = %s", status, chat_id, position)
    server = await start_server()
    page = await open_page(server, url=f"{base(server)}/#{chat_id}")
    await expect(replies(page).locator(".status")).to_have_text(
        [
            "Left before the end",
            "Failed before the end",
            "Interrupted: the server stopped before the end",
            "",
        ]
    )


async def test_chats_are_listed_and_opened_and_back_goes_back(
    start_server: StartServer, open_page: OpenPage
) -> None:
    async def echo(conversation: Conversation) -> AsyncIterator[str]:
        yield f"Echo of {conversation.messages[-1].content}"

    page = await open_page(await start_server(model=echo))
    chats = page.get_by_role("navigation", name="Chats")
    await expect(chats.get_by_text("Your chats will be listed here.")).to_be_visible()
    for message in ("First", "Second"):
        await page.get_by_role("button", name="New chat").click()
        await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
        await expect(page.locator("#messages > li")).to_have_count(0)
        await say(page, message)
        await is_complete(replies(page))

    await expect(chats.get_by_role("link")).to_contain_text(["Second", "First"])
    await expect(chats.get_by_role("link", name="Second")).to_have_attribute("aria-current", "page")
    await chats.get_by_role("link", name="First").click()
    await expect(page.locator("#messages .text")).to_have_text(["First", "Echo of First"])
    await expect(chats.get_by_role("link", name="First")).to_have_attribute("aria-current", "page")
    await expect(page).to_have_title(re.compile("^First"))

    await say(page, "Third")
    await expect(page.locator("#messages .text")).to_have_text(
        ["First", "Echo of First", "Third", "Echo of Third"]
    )
    await page.go_back()
    await expect(page.locator("#messages .text")).to_have_text(["Second", "Echo of Second"])
    await page.reload()
    # The last one that was active.
    await expect(chats.get_by_role("link")).to_contain_text(["First", "Second"])


async def test_title_of_a_new_chat_is_the_one_that_it_keeps(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(model=says("Hello")))
    link = page.get_by_role("navigation", name="Chats").get_by_role("link")
    for message in ("A  b\nc d e f g h i", "x" * 70, "Short"):
        await page.get_by_role("button", name="New chat").click()
        await say(page, message)
        await is_complete(replies(page))
        await expect(page).to_have_title(re.compile(f"^{message[0]}.* Streaming chat$"))
        titles = [await link.first.inner_text(), await page.locator("#title").inner_text()]
        await page.reload()
        await expect(page).to_have_title(re.compile(f"^{message[0]}.* Streaming chat$"))
        assert [await link.first.inner_text(), await page.locator("#title").inner_text()] == titles


async def test_history_that_comes_late_is_not_shown_in_another_chat(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    slow = add_chat(rows, tenant, "Slow", messages=4)
    add_chat(rows, tenant, "Quick", messages=2)
    page = await open_page(await start_server())
    asked, left = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        asked.set()
        await left.wait()
        with suppress(Error):  # The page no longer waits for it.
            message = {"message_id": str(uuid.uuid4()), "role": "user", "content": "Late", "status": "complete"}
            await route.fulfill(json={"messages": [message], "next": None})

    await intercept(page, f"**/chats/{slow}/messages?*", hold)
    await page.get_by_role("link", name="Slow").click()
    await asked.wait()
    await page.get_by_role("link", name="Quick").click()
    await expect(page.locator("#messages .text")).to_have_text(["Message 1", "Message 2"])
    left.set()
    await page.unroute_all(behavior="wait")
    await page.evaluate("fetch('/health').then((response) => response.text())")
    await expect(page.locator("#messages .text")).to_have_text(["Message 1", "Message 2"])


async def test_other_chat_opened_in_the_middle_of_a_reply_leaves_it_unread(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model))
    await say(page, "Hi")
    model.go(2)
    await expect(replies(page).locator(".text")).to_have_text("word word ")
    await page.get_by_role("button", name="New chat").click()
    await expect(page.get_by_role("heading", name="Say something")).to_be_visible()
    await expect(page.locator("#messages > li")).to_have_count(0)
    # It waits for its reader, for a while.
    await eventually(lambda: rows.messages(tenant.org_id)[1] == ("assistant", "word word ", "streaming"))
    assert not model.closed.is_set()


async def test_long_history_and_long_list_come_a_page_at_a_time(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    long_chat = add_chat(rows, tenant, "Long", messages=120)
    for number in range(65):
        add_chat(rows, tenant, f"Chat {number}", messages=0)
    server = await start_server()
    page = await open_page(server, url=f"{base(server)}/#{long_chat}")
    texts = page.locator("#messages .text")
    await expect(texts).to_have_text([f"Message {number}" for number in range(71, 121)])

    earlier = page.get_by_role("button", name="Show earlier messages")
    for first in (21, 1):
        await page.get_by_role("region", name="Messages").evaluate("(element) => element.scrollTo(0, 0)")
        top = await texts.first.evaluate("(element) => element.getBoundingClientRect().top")
        seen = await texts.first.element_handle()
        await earlier.click()
        await expect(texts).to_have_text([f"Message {number}" for number in range(first, 121)])
        # What was read stays where it was.
        assert seen is not None
        now = await seen.evaluate("(element) => element.getBoundingClientRect().top")
        assert abs(now - top) < 80
    await expect(earlier).to_be_hidden()

    links = page.get_by_role("navigation").get_by_role("link")
    more = page.get_by_role("button", name="More")
    await expect(links).to_have_count(30)
    await more.click()
    await expect(links).to_have_count(60)
    await expect(links.nth(30)).to_be_focused()
    await more.click()
    await expect(links).to_have_count(66)
    await expect(more).to_be_hidden()


# ---- Failures


async def test_earlier_messages_that_could_not_be_had_can_be_asked_for_again_by_their_button(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Long", messages=60)
    server = await start_server()
    page = await open_page(server, url=f"{base(server)}/#{chat_id}", ignore=FAILED_REQUEST)
    await intercept(page, "**/messages?*before=*", lambda route: route.abort(), times=1)
    earlier = page.get_by_role("button", name="Show earlier messages")
    await earlier.click()
    await expect(page.locator("#earlier-notice strong")).to_have_text("The server cannot be reached")
    await earlier.click()
    await expect(page.locator("#messages > li")).to_have_count(60)
    await expect(page.locator("#earlier-notice")).to_be_empty()


async def test_refusal_is_shown_in_the_servers_words_and_retried_once_with_other_settings(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server, settings={"user": str(uuid.uuid4())}, ignore=FAILED_REQUEST)
    async with page.expect_response("**/chat/stream") as answered:
        await say(page, "Let me in")
    notice = page.locator("#notice").get_by_role("alert")
    await expect(notice).to_contain_text("Forbidden")
    await expect(notice).to_contain_text("The user is not in this org.")
    await expect(notice.locator("code")).to_have_text((await (await answered.value).json())["requestId"])
    await expect(page.locator("#messages .user .status")).to_have_text("Not sent")
    await expect(page.locator("#chats-notice")).to_contain_text("The user is not in this org.")

    await save_settings(page, user=tenant.user_id)
    await expect(page.locator("#chats-notice")).to_be_empty()
    await notice.get_by_role("button", name="Retry").dblclick()
    await is_complete(replies(page))
    await expect(notice).to_have_count(0)
    await expect(page.locator("#messages .text")).to_have_text(["Let me in", "Hello"])
    assert rows.messages(tenant.org_id) == [("user", "Let me in", "complete"), ("assistant", "Hello", "complete")]


async def test_message_that_is_too_long_can_be_edited(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server(message_limit_chars=5), ignore=FAILED_REQUEST)
    await say(page, "Too long")
    notice = page.locator("#notice").get_by_role("alert")
    await expect(notice).to_contain_text("message has 8 characters, expected at most 5.")
    # To send it once more would be of no use.
    await expect(notice.get_by_role("button")).to_have_text(["Edit"])
    await notice.get_by_role("button", name="Edit").click()
    await expect(page.get_by_role("textbox", name="Message")).to_have_value("Too long")
    await expect(page.locator("#messages > li")).to_have_count(0)


async def test_model_that_fails_after_the_tenth_token_shows_the_error_event_and_is_retried_in_its_place(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    page = await open_page(await start_server(model=says(*["word "] * 10, RuntimeError("upstream"))))
    await say(page, "Hi")
    notice = page.locator("#notice").get_by_role("alert")
    # One name for one outcome; the server's own is among the details.
    await expect(notice.locator("strong")).to_have_text("Failed before the end")
    await expect(notice.locator("details")).to_contain_text("Stream failed")
    await expect(notice).to_contain_text("The model failed; what it said so far is saved.")
    await expect(notice.locator("code")).not_to_be_empty()
    await expect(replies(page).locator(".status")).to_have_text("Failed before the end")
    assert await shown(replies(page)) == "word " * 10

    reply_id = await replies(page).get_attribute("id")
    await notice.get_by_role("button", name="Retry").dblclick()
    await expect(page.locator(f"#messages > .assistant:not([id='{reply_id}']) .status")).to_have_text(
        "Failed before the end"
    )
    await expect(replies(page)).to_have_count(1)
    turn = [("user", "Hi", "complete"), ("assistant", "word " * 10, "failed")]
    assert rows.messages(tenant.org_id) == turn
    assert rows("select count(*) from chats where org_id = %s", tenant.org_id) == [(1,)]


TOKEN = 'data: {"token":"Hello","done":false}\n\n'


async def test_stream_that_is_not_what_it_should_be_is_a_failure(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server())
    answers: list[dict[str, str]] = []
    await intercept(page, "**/chat/stream", lambda route: route.fulfill(**answers[-1]))
    for content_type, body, expected in (
        ("text/event-stream", TOKEN, "The stream ended before the reply was complete."),
        ("text/event-stream", TOKEN + "data: {\n\n", "The stream holds an event that is not JSON."),
        ("text/html", "<p>Hello", "The server sent text/html, expected text/event-stream."),
    ):
        answers.append({"content_type": content_type, "body": body})
        await say(page, "Hi")
        await expect(page.locator("#notice").get_by_role("alert")).to_contain_text(expected)
        assert await shown(replies(page).last) == ("Hello" if TOKEN in body else "")


async def test_tokens_that_are_not_the_full_text_are_told(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server())
    body = TOKEN + 'data: {"token":"","done":true,"fullText":"Help"}\n\n'
    await intercept(
        page, "**/chat/stream", lambda route: route.fulfill(content_type="text/event-stream", body=body)
    )
    await say(page, "Hi")
    await expect(replies(page).locator(".status")).to_contain_text("differ from fullText from character 4 on")
    assert await shown(replies(page)) == "Help"


async def test_error_that_is_not_from_the_chat_server_is_told_by_its_status(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(), ignore=FAILED_REQUEST)
    await intercept(page, "**/chat/stream", lambda route: route.fulfill(status=502, body="<h1>nginx</h1>"))
    await say(page, "Hi")
    await expect(page.locator("#notice").get_by_role("alert")).to_contain_text("status 502 Bad Gateway")


async def test_server_that_does_not_answer_is_named(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server(), settings={"server": NOWHERE}, ignore=FAILED_REQUEST)
    await say(page, "Hi")
    notice = page.locator("#notice").get_by_role("alert")
    await expect(notice).to_contain_text(f"{NOWHERE} does not answer.")
    await expect(notice).to_contain_text("CORS_ORIGINS")
    await expect(notice.get_by_role("button")).to_have_text(["Retry", "Edit", "Open settings"])


async def test_chat_that_is_not_there_yet_says_so(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    add_chat(rows, tenant, "Chat", messages=2)
    page = await open_page(await start_server())
    asked, answer = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        asked.set()
        await answer.wait()
        await route.continue_()

    await intercept(page, "**/messages?*", hold)
    await page.get_by_role("link", name="Chat").click()
    await asked.wait()
    # A second later it is seen.
    content = "getComputedStyle($('messages'), '::before').content"
    assert await page.evaluate(content) == '"Loading…"'
    answer.set()
    await expect(page.locator("#messages > li")).to_have_count(2)
    assert await page.evaluate(content) == "none"


async def test_history_that_does_not_come_is_told_and_can_be_retried(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Old", messages=2)
    page = await open_page(await start_server())
    link = page.get_by_role("link", name="Old")
    await expect(link).to_be_visible()
    await page.clock.install()
    asked = asyncio.Event()

    async def swallow(route: Route) -> None:
        asked.set()

    await intercept(page, f"**/chats/{chat_id}/messages?*", swallow)
    await link.click()
    await asked.wait()
    await page.clock.run_for(33_000)
    notice = page.locator("#notice").get_by_role("alert")
    await expect(notice.locator("strong")).to_have_text("The server does not answer")
    await page.unroute_all()
    await notice.get_by_role("button", name="Retry").click()
    await expect(page.locator("#messages .text")).to_have_text(["Message 1", "Message 2"])


async def test_answer_that_breaks_off_is_not_called_something_else(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    add_chat(rows, tenant, "Old", messages=2)
    page = await open_page(
        await start_server(),
        init="""
            const { json } = Response.prototype;
            Response.prototype.json = function () {
                const broken = this.url.includes('/messages');
                return broken ? Promise.reject(new TypeError('network error')) : json.call(this);
            };
        """,
    )
    await page.get_by_role("link", name="Old").click()
    await expect(page.locator("#notice strong")).to_have_text("The connection broke")


async def test_connection_that_breaks_is_made_again_and_no_text_is_shown_twice(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated(pieces=["one ", "two ", "three ", "four"])
    server = await start_server(model=model)
    async with proxy_to(server, buffer_bytes=1) as (proxy, connections):
        page = await open_page(server, settings={"server": proxy}, url=f"{proxy}/", ignore=FAILED_REQUEST)
        await read_half(page, model)
        for connection in list(connections):
            connection.transport.abort()
        await expect(replies(page).last).to_have_attribute("data-status", "resuming")
        model.go(2)
        await is_complete(replies(page).last)
        assert await shown(replies(page)) == "one two three four"


async def test_stream_that_another_server_cuts_short_is_gone_on_with(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated(pieces=["one ", "two ", "three ", "four"])
    home, door = await start_server(model=model), await start_server()
    await door.app[BELLS].listening.wait()  # type: ignore[index]
    behind = SimpleNamespace(host=home.host, port=home.port)
    async with proxy_to(behind, buffer_bytes=1) as (proxy, connections):
        page = await open_page(home, settings={"server": proxy}, url=f"{proxy}/", ignore=FAILED_REQUEST)
        await read_half(page, model)
        behind.port = door.port
        for connection in list(connections):
            connection.transport.abort()
        model.go()
        await expect(replies(page).locator(".text")).to_have_text("one two three ")
        behind.port = home.port
        await drain(door.app)  # type: ignore[arg-type]
        model.go()
        await is_complete(replies(page).last)
        assert await shown(replies(page)) == "one two three four"


async def test_page_that_cannot_get_back_in_time_keeps_what_it_has_and_says_so(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated(pieces=["one ", "two ", "three ", "four"])
    server = await start_server(model=model)
    async with proxy_to(server, buffer_bytes=1) as (proxy, connections):
        page = await open_page(server, settings={"server": proxy}, url=f"{proxy}/", ignore=FAILED_REQUEST)
        await read_half(page, model)
        await page.clock.install()
        tries = 0

        async def refuse(route: Route) -> None:
            nonlocal tries
            tries += 1
            await route.abort()

        await intercept(page, "**/chat/stream/*", refuse)
        for connection in list(connections):
            connection.transport.abort()
        notice = page.locator("#notice").get_by_role("alert")
        while not await notice.count():
            await page.clock.run_for(1_000)
        assert tries == 7
        await expect(notice).to_contain_text(f"{proxy} does not answer.")
        await expect(replies(page).locator(".text")).to_have_text("one two ")
        await expect(replies(page).locator(".status")).to_have_text("Not read to the end")
        await expect(notice.get_by_role("button", name="Retry")).to_be_visible()


async def test_connection_that_is_open_but_dead_is_made_again(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated(pieces=["one ", "two ", "three ", "four"])
    server = await start_server(model=model, heartbeat_s=0.05)
    async with proxy_to(server, buffer_bytes=1) as (proxy, connections):
        page = await open_page(server, settings={"server": proxy}, url=f"{proxy}/", ignore=FAILED_REQUEST)
        await page.clock.install()
        await read_half(page, model)
        # Pings are signs of life.
        for _ in range(3):
            await page.clock.run_for(20_000)
            await page.wait_for_function(
                "(at) => meter.recordingOf(messages.lastElementChild).readAt >= at",
                arg=await page.evaluate("performance.now()"),
            )
        await expect(replies(page)).to_have_attribute("data-status", "live")
        for connection in connections:
            connection.write = lambda data: None  # type: ignore[method-assign]
        model.go(2)
        await page.clock.run_for(34_000)
        await expect(replies(page)).to_have_attribute("data-status", "resuming")
        # The browser may have more connections that it takes for open, and asks over those first.
        while await replies(page).get_attribute("data-status") == "resuming":
            await page.clock.run_for(5_000)
        await is_complete(replies(page))
        assert await shown(replies(page)) == "one two three four"


async def test_question_that_is_not_answered_is_given_up_and_asked_once(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    page = await open_page(await start_server(model=says("Hello")), ignore=FAILED_REQUEST)
    await page.clock.install()
    asked = await lose_answers(page, "**/chat/stream")
    await say(page, "Hi")
    await asked.wait()
    await page.clock.run_for(33_000)
    notice = page.locator("#notice").get_by_role("alert")
    await expect(notice).to_contain_text("No answer")
    await page.unroute_all()
    await notice.get_by_role("button", name="Retry").click()
    await is_complete(replies(page))
    assert rows.messages(tenant.org_id) == [("user", "Hi", "complete"), ("assistant", "Hello", "complete")]


async def test_reply_that_its_server_interrupts_is_called_so_at_once_and_later(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated(pieces=["one ", "two ", "three ", "four"])
    server, door = await start_server(model=model, shutdown_grace_s=0), await start_server()
    behind = SimpleNamespace(host=server.host, port=server.port)
    async with proxy_to(behind, buffer_bytes=1) as (proxy, connections):
        page = await open_page(server, settings={"server": proxy}, url=f"{proxy}/", ignore=FAILED_REQUEST)
        await read_half(page, model)
        await drain(server.app)  # type: ignore[arg-type]
        await expect(page.locator("#notice").get_by_role("alert")).to_contain_text("The server is stopping")
        status = replies(page).locator(".status")
        await expect(status).to_have_text("Not read to the end")
        # Another one knows.
        behind.port = door.port
        for connection in list(connections):
            connection.transport.abort()
        await expect(status).to_have_text("Interrupted: the server stopped before the end")
        await page.reload()
        await expect(status).to_have_text("Interrupted: the server stopped before the end")


CUT_SHORT = 'data: {"error":"Cut short","message":"The database did not answer. The reply may go on."}\n\n'


async def test_reply_that_is_cut_short_is_come_back_for_ever_more_seldom_until_it_has_an_end(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(), ignore=FAILED_REQUEST)
    answers = [CUT_SHORT] * 4 + [None] * 4 + [CUT_SHORT] * 4
    opening = 'id: 1:5\ndata: {"token":"","done":false}\n\n: ping\n'
    end = opening + 'data: {"token":" world","done":false}\n\n' + done_event("Hello world")

    async def answer(route: Route) -> None:
        if route.request.method == "POST":
            headers = {"content-type": "text/event-stream", "x-message-id": str(uuid.uuid4())}
            await route.fulfill(headers=headers, body=TOKEN + CUT_SHORT)
        elif (body := answers.pop(0) if answers else end) is None:
            await route.fulfill(status=503, json={"error": "Database unavailable", "message": "Try again."})
        else:
            await route.fulfill(content_type="text/event-stream", body=body)

    await intercept(page, "**/chat/stream**", answer)
    await page.evaluate(
        """() => {
            const { fetch } = window;
            window.asked = [];
            window.fetch = (url, options) => {
                const answer = fetch(url, options);
                if (!/offset=/.test(url)) return answer;
                const one = { offset: url.split('offset=')[1], at: Date.now() };
                asked.push(one);
                return answer.finally(() => { one.answeredAt = Date.now(); });
            };
        }"""
    )
    await page.clock.install()
    await say(page, "Hi")
    status = replies(page).locator(".status")
    await expect(status).to_have_text("One moment; the reply goes on by itself…")
    while answers:
        assert await replies(page).get_attribute("data-status") == "resuming"
        await page.clock.run_for(250)
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    await expect(said(page)).to_have_text([await status.inner_text()])
    await expect(page.locator("#notice")).to_be_empty()
    await page.clock.run_for(10_000)
    await is_complete(replies(page))
    assert await shown(replies(page)) == "Hello world"

    asked = await page.evaluate("asked")
    assert [each["offset"] for each in asked] == ["5"] * 13
    # Without the answers' own time, of which a busy machine makes seconds of this clock.
    waits_s = [(later["at"] - earlier["answeredAt"]) / 1000 for earlier, later in pairwise(asked)]
    assert 2 * waits_s[0] < waits_s[2] < waits_s[4] < 7 < min(waits_s[7:11])


async def test_silence_of_a_lost_connection_is_not_called_buffering(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server())
    text = "Hello" + " world" * 30

    async def answer(route: Route) -> None:
        if route.request.method == "POST":
            headers = {"content-type": "text/event-stream", "x-message-id": str(uuid.uuid4())}
            await route.fulfill(headers=headers, body=TOKEN + CUT_SHORT)
        else:
            body = 'data: {"token":" world","done":false}\n\n' * 30 + done_event(text)
            await route.fulfill(content_type="text/event-stream", body=body)

    await intercept(page, "**/chat/stream**", answer)
    await say(page, "Hi")
    await is_complete(replies(page))
    await expect(page.locator(".burst")).to_be_empty()
    # Nor is what was said meanwhile the model's pace.
    await expect(page.locator(".figures")).to_have_text(
        re.compile(r"^\d+ ms first · 31 words · 0\.0/s · 1 resume$")
    )


def done_event(text: str) -> str:
    event = {"done": True, "fullText": text, "chars": len(text), "sha256": sha256(text.encode()).hexdigest()}
    return f"data: {json.dumps(event)}\n\n"


async def test_reply_that_is_stopped_while_the_connection_is_lost_is_shown_as_stopped(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated(pieces=["one ", "two ", "three ", "four"])
    server = await start_server(model=model)
    async with proxy_to(server, buffer_bytes=1) as (proxy, connections):
        page = await open_page(server, settings={"server": proxy}, url=f"{proxy}/", ignore=FAILED_REQUEST)
        await read_half(page, model)
        await stop_clock(page)
        for connection in list(connections):
            connection.transport.abort()
        await expect(replies(page)).to_have_attribute("data-status", "resuming")
        # Not when the wait is over, which it never is, but at once.
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
        await expect(replies(page).locator(".status")).to_have_text("Stopped")
        await page.clock.resume()
        await expect(replies(page)).to_have_attribute("data-status", "stopped")
        assert await shown(replies(page)) == "one two "
        assert rows.messages(tenant.org_id)[1] == ("assistant", "one two ", "stopped")


async def test_two_windows_on_a_chat_both_show_the_whole_reply(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated(pieces=["one ", "two ", "three ", "four"])
    server = await start_server(model=model)
    first = await open_page(server)
    await read_half(first, model)
    second = await open_page(server, url=first.url)
    await expect(replies(second).locator(".text")).to_have_text("one two ")
    await expect(second.get_by_role("button", name="Stop")).to_be_visible()
    model.go()
    for page in (first, second):
        await expect(replies(page).locator(".text")).to_have_text("one two three ")
    # The second has not waited for the first word.
    await expect(first.locator(".figures")).to_have_text(re.compile(r"^\d+ ms first · 3 words · "))
    await expect(second.locator(".figures")).to_have_text(re.compile(r"^\d words? in this window"))
    model.go()
    await is_complete(replies(second))
    for page in (first, second):
        await expect(replies(page)).to_have_attribute("data-status", "complete")
        assert await shown(replies(page)) == "one two three four"


async def test_reply_that_another_window_reads_is_shown_to_who_asks_beside_it(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated(pieces=["one ", "two "])
    server = await start_server(model=model)
    first = await open_page(server)
    await read_half(first, model)
    await is_complete(replies(first))
    second = await open_page(server, url=first.url, ignore=FAILED_REQUEST)
    await expect(replies(second)).to_have_count(1)
    await say(first, "Again")
    model.go()
    await expect(replies(first).last.locator(".text")).to_have_text("one ")
    await say(second, "And I")
    notice = second.locator("#notice").get_by_role("alert")
    await expect(notice).to_contain_text("Another window reads a reply in this chat")
    await notice.get_by_role("button", name="Show it").click()
    await expect(replies(second).last.locator(".text")).to_have_text("one ")
    # What was not sent is in the field.
    await expect(second.get_by_role("textbox", name="Message")).to_have_value("And I")
    model.go()
    await is_complete(replies(second).last)


async def test_reply_that_has_less_stored_than_was_read_keeps_what_was_read(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Killed", messages=2)
    reply_id = rows("select id from messages where chat_id = %s and position = 2", chat_id)[0][0]
    rows("update messages set status = 'interrupted', content = '' where id = %s", reply_id)
    page = await open_page(await start_server(), ignore=FAILED_REQUEST)
    headers = {"content-type": "text/event-stream", "x-message-id": str(reply_id), "x-chat-id": chat_id}
    await intercept(page, "**/chat/stream", lambda route: route.fulfill(headers=headers, body=TOKEN))
    await say(page, "Hi")
    await expect(replies(page).locator(".status")).to_have_text("Interrupted: the server stopped before the end")
    assert await shown(replies(page)) == "Hello"


async def test_reply_that_has_ended_is_shown_so_from_the_first_moment(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server()
    for status in ("disconnected", "failed", "interrupted", "stopped"):
        chat_id = add_chat(rows, tenant, status, messages=2)
        rows("update messages set status = %s where chat_id = %s and position = 2", status, chat_id)
        page = await open_page(
            server,
            url=f"{base(server)}/#{chat_id}",
            init="""addEventListener('DOMContentLoaded', () => {
                window.changes = 0;
                const observer = new MutationObserver((records) => { window.changes += records.length; });
                for (const id of ['send', 'stop'])
                    observer.observe(document.getElementById(id), { attributes: true });
            });""",
        )
        await expect(replies(page)).to_have_attribute("data-status", status)
        await page.wait_for_load_state("networkidle")
        assert await page.evaluate("changes") == 0
        await expect(replies(page)).to_have_attribute("data-status", status)


async def test_chat_that_is_not_there_is_told_and_the_next_message_starts_a_new_one(
    start_server: StartServer, open_page: OpenPage
) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server, url=f"{base(server)}/#{uuid.uuid4()}", ignore=FAILED_REQUEST)
    await expect(page.locator("#notice").get_by_role("alert")).to_contain_text("There is no such chat.")
    await say(page, "Hi")
    await is_complete(replies(page))
    await expect(page.get_by_role("navigation").get_by_role("link", name="Hi")).to_be_visible()


# ---- Settings


async def test_bad_settings_are_told_at_their_fields(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server())
    await save_settings(page, server="localhost:3000", org="acme", user="")
    await expect(page.locator("#server-error")).to_contain_text("Expected an address like http")
    await expect(page.locator("#org-error")).to_contain_text("Expected a UUID like")
    await expect(page.locator("#user-error")).to_contain_text("Expected a UUID like")
    await expect(page.locator("#server")).to_be_focused()
    await expect(page.locator("#org")).to_have_attribute("aria-invalid", "true")
    await page.get_by_role("button", name="Defaults").click()
    # As browsers say that one of the examples was chosen.
    await page.locator("#sim").evaluate("(field) => field.dispatchEvent(new Event('keydown', { bubbles: true }))")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_page_works_without_storage(start_server: StartServer, open_page: OpenPage) -> None:
    server = await start_server(seed_demo=True, model=says("Hello"))
    forbid = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('forbidden'); } })"
    page = await open_page(server, settings={}, init=forbid)
    await save_settings(page)
    await say(page, "Hi")
    await is_complete(replies(page))


async def test_token_says_who_is_asking_in_place_of_the_ids(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    secret = "a secret of at least 32 characters"
    token = jwt.encode({"org_id": tenant.org_id, "sub": tenant.user_id, "exp": time.time() + 60}, secret)
    server = await start_server(jwt_secret=secret, model=says("Hello"))
    page = await open_page(server, settings={"user": str(uuid.uuid4())}, ignore=FAILED_REQUEST)
    await expect(page.locator("#chats-notice")).to_contain_text("Unauthorized")
    await save_settings(page, token=f"Bearer {token}")
    await expect(page.locator("#token-error")).to_contain_text("Expected only the token")
    assert await page.locator("#token").get_attribute("type") == "password"
    # With a token the ids are of no account.
    await page.locator("#user").fill("nobody")
    await page.locator("#token").fill(f" {token} ")
    async with page.expect_request("**/chats?*") as asked:
        await page.get_by_role("button", name="Save").click()
    headers = await (await asked.value).all_headers()
    assert headers["authorization"] == f"Bearer {token}"
    assert not {"x-org-id", "x-user-id"} & set(headers)

    await say(page, "Hi")
    await is_complete(replies(page))
    await page.reload()
    await expect(page.locator("#messages .text")).to_have_text(["Hi", "Hello"])
    assert rows("select user_id::text from chats where org_id = %s", tenant.org_id) == [(tenant.user_id,)]


# ---- Security and origins


async def test_markup_of_user_and_model_is_text(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    attack = "<img src=x onerror=window.pwned=1><script>window.pwned=1</script><a href=javascript:pwned=1>x</a>"
    page = await open_page(await start_server(model=says(attack)))
    elements = "document.querySelectorAll('img, body script, [onerror], [href^=javascript]').length"
    await say(page, attack)
    await is_complete(replies(page))
    for _ in range(2):
        await expect(page.locator("#messages .text")).to_have_text([attack, attack])
        await expect(page.get_by_role("navigation").get_by_role("link")).to_contain_text([attack[:20]])
        assert await page.evaluate(elements) == 0
        assert await page.evaluate("window.pwned") is None
        await page.reload()


async def test_policy_of_the_page_itself_stops_a_script_from_elsewhere_and_an_inline_one(
    start_server: StartServer, open_page: OpenPage
) -> None:
    async with file_server() as origin:
        server = await start_server(cors_origins=frozenset({origin}))
        page = await open_page(server, url=f"{origin}/", ignore="Content Security Policy")
        blocked = await page.evaluate(
            """async (url) => {
                const blocked = [];
                addEventListener('securitypolicyviolation', (event) => blocked.push(event.effectiveDirective));
                for (const properties of [{ src: url }, { textContent: 'window.pwned = 1' }])
                    document.head.append(Object.assign(document.createElement('script'), properties));
                while (blocked.length < 2) await new Promise(requestAnimationFrame);
                return blocked;
            }""",
            f"{NOWHERE}/x.js",
        )
        assert sorted(blocked) == ["script-src-elem", "script-src-elem"]
        assert await page.evaluate("window.pwned") is None


async def test_page_under_a_path_stays_there(start_server: StartServer, open_page: OpenPage) -> None:
    server = await start_server(seed_demo=True, model=says("Hello"))
    async with proxy_to(server, buffer_bytes=1, under="/llm") as (proxy, _):
        page = await open_page(server, url=f"{proxy}/llm/", settings={})
        await expect(page.locator("#account")).to_have_text(f"{proxy.removeprefix('http://')}/llm")
        await say(page, "Under a path")
        await is_complete(replies(page))
        await expect(page).to_have_url(re.compile(f"^{proxy}/llm/#[0-9a-f-]{{36}}$"))
        # The page at the root of this host has settings of its own.
        elsewhere = json.dumps({"server": NOWHERE})
        await page.evaluate("([key, value]) => { localStorage[key] = value; }", [SETTINGS_KEY, elsewhere])
        await page.reload()
        await expect(page.locator("#messages .text")).to_have_text(["Under a path", "Hello"])
        await page.get_by_role("button", name="New chat").click()
        await expect(page).to_have_url(f"{proxy}/llm/")
        await page.get_by_role("link", name="Under a path").first.click()
        await expect(page).to_have_url(re.compile(f"^{proxy}/llm/#[0-9a-f-]{{36}}$"))
        await expect(page.locator("#messages .text")).to_have_text(["Under a path", "Hello"])


async def test_page_from_another_origin_works_where_cors_allows_it(
    start_server: StartServer, open_page: OpenPage
) -> None:
    async with file_server() as origin:
        server = await start_server(cors_origins=frozenset({origin}), model=says("Hello", " world"))
        page = await open_page(server, url=f"{origin}/")
        await say(page, "Hi")
        await is_complete(replies(page))
        # The id of the chat is in a header that the server exposes.
        await expect(page).to_have_url(re.compile("#[0-9a-f-]{36}$"))
        await page.reload()
        await expect(page.locator("#messages .text")).to_have_text(["Hi", "Hello world"])
        await page.get_by_role("button", name="Settings").click()
        await page.get_by_role("button", name="Defaults").click()
        await expect(page.locator("#server")).to_have_value("http://localhost:3000")


async def test_page_from_another_origin_is_told_about_cors_where_it_is_not_allowed(
    start_server: StartServer, open_page: OpenPage
) -> None:
    async with file_server() as origin:
        server = await start_server(cors_origins=frozenset())
        page = await open_page(server, url=f"{origin}/", ignore=FAILED_REQUEST)
        await say(page, "Hi")
        await expect(page.locator("#notice").get_by_role("alert")).to_contain_text(
            f"is {origin} in its CORS_ORIGINS?"
        )


async def test_page_opened_as_a_file_works_where_cors_allows_null(
    start_server: StartServer, open_page: OpenPage
) -> None:
    server = await start_server(cors_origins=frozenset({"null"}), model=says("Hello", " world"))
    page = await open_page(server, url=(WEB / "index.html").as_uri())
    await say(page, "Hi")
    await is_complete(replies(page))
    await page.reload()
    await expect(page.locator("#messages .text")).to_have_text(["Hi", "Hello world"])


# ---- Keys and screens


async def test_enter_sends_and_shift_enter_starts_a_line_and_composition_is_left_alone(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    page = await open_page(await start_server(model=says("Hello")))
    field = page.get_by_role("textbox", name="Message")
    low = await field.evaluate("(element) => element.clientHeight")
    await field.fill("   ")
    await page.keyboard.press("Enter")
    await field.fill("One")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    await expect(field).to_have_value("One\ntwo")
    assert await field.evaluate("(element) => element.clientHeight") > low
    await field.evaluate(
        "(element) => element.dispatchEvent(new KeyboardEvent('keydown', "
        "{ key: 'Enter', isComposing: true, bubbles: true, cancelable: true }))"
    )
    await expect(page.locator("#messages > li")).to_have_count(0)
    await page.keyboard.press("Enter")
    await is_complete(replies(page))
    await expect(field).to_have_value("")
    assert await field.evaluate("(element) => element.clientHeight") == low
    assert [content for _, content, _ in rows.messages(tenant.org_id)] == ["One\ntwo", "Hello"]


async def test_enter_while_a_reply_runs_keeps_the_next_message(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model))
    await say(page, "First")
    model.go()
    await expect(replies(page).locator(".text")).to_have_text("word ")
    await say(page, "Second")
    await expect(page.get_by_role("textbox", name="Message")).to_have_value("Second")
    why = page.get_by_text("One reply at a time: wait for its end, or stop it.")
    await expect(why).to_have_role("status")
    assert len(rows.messages(tenant.org_id)) == 2
    # Safari's, of an Escape that ends the composition of a character.
    composed = "new KeyboardEvent('keydown', { key: 'Escape', keyCode: 229, bubbles: true })"
    await page.evaluate(f"document.activeElement.dispatchEvent({composed})")
    assert await replies(page).locator(".status").text_content() == ""
    await page.keyboard.press("Escape")
    await expect(why).to_have_count(0)


async def test_all_is_reached_and_left_by_keyboard_alone(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    add_chat(rows, tenant, "Old", messages=2)
    model = Gated()
    page = await open_page(await start_server(model=model))
    await expect(page.get_by_role("link", name="Old")).to_be_visible()
    await page.get_by_role("button", name="Skip").focus()
    reached = []
    for _ in range(6):
        name = "(active) => active.ariaLabel ?? active.innerText.split('\\n')[0]"
        reached.append(await page.evaluate(f"({name})(document.activeElement)"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await page.evaluate(outline) == "solid"
        await page.keyboard.press("Tab")
    assert reached == ["Skip to the message field", "New chat", "Search chats", "Old", "Settings", "Messages"]
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    for name in ("Send", "A long story"):
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("button", name=name)).to_be_focused()

    for _ in range(4):
        await page.keyboard.press("Shift+Tab")
    await expect(page.get_by_role("button", name="Settings")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#server")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await expect(page.get_by_role("button", name="Settings")).to_be_focused()

    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator("#messages .text")).to_have_text(["Message 1", "Message 2"])
    await page.get_by_role("button", name="Skip").focus()
    await page.keyboard.press("Enter")
    await page.keyboard.type("Hi")
    await page.keyboard.press("Enter")
    model.go()
    await expect(replies(page).last.locator(".text")).to_have_text("word ")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Stop")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(replies(page).last.locator(".status")).to_have_text("Stopped")
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()


@pytest.mark.parametrize("came_by", ["opened", "reloaded"])
@pytest.mark.parametrize("width", [390, 1280])
async def test_question_in_a_long_chat_and_its_reply_are_in_view(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant, width: int, came_by: str
) -> None:
    model = Gated("line\n" * 3)
    page = await open_long_chat(start_server, open_page, rows, tenant, model, width)
    if came_by == "reloaded":
        await page.reload()
        await expect(page.locator("#messages > li")).to_have_count(50)
    for _ in range(2):
        await is_at_end(page)
        await say(page, "Hi")
        question = page.locator("#messages > .user").last
        await expect(question).to_be_in_viewport(ratio=1)
        for lines in (3, 6, 9):
            await grow(page, model, lines)
            await is_at_end(page)
            await expect(replies(page).last).to_be_in_viewport(ratio=1)
        await expect(question).to_be_in_viewport(ratio=1)
        await page.keyboard.press("Escape")
        await expect(replies(page).last.locator(".status")).to_have_text("Stopped")


async def test_text_that_is_selected_with_the_pointer_does_not_move_away_under_it(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated("line\n\n" * 20)
    page = await open_long_chat(start_server, open_page, rows, tenant, model, 1000)
    await say(page, "Hi")
    await grow(page, model, 20)
    place = await replies(page).last.locator(".text").bounding_box()
    assert place
    await page.mouse.move(place["x"] + 5, 400)
    await page.mouse.down()
    await page.mouse.move(place["x"] + 20, 200, steps=2)
    selected = await page.evaluate("[thread.scroller.scrollTop, getSelection().toString()]")
    assert "line" in selected[1]
    await grow(page, model, 40)
    assert await page.evaluate("[thread.scroller.scrollTop, getSelection().toString()]") == selected
    await page.mouse.up()
    await page.get_by_role("button", name="Jump to latest").click()
    await is_at_end(page)
    await grow(page, model, 60)
    await is_at_end(page)


@pytest.mark.parametrize("width", [390, 1280])
async def test_reader_who_scrolls_up_is_left_there_until_they_are_back_at_the_end(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant, width: int
) -> None:
    model = Gated("line\n" * 20)
    page = await open_long_chat(start_server, open_page, rows, tenant, model, width)
    region = page.get_by_role("region", name="Messages")
    jump = page.get_by_role("button", name="Jump to latest")

    async def top() -> float:
        return float(await region.evaluate("(element) => element.scrollTop"))

    await say(page, "Hi")
    await grow(page, model, 20)
    # The end moves, its reader does not: a keyboard opens and closes, a phone is turned, a message gets longer.
    for height in (420, 900, 700):
        await page.set_viewport_size({"width": width, "height": height})
        await is_at_end(page)
    await page.set_viewport_size({"width": width - 60, "height": 700})
    await is_at_end(page)
    for key in ("Shift+Enter", "Shift+Enter", "Shift+Enter", "x", "Backspace", "Backspace"):
        await page.keyboard.press(key)
        await is_at_end(page)
    await grow(page, model, 40)
    await is_at_end(page)

    await region.hover()
    await page.mouse.wheel(0, -200)
    await expect(jump).to_be_visible()
    await frames(page)
    left_at = await top()
    await grow(page, model, 60)
    await page.set_viewport_size({"width": width - 60, "height": 800})
    await page.keyboard.press("Shift+Enter")
    await grow(page, model, 80)
    assert await top() == left_at
    await page.set_viewport_size({"width": width, "height": 700})
    await expect(jump).to_be_visible()

    await page.mouse.wheel(0, 10_000)
    await expect(jump).to_be_hidden()
    await grow(page, model, 100)
    await is_at_end(page)

    await page.mouse.wheel(0, -200)
    await expect(jump).to_be_visible()
    await jump.click()
    await expect(jump).to_be_hidden()
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    await grow(page, model, 120)
    await is_at_end(page)


async def open_long_chat(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant, model: Gated, width: int
) -> Page:
    chat_id = add_chat(rows, tenant, "Long", messages=60)
    server = await start_server(model=model)
    page = await open_page(
        server,
        url=f"{base(server)}/#{chat_id}",
        viewport={"width": width, "height": 700},
        device_scale_factor=1.25,
    )
    # As browsers without scroll anchoring have it: nothing but the page keeps to the end.
    await page.locator("#scroller").evaluate("(element) => { element.style.overflowAnchor = 'none'; }")
    await expect(page.locator("#messages > li")).to_have_count(50)
    return page


async def grow(page: Page, model: Gated, lines: int) -> None:
    """Let the last reply have so many lines."""
    model.go()
    await expect(replies(page).last.locator(".text")).to_have_text(re.compile(rf"^(line\s*){{{lines}}}$"))
    await frames(page)


async def frames(page: Page) -> None:
    """Wait until what has changed is laid out, and the scroll events of that are over."""
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


async def is_at_end(page: Page) -> None:
    await frames(page)
    below = "({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight"
    assert abs(await page.locator("#scroller").evaluate(below)) < 2


async def test_phone_has_no_horizontal_scroll_and_a_drawer(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    add_chat(rows, tenant, "Old " + "x" * 50, messages=2)
    page = await open_page(
        await start_server(model=says("x" * 400, " ", "word " * 200)),
        viewport={"width": 390, "height": 740},
        has_touch=True,
        is_mobile=True,
    )
    # What sticks out of the window.
    wide = """() => [...document.querySelectorAll('main *:not(svg *)')].filter((element) =>
        element.getBoundingClientRect().right > innerWidth + 1).map((element) => element.outerHTML.slice(0, 80))"""
    assert await page.evaluate(wide) == []
    await page.get_by_role("textbox", name="Message").fill("y" * 300)
    await page.get_by_role("button", name="Send").tap()
    await is_complete(replies(page))
    for width in (390, 360, 320):
        await page.set_viewport_size({"width": width, "height": 740})
        assert await page.evaluate(wide) == []
        assert await page.evaluate("document.documentElement.scrollWidth") == width
    await expect(page.get_by_role("textbox", name="Message")).to_be_in_viewport(ratio=1)

    drawer = page.get_by_role("navigation", name="Chats")
    await expect(drawer).to_be_hidden()
    await page.get_by_role("button", name="Chats and settings").click()
    await expect(drawer).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(drawer).to_be_hidden()
    await expect(page.get_by_role("button", name="Chats and settings")).to_be_focused()
    await page.keyboard.press("Enter")
    await drawer.get_by_role("link", name="Old").click()
    await expect(drawer).to_be_hidden()
    await expect(page.locator("#messages .text")).to_have_text(["Message 1", "Message 2"])
    await page.get_by_role("button", name="Chats and settings").click()
    await drawer.get_by_role("button", name="Settings").click()
    await expect(page.get_by_role("dialog", name="Settings")).to_be_in_viewport(ratio=1)


async def test_scheme_is_followed_and_text_has_contrast(start_server: StartServer, open_page: OpenPage) -> None:
    model = says("word ", RuntimeError())
    page = await open_page(await start_server(model=model))
    await say(page, "Hi")
    await expect(page.locator("#notice").get_by_role("alert")).to_be_visible()
    await page.locator(".burst").evaluate("(element) => { element.textContent = 'Buffering'; }")
    await page.locator(".figures").click()
    await page.get_by_text("Requests and their headers").click()
    await page.locator("#message").fill("Next")
    measure = """() => {
            const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
            const luminance = (color) => rgb(color).slice(0, 3).map((c) => c / 255)
                .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
                .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
            const behind = (element) => {
                const color = getComputedStyle(element).backgroundColor;
                return (rgb(color)[3] ?? 1) > 0.5 ? color : behind(element.parentElement);
            };
            const contrast = (element) => {
                const [one, other] = [getComputedStyle(element).color, behind(element)].map(luminance);
                return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
            };
            const selectors = ['h1', '.user .text', '.assistant .text', '.status', '.notice strong', '.notice p',
                '.notice .request', '.notice .button', 'dt', 'dd', 'figcaption', '.burst', '.figures',
                '#histogram span', '#requests pre', '#events [role=columnheader]', '#events [role=cell]',
                '#message', '#send', '#keys', '.brand', '#new-chat', '#chats a', '#chats h2', '#account'];
            return {
                page: luminance(getComputedStyle(document.body).backgroundColor),
                low: selectors.filter((selector) => contrast(document.querySelector(selector)) < 4.5),
            };
        }"""
    await page.emulate_media(color_scheme="light")
    light = await page.evaluate(measure)
    await page.emulate_media(color_scheme="dark")
    dark = await page.evaluate(measure)
    assert light["low"] == dark["low"] == []
    assert light["page"] > 0.8
    assert dark["page"] < 0.05


# What came to the last of the large browsers after 2022, and what only some of them had by then.
NEWER = """
    for (const [owner, ...names] of [
        [URL, 'parse', 'canParse'],
        [Promise, 'withResolvers', 'try'],
        [AbortSignal, 'any', 'timeout'],
        [AbortSignal.prototype, 'throwIfAborted'],
        [Array, 'fromAsync'],
        [Array.prototype, 'findLast', 'findLastIndex', 'toReversed', 'toSorted', 'toSpliced', 'with'],
        [Iterator.prototype, 'map', 'filter', 'take', 'drop', 'flatMap', 'reduce', 'toArray', 'forEach', 'some',
            'every', 'find'],
        [Object, 'groupBy'],
        [Map, 'groupBy'],
        [Set.prototype, 'union', 'intersection', 'difference', 'symmetricDifference', 'isSubsetOf'],
        [String.prototype, 'isWellFormed', 'toWellFormed'],
        [Uint8Array.prototype, 'toHex', 'toBase64'],
        [ReadableStream, 'from'],
        [ReadableStream.prototype, 'values', Symbol.asyncIterator],
        [HTMLElement.prototype, 'popover', 'showPopover', 'hidePopover', 'togglePopover', 'inert'],
        [HTMLButtonElement.prototype, 'popoverTargetElement', 'commandForElement'],
        [HTMLDialogElement.prototype, 'requestClose', 'closedBy'],
        [HTMLFormElement.prototype, 'requestSubmit'],
        [Element.prototype, 'checkVisibility', 'setHTMLUnsafe', 'moveBefore', 'role',
            ...Object.keys(Element.prototype).filter((name) => name.startsWith('aria'))],
        [globalThis, 'Iterator', 'navigation', 'scheduler', 'structuredClone'],
    ])
        for (const name of names) delete owner[name];
"""
NEWER_CSS = re.compile(r"light-dark|color-mix|dvh|text-wrap|@starting-style|allow-discrete|:has|translate: ")


async def test_page_needs_nothing_of_a_browser_that_came_after_2022(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    add_chat(rows, tenant, "Old", messages=2)
    model = Gated()
    server = await start_server(model=model)
    page = await open_page(server, init=NEWER, viewport={"width": 390, "height": 700}, ignore=FAILED_REQUEST)

    async def older(route: Route) -> None:
        css = NEWER_CSS.sub("unknown", (WEB / Path(route.request.url).name).read_text())
        await route.fulfill(content_type="text/css", body=css)

    await intercept(page, "**/*.css", older)
    await page.reload()
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(250, 249, 247)"
    assert await page.evaluate("document.body.clientHeight") == 700
    await read_word(page, model)
    await page.keyboard.press("Escape")
    await expect(replies(page).locator(".status")).to_have_text("Stopped")
    await page.evaluate("(text) => markdown.whole(document.createElement('div'), text)", EVERYTHING)
    drawer = page.get_by_role("navigation", name="Chats")
    for width in (390, 1280, 390):
        await page.set_viewport_size({"width": width, "height": 700})
        await expect(drawer).to_be_visible(visible=width == 1280)
    await page.get_by_role("button", name="Chats and settings").click()
    await expect(drawer).to_be_in_viewport(ratio=1)
    await page.mouse.click(380, 300)
    await expect(drawer).to_be_hidden()
    await page.get_by_role("button", name="Chats and settings").click()
    await drawer.get_by_role("link", name="Old").click()
    await expect(page.locator("#messages .text")).to_have_text(["Message 1", "Message 2"])
    await page.get_by_role("button", name="Chats and settings").click()
    await save_settings(page, server="nowhere")
    await expect(page.locator("#server-error")).to_contain_text("Expected an address")
    await page.get_by_role("button", name="Defaults").click()
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("dialog")).to_be_hidden()


# ---- The meter


async def test_direct_stream_is_measured_and_not_called_buffered(
    start_server: StartServer, open_page: OpenPage
) -> None:
    # For so long that half of it comes at once on no machine, however busy.
    page = await open_page(await start_server(sim_delay_ms=(8.0, 12.0)))
    await say(page, "Tell a story")
    await is_complete(replies(page))
    # A word each 10 ms, and timers that may be late.
    words = len((await shown(replies(page))).split())
    line = await page.locator(".figures").inner_text()
    found = re.fullmatch(rf"\d+ ms first · {words} words · ([\d.]+)/s · longest gap \d+ ms", line)
    assert found
    assert 10 < float(found[1]) < 125
    await page.locator(".figures").click()
    await expect(page.get_by_role("img", name=re.compile(r"^\d+ gaps, the longest \d+ ms$"))).to_be_visible()
    assert (await page.locator("#gaps .gaps").get_attribute("d") or "").count("M") > 50
    await expect(page.locator(".burst")).to_be_empty()


@pytest.mark.parametrize("buffer_bytes", [8192, 1_000_000])
async def test_proxy_that_buffers_is_called_so(
    start_server: StartServer, open_page: OpenPage, buffer_bytes: int
) -> None:
    server = await start_server(sim_delay_ms=(4.0, 6.0))
    async with proxy_to(server, buffer_bytes) as (proxy, _):
        page = await open_page(server, settings={"server": proxy}, url=f"{proxy}/")
        await say(page, "Tell a story")
        await is_complete(replies(page))
        warning = page.locator(".burst")
        await expect(warning).to_have_text(
            re.compile(
                r"^\d+ words arrived at once after \d+ ms of silence: something between you and the server, "
                r"likely a proxy, is buffering\.$"
            )
        )
        await page.locator(".figures").click()
        assert (await page.locator("#gaps .bursts").get_attribute("d") or "").count("M") >= 1

        # It is about that reply, whenever it is read.
        await page.reload()
        await expect(warning).to_contain_text("is buffering")
        await expect(page.get_by_role("link", name="Tell a story")).to_be_visible()


async def test_burst_is_many_tokens_at_once_after_a_silence_and_most_of_the_reply(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server())
    for reads, expected in (
        ([(20, 1), (40, 1), (60, 1)], ""),
        ([(400, 4), (800, 4), (1200, 4)], ""),
        ([(10, 300), (20, 300)], ""),
        ([(300, 5)], "5 words arrived at once after 300 ms"),
        ([(300, 9), (600, 12), (900, 7)], "12 words arrived at once after 300 ms"),
        # One hiccup of the network, in an otherwise steady stream.
        ([*((20 * n, 1) for n in range(1, 40)), (1800, 30)], ""),
        # A heartbeat is a sign of life.
        ([(200, 0), (400, 0), (600, 9)], ""),
    ):
        early, said = await page.evaluate(
            """(reads) => {
                const item = thread.messageItem({ role: 'assistant', content: '' });
                const recording = meter.begin(item);
                const word = { id: '', data: '', words: 1 };
                for (const [at, words] of reads) recording.read(recording.sentAt + at, 9, Array(words).fill(word));
                meter.draw(item);
                const early = item.querySelector('.burst').textContent;
                meter.keep(item);
                return [early, item.querySelector('.burst').textContent];
            }""",
            reads,
        )
        assert early == "", reads
        assert said.startswith(expected), reads
        assert bool(said) == bool(expected), reads


# ---- What the tests need besides


@asynccontextmanager
async def file_server() -> AsyncIterator[str]:
    """Serve web/ as `python -m http.server` does; give its origin."""

    async def index(request: web.Request) -> web.FileResponse:
        return web.FileResponse(WEB / "index.html")

    app = web.Application()
    app.add_routes([web.get("/", index), web.static("/", WEB)])
    async with TestServer(app) as server:
        yield base(server)


@asynccontextmanager
async def proxy_to(
    server: TestServer | SimpleNamespace, buffer_bytes: int, under: str = ""
) -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """Relay to `server`, its answers only once so many bytes are there or it is silent.

    Requests to paths under `under` come without it.
    Gives the proxy's origin, and its connections to the browser.
    """
    connections: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, buffer_bytes: int) -> None:
        held = b""
        with suppress(ConnectionError), closing(writer):
            while True:
                try:
                    data = await asyncio.wait_for(reader.read(65536), 0.2 if held else None)
                except TimeoutError:
                    writer.write(held)
                    held = b""
                    continue
                held += data.replace(f" {under}/".encode(), b" /") if writer not in connections else data
                if len(held) >= buffer_bytes or not data:
                    writer.write(held)
                    held = b""
                if not data:
                    return

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        to_server = await asyncio.open_connection(server.host, server.port)
        await asyncio.gather(relay(reader, to_server[1], 1), relay(to_server[0], writer, buffer_bytes))

    listener = await asyncio.start_server(connect, "127.0.0.1")
    try:
        yield "http://{}:{}".format(*listener.sockets[0].getsockname()), connections
    finally:
        listener.close()
        for connection in connections:
            connection.close()
