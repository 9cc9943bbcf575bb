"""What one does with a message in a real Chromium: copy, regenerate, edit, go on; the field, its drafts; touch."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

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
    lose_answers,
    open_page,
    read_half,
    read_word,
    replies,
    say,
    shown,
    start_server,
    stop_clock,
)
from playwright.async_api import Locator, Page, Route, expect
from serving import StartServer
from support import Gated, Rows, Tenant, says

from app.models import Conversation, Model

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PHONE = {"viewport": {"width": 390, "height": 740}, "has_touch": True, "is_mobile": True}


def counting(asked: list[list[str]]) -> Model:
    """Return a model that says how often it was asked, and notes what it was given."""

    async def model(conversation: Conversation) -> AsyncIterator[str]:
        asked.append([message.content for message in conversation.messages])
        yield f"Reply {len(asked)}"

    return model


def questions(page: Page) -> Locator:
    return page.locator("#messages > .user")


def samples_of(page: Page) -> Locator:
    return page.get_by_role("group", name="Try one of these").get_by_role("button")


def texts(page: Page) -> Locator:
    return page.locator("#messages .text")


async def asked_one_after_another(page: Page, *messages: str) -> None:
    for message in messages:
        await say(page, message)
        await is_complete(replies(page).last)


# ---- Instead of an earlier message


async def test_reply_is_regenerated_in_its_place(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    asked: list[list[str]] = []
    page = await open_page(await start_server(model=counting(asked)))
    await asked_one_after_another(page, "One", "Two")
    await replies(page).last.get_by_role("button", name="Regenerate").click()
    await expect(texts(page)).to_have_text(["One", "Reply 1", "Two", "Reply 3"])
    await is_complete(replies(page).last)
    assert asked[2] == ["One", "Reply 1", "Two"]
    # What was stored before the page was loaded, too; and what follows only if one means it.
    await page.reload()
    again = replies(page).first.get_by_role("button", name="Regenerate")
    await again.dblclick()
    await expect(again).to_have_attribute("data-said", "Once more, to replace what follows")
    await expect(texts(page)).to_have_count(4)
    # The button goes, and the focus that it had.
    await again.press("Enter")
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    await expect(texts(page)).to_have_text(["One", "Reply 4"])
    await is_complete(replies(page).last)
    assert asked[3] == ["One"]
    assert rows.messages(tenant.org_id) == [("user", "One", "complete"), ("assistant", "Reply 4", "complete")]


async def test_question_is_edited_with_all_after_it_and_the_draft_comes_back(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    page = await open_page(await start_server(model=counting([])))
    await asked_one_after_another(page, "One", "Two")
    field = page.get_by_role("textbox", name="Message")
    await field.fill("A draft")
    await questions(page).first.get_by_role("button", name="Edit").click()
    await expect(field).to_be_focused()
    await expect(field).to_have_value("One")
    note = "Sent again, it replaces the message and the 3 after it."
    await expect(page.locator("#editing")).to_contain_text(note)
    await expect(page.locator("#live > p").last).to_have_text(note)
    await page.keyboard.press("Escape")
    await expect(field).to_have_value("A draft")
    await expect(page.locator("#editing")).to_be_hidden()

    await questions(page).first.get_by_role("button", name="Edit").click()
    await field.fill("Another")
    await page.keyboard.press("Enter")
    await expect(texts(page)).to_have_text(["Another", "Reply 3"])
    await is_complete(replies(page).last)
    await expect(field).to_have_value("A draft")
    stored = [("user", "Another", "complete"), ("assistant", "Reply 3", "complete")]
    assert rows.messages(tenant.org_id) == stored


async def test_note_at_an_edit_says_what_would_be_replaced_now(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model))
    await read_word(page, model)
    await page.keyboard.press("Escape")
    await questions(page).get_by_role("button", name="Edit").click()
    note = page.locator("#editing > span")
    await expect(note).to_have_text("Sent again, it replaces the message and its reply.")
    await page.get_by_role("button", name="Go on").click()
    await expect(note).to_have_text("Sent again, it replaces the message and the 3 after it.")
    model.go()
    await expect(replies(page).last.locator(".text")).to_have_text("word ")
    await page.get_by_role("button", name="Stop").click()
    await expect(replies(page).last).to_have_attribute("data-status", "stopped")
    again = replies(page).first.get_by_role("button", name="Regenerate")
    await again.click()
    await again.click()
    await expect(note).to_have_text("The message is not there any more: sent, this is a new one.")


async def test_chat_that_has_gone_on_in_another_window_loses_nothing(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=counting([]))
    page = await open_page(server, ignore=FAILED_REQUEST)
    await asked_one_after_another(page, "One")
    other = await open_page(server, url=page.url)
    await expect(texts(other)).to_have_count(2)
    await asked_one_after_another(other, "Two")
    await replies(page).last.get_by_role("button", name="Regenerate").click()
    notice = page.locator("#notice").get_by_role("alert")
    await expect(notice.locator("strong")).to_have_text("The chat has gone on")
    await expect(notice).to_contain_text("Something was said in it that is not shown here")
    await expect(texts(page)).to_have_text(["One", "Reply 1"])
    await notice.get_by_role("button", name="Show it").click()
    await expect(texts(page)).to_have_text(["One", "Reply 1", "Two", "Reply 2"])
    # What was written anew is not lost with that.
    await asked_one_after_another(other, "Three")
    field = page.get_by_role("textbox", name="Message")
    await field.fill("A draft")
    await questions(page).first.get_by_role("button", name="Edit").click()
    await field.fill("One, in long")
    await page.keyboard.press("Enter")
    await notice.get_by_role("button", name="Show it").click()
    await expect(texts(page)).to_have_count(6)
    await expect(field).to_have_value("One, in long\n\nA draft")
    said = ["One", "Reply 1", "Two", "Reply 2", "Three", "Reply 3"]
    assert [content for _, content, _ in rows.messages(tenant.org_id)] == said


async def test_edit_that_is_refused_puts_back_what_it_would_have_replaced(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    page = await open_page(await start_server(model=counting([])), ignore=FAILED_REQUEST)
    await asked_one_after_another(page, "One", "Two")
    refusal = {"error": "Database unavailable", "message": "The question was not stored; ask again."}
    await intercept(page, "**/chat/stream", lambda route: route.fulfill(status=503, json=refusal), times=1)
    await questions(page).last.get_by_role("button", name="Edit").click()
    await page.get_by_role("textbox", name="Message").fill("Three")
    await page.keyboard.press("Enter")
    notice = page.locator("#notice").get_by_role("alert")
    await expect(notice.locator("strong")).to_have_text("The server cannot store anything now")
    await expect(texts(page)).to_have_text(["One", "Reply 1", "Two", "Reply 2"])
    await notice.get_by_role("button", name="Edit").click()
    await expect(page.get_by_role("textbox", name="Message")).to_have_value("Three")
    await page.keyboard.press("Enter")
    await expect(texts(page)).to_have_text(["One", "Reply 1", "Three", "Reply 3"])
    await is_complete(replies(page).last)
    assert [content for _, content, _ in rows.messages(tenant.org_id)] == ["One", "Reply 1", "Three", "Reply 3"]


# ---- Copy, go on, when, keys


@pytest.mark.parametrize("clipboard", ["there", "not there"])
async def test_copy_gives_the_message_as_it_was_written(
    start_server: StartServer, open_page: OpenPage, clipboard: str
) -> None:
    text = "  **Two**  blanks,\n\n\te\u0301 \U0001f469\u200d\U0001f680\n"
    page = await open_page(
        await start_server(model=says(text)),
        init=""
        if clipboard == "there"
        else "Object.defineProperty(navigator, 'clipboard', { value: undefined });",
        permissions=["clipboard-read", "clipboard-write"],
    )
    await say(page, "Hi")
    await is_complete(replies(page))
    button = replies(page).locator(".tools").get_by_role("button", name="Copy")
    await button.click()
    await expect(button).to_have_attribute("data-said", "Copied")
    pasted = await page.evaluate("""async () => {
        const field = document.createElement('textarea');
        document.body.append(field);
        field.focus();
        return field;
    }""")
    assert pasted is not None
    await page.keyboard.press("Control+v")
    assert await page.evaluate("document.activeElement.value") == text


async def test_reply_that_was_cut_is_gone_on_with(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model))
    await read_word(page, model)
    go_on = page.get_by_role("button", name="Go on")
    await expect(go_on).to_have_count(0)
    await page.keyboard.press("Escape")
    await go_on.press("Enter")
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    model.go()
    await expect(texts(page)).to_have_text(["Hi", "word ", "Go on.", "word "])
    # It was for the last message, which has another after it now.
    await page.keyboard.press("Escape")
    await expect(go_on).to_have_count(1)


async def test_messages_are_one_tab_stop_and_say_when_they_were_written(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Old", messages=4)
    rows("update messages set created_at = '2026-01-02 03:04:05Z' where chat_id = %s", chat_id)
    server = await start_server()
    page = await open_page(server, url=f"{base(server)}/#{chat_id}")
    await expect(texts(page)).to_have_count(4)
    time = replies(page).last.locator("time")
    assert await time.get_attribute("datetime") == "2026-01-02T03:04:05.000Z"
    assert re.search("January 2, 2026", await time.get_attribute("title") or "")
    assert await replies(page).first.locator(".tools").evaluate("(row) => getComputedStyle(row).opacity") == "0"

    await page.get_by_role("region", name="Messages").focus()
    await page.keyboard.press("Tab")
    for key, item, name in (
        (None, replies(page).last, "Copy"),
        ("ArrowRight", replies(page).last, "Regenerate"),
        ("ArrowUp", questions(page).last, "Edit"),
        ("Home", questions(page).first, "Edit"),
        ("ArrowDown", replies(page).first, "Regenerate"),
        ("ArrowLeft", replies(page).first, "Copy"),
    ):
        if key is not None:
            await page.keyboard.press(key)
        await expect(item.get_by_role("button", name=name)).to_be_focused()
        assert await item.locator(".tools").evaluate("(row) => getComputedStyle(row).opacity") == "1"
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    await page.keyboard.press("Shift+Tab")
    await expect(replies(page).first.get_by_role("button", name="Copy")).to_be_focused()


async def test_messages_are_reached_by_tab_below_one_that_was_not_sent(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(model=says("Hello")), ignore=FAILED_REQUEST)
    await intercept(page, "**/chat/stream", lambda route: route.abort(), times=1)
    await say(page, "One")
    await expect(page.locator("#notice strong")).to_have_text("The server cannot be reached")
    await asked_one_after_another(page, "Two")
    await page.get_by_role("region", name="Messages").focus()
    await page.keyboard.press("Tab")
    await expect(questions(page).last.get_by_role("button", name="Copy")).to_be_focused()


async def test_wait_for_the_first_word_is_shown_where_it_will_be_and_said_once(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model))
    await stop_clock(page)
    await say(page, "Hi")
    text = replies(page).locator(".text")
    await page.clock.run_for(200)
    assert await text.get_attribute("data-thinking") is None
    await page.clock.run_for(200)
    assert await text.get_attribute("data-thinking") == "Thinking… 0.4 s"
    top = (await text.bounding_box() or {})["y"]
    await page.clock.run_for(1000)
    assert await text.get_attribute("data-thinking") == "Thinking… 1.4 s"
    assert await text.evaluate("(element) => getComputedStyle(element, '::before').content") != "none"
    await page.clock.resume()
    model.go()
    await expect(text).to_have_text("word ")
    assert await text.get_attribute("data-thinking") is None
    assert (await text.bounding_box() or {})["y"] == top
    assert await page.locator("#live").inner_text() == "Thinking…"


# ---- The field


async def test_question_of_more_than_twelve_lines_is_folded(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(model=says("Hello")))
    lines = [f"Line {number}" for number in range(1, 13)]
    await asked_one_after_another(page, "\n".join(lines), "\n".join([*lines, "Line 13"]))
    fold = page.get_by_role("button", name=re.compile("^Show (all|less)$"))
    await expect(fold).to_have_count(1)
    question = questions(page).last
    folded = await question.locator(".text").evaluate("(element) => element.clientHeight")
    height = "(element) => parseFloat(getComputedStyle(element).lineHeight)"
    assert folded == pytest.approx(12 * await question.locator(".text").evaluate(height), abs=1)
    await fold.click()
    assert await question.locator(".text").evaluate("(element) => element.clientHeight") > folded
    await expect(fold).to_have_text("Show less")
    await fold.click()
    assert await question.locator(".text").evaluate("(element) => element.clientHeight") == folded
    assert await shown(question) == "\n".join([*lines, "Line 13"])


async def test_each_line_of_a_question_has_its_own_direction(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(model=says("Hello")))
    await asked_one_after_another(page, "A line of English words that is long\nשבת")
    bubble = questions(page).locator(".text")
    of_text, of_bubble = await bubble.evaluate(
        """(bubble) => {
            const text = bubble.firstChild;
            const range = document.createRange();
            range.setStart(text, text.data.indexOf('\\n') + 1);
            range.setEnd(text, text.length);
            const padding = parseFloat(getComputedStyle(bubble).paddingRight);
            return [range.getBoundingClientRect().right, bubble.getBoundingClientRect().right - padding];
        }"""
    )
    assert of_text == pytest.approx(of_bubble, abs=1)


async def test_draft_of_each_chat_is_kept_over_a_reload_until_it_is_sent(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    add_chat(rows, tenant, "Old", messages=2)
    page = await open_page(await start_server(model=says("Hello")), ignore=FAILED_REQUEST)
    field = page.get_by_role("textbox", name="Message")
    await field.fill("For a new chat")
    await page.get_by_role("link", name="Old").click()
    await expect(texts(page)).to_have_count(2)
    await expect(field).to_have_value("")
    await field.fill("For the old one")
    await page.reload()
    await expect(field).to_have_value("For the old one")
    await page.get_by_role("button", name="New chat").click()
    await expect(field).to_have_value("For a new chat")
    # A message that is not sent is none that is lost.
    await intercept(page, "**/chat/stream", lambda route: route.abort(), times=1)
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice strong")).to_have_text("The server cannot be reached")
    await page.reload()
    await expect(field).to_have_value("For a new chat")
    await page.keyboard.press("Enter")
    await is_complete(replies(page).last)
    await page.reload()
    await expect(texts(page)).to_have_text(["For a new chat", "Hello"])
    await expect(field).to_have_value("")
    await page.get_by_role("link", name="Old").click()
    await expect(field).to_have_value("For the old one")


async def test_message_on_its_way_is_not_lost_with_the_page_nor_for_what_is_written_meanwhile(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    page = await open_page(await start_server(model=says("Hello")), ignore=FAILED_REQUEST)
    field = page.get_by_role("textbox", name="Message")
    asked, refused = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        asked.set()
        await refused.wait()
        await route.abort()

    await intercept(page, "**/chat/stream", hold)
    await say(page, "One")
    await asked.wait()
    await expect(field).to_have_value("")
    await page.reload()
    await expect(field).to_have_value("One")

    asked.clear()
    await page.keyboard.press("Enter")
    await asked.wait()
    await field.fill("Two")
    refused.set()
    await page.locator("#notice").get_by_role("button", name="Edit").click()
    await expect(field).to_have_value("One\n\nTwo")
    await page.unroute_all()
    await page.keyboard.press("Enter")
    await is_complete(replies(page).last)
    await page.reload()
    await expect(texts(page)).to_have_text(["One\n\nTwo", "Hello"])
    await expect(field).to_have_value("")
    assert len(rows.messages(tenant.org_id)) == 2


async def test_message_that_was_asked_before_the_page_knew_is_no_draft(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(model=says("Hello")))
    await asked_one_after_another(page, "One")
    asked = await lose_answers(page, "**/chat/stream")
    await say(page, "Two")
    await asked.wait()
    await page.reload()
    await expect(texts(page)).to_have_text(["One", "Hello", "Two", "Hello"])
    await expect(page.get_by_role("textbox", name="Message")).to_have_value("")


async def test_message_that_is_written_anew_is_not_taken_for_one_that_was_asked(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(model=says("Hello")))
    await asked_one_after_another(page, "One")
    field, loading = page.get_by_role("textbox", name="Message"), asyncio.Event()

    async def hold(route: Route) -> None:
        await loading.wait()
        await route.continue_()

    await intercept(page, "**/messages?*", hold)
    await page.reload()
    await field.fill("One")
    loading.set()
    await expect(texts(page)).to_have_text(["One", "Hello"])
    await expect(field).to_have_value("One")


async def test_message_to_a_chat_that_another_window_has_deleted_is_sent_in_a_new_one(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    page = await open_page(await start_server(model=says("Hello")), ignore=FAILED_REQUEST)
    await asked_one_after_another(page, "One")
    await page.evaluate("request(`/chats/${past.chat}`, { method: 'DELETE' }).then(() => null)")
    await say(page, "Two")
    notice = page.locator("#notice").get_by_role("alert")
    await expect(notice).to_contain_text("There is no such chat.")
    await expect(notice.locator("button")).to_have_text(["New chat"])
    await notice.locator("button").click()
    await expect(page.get_by_role("textbox", name="Message")).to_have_value("Two")
    await page.keyboard.press("Enter")
    await expect(texts(page)).to_have_text(["Two", "Hello"])
    await is_complete(replies(page))
    assert rows.messages(tenant.org_id) == [("user", "Two", "complete"), ("assistant", "Hello", "complete")]


async def test_drafts_are_bounded(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server())
    kept = await page.evaluate("""() => {
        for (let i = 0; i < 50; i += 1) {
            message.value = 'x'.repeat(100_000);
            composer.adopt(`chat-${i}`);
        }
        const drafts = Object.entries(JSON.parse(localStorage['streaming-chat.drafts']));
        return drafts.map(([chat, text]) => [chat, text.length]);
    }""")
    # Each but the last was sent, as far as the field knows.
    assert kept == [["chat-49", 50_000]]
    kept = await page.evaluate("""() => {
        for (let i = 0; i < 50; i += 1) {
            composer.open(`other-${i}`);
            composer.takeBack('x');
        }
        return Object.keys(JSON.parse(localStorage['streaming-chat.drafts']));
    }""")
    assert kept == [f"other-{number}" for number in range(30, 50)]


async def test_by_touch_enter_makes_a_line_and_no_keyboard_jumps_up(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    page = await open_page(await start_server(model=says("Hello")), **PHONE)
    field = page.get_by_role("textbox", name="Message")
    await expect(field).not_to_be_focused()
    await expect(field).to_have_attribute("enterkeyhint", "enter")
    await page.get_by_role("button", name="New chat").tap()
    await page.get_by_role("button", name="Markdown").tap()
    await is_complete(replies(page))
    await expect(field).not_to_be_focused()

    await field.tap()
    await page.keyboard.type("One")
    await page.keyboard.press("Enter")
    await page.keyboard.type("two")
    await page.get_by_role("button", name="Send").tap()
    await is_complete(replies(page).last)
    assert rows.messages(tenant.org_id)[2] == ("user", "One\ntwo", "complete")
    small = """() => [...document.querySelectorAll('main :is(a, button):not([hidden])')]
        .filter((element) => element.getClientRects().length > 0)
        .filter((element) => Math.min(element.offsetWidth, element.offsetHeight) < 44)
        .map((element) => element.outerHTML)"""
    assert await page.evaluate(small) == []
    tools = questions(page).first.locator(".tools")
    assert await tools.evaluate("(row) => getComputedStyle(row).opacity") == "1"


async def test_text_is_at_most_42_rem_wide(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server(model=says("word " * 100)), viewport={"width": 1920, "height": 900})
    await say(page, "Hi")
    await is_complete(replies(page))
    assert (await replies(page).bounding_box() or {})["width"] == 42 * 16


async def test_model_is_named_and_samples_are_those_that_the_server_can_show(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server())
    await expect(page.locator("#model")).to_have_text("Simulated model")
    always = ["A long story", "Grüße, 世界, שלום 👩‍🚀", "Markdown"]
    await expect(samples_of(page)).to_have_text(always)
    page = await open_page(await start_server(sim_faults=True))
    await expect(samples_of(page)).to_have_text([*always, "A slow first word", "A failing model"])
    await page.get_by_role("button", name="A failing model").click()
    await expect(page.locator("#notice strong")).to_have_text("Failed before the end")
    # Asked once more, it does not fail.
    await page.locator("#notice").get_by_role("button", name="Retry").click()
    await is_complete(replies(page))
    real = await start_server(model="openai:llama3", model_url="http://127.0.0.1:9/v1")
    page = await open_page(real)
    await expect(page.locator("#model")).to_have_text("llama3")


async def test_edges_are_kept_where_the_colours_are_the_readers_own(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated(pieces=["one ", "two ", "three"])
    page = await open_page(await start_server(model=model), forced_colors="active")
    await read_half(page, model)
    await page.keyboard.press("Escape")
    edges = """(selectors) => selectors.filter((selector) => {
        const style = getComputedStyle(document.querySelector(selector));
        return style.outlineStyle === 'none' && parseFloat(style.borderTopWidth) === 0;
    })"""
    selectors = [".user .text", "#composer", "#send", "#new-chat", "#search", "#chats a[aria-current=page]"]
    assert await page.evaluate(edges, selectors) == []
    await expect(page.locator("#message")).to_be_focused()
    await expect(page.locator("#composer")).to_have_css("outline-style", "solid")


async def test_chat_is_printed_to_its_end(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server()
    chat_id = add_chat(rows, tenant, "Long", messages=50)
    page = await open_page(server, url=f"{base(server)}/#{chat_id}")
    await expect(page.locator("#messages > li")).to_have_count(50)
    await page.emulate_media(media="print")
    last = await page.locator("#messages > li").last.bounding_box()
    assert last
    # What is not within the document is on no sheet.
    end = await page.evaluate("document.documentElement.scrollHeight")
    assert await page.evaluate("innerHeight") < last["y"] + last["height"] <= end
    for gone in ("navigation", "textbox", "button"):
        await expect(page.get_by_role(gone)).to_have_count(0)


async def test_chats_are_within_reach_where_little_height_is_left(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    for number in range(9):
        add_chat(rows, tenant, f"Chat {number}", messages=2)
    # As of a window of 1280 by 1024 pixels that is magnified four times.
    page = await open_page(await start_server(), viewport={"width": 320, "height": 256})
    await page.get_by_role("button", name="Chats and settings").click()
    await expect(page.get_by_role("link", name="Chat 4")).to_be_attached()
    # Three of them.
    assert await page.evaluate("document.querySelector('.chats').clientHeight") > 3 * 36


async def test_nothing_moves_from_the_first_paint_to_the_end_of_a_reply(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated(pieces=["line\n"] * 30)
    page = await open_page(
        await start_server(model=model),
        init="""
            window.moved = [];
            const note = ({ sources }) => sources.map(({ node }) => node?.outerHTML?.slice(0, 80));
            new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) if (!entry.hadRecentInput) moved.push(note(entry));
            }).observe({ type: 'layout-shift', buffered: true });
        """,
    )
    await say(page, "Hi")
    for lines in (10, 20, 30):
        model.go(10)
        await expect(replies(page).locator(".text")).to_have_text("line " * lines)
        await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    await is_complete(replies(page))
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert await page.evaluate("moved") == []
