"""A chat that goes on in another window, in a real Chromium: what the window shows that stood idle meanwhile."""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import suppress

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
    read_word,
    replies,
    say,
    start_server,
)
from playwright.async_api import APIResponse, Error, Locator, Page, Route, expect
from serving import StartServer
from support import Gated, Rows, Tenant, eventually, says

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

EVENTS = ["focus", "visibilitychange"]


def looks(page: Page) -> list[str]:
    """Return what a page asks of the chat's messages, from now on."""
    found: list[str] = []

    def note(url: str) -> None:
        if match := re.search(r"/messages\?(.*)", url):
            found.append(match[1])

    page.on("request", lambda request: note(request.url))
    return found


async def idle(page: Page) -> None:
    """Let so much time pass that a page looks again when somebody comes back to it."""
    await page.clock.install()
    await page.clock.fast_forward(20_000)


async def come_back(page: Page, event: str = "focus") -> None:
    await page.clock.fast_forward(6_000)
    place = "window" if event == "focus" else "document"
    await page.evaluate(f"{place}.dispatchEvent(new Event('{event}'))")


async def has_looked(page: Page) -> None:
    """Wait until a page has what it looks for. (Its "networkidle" comes once, and is not waited for again.)"""
    await page.evaluate("past.ready()")


def texts(page: Page) -> Locator:
    return page.locator("#messages .text")


async def ask(page: Page, *messages: str) -> None:
    for message in messages:
        await say(page, message)
        await is_complete(replies(page).last)


@pytest.mark.parametrize("event", EVENTS)
async def test_window_that_one_comes_back_to_shows_what_was_said_elsewhere(
    start_server: StartServer, open_page: OpenPage, event: str
) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server)
    await ask(page, "One")
    other = await open_page(server, url=page.url)
    await ask(other, "Two", "Three")
    field = page.get_by_role("textbox", name="Message")
    await field.focus()
    await page.evaluate("$('message').value = 'A draft'")
    await idle(page)
    asked = looks(page)
    await expect(texts(page)).to_have_text(["One", "Hello"])
    await come_back(page, event)
    await expect(texts(page)).to_have_text(["One", "Hello", "Two", "Hello", "Three", "Hello"])
    await expect(page.locator("#live")).to_contain_text("The chat has gone on elsewhere")
    await expect(field).to_have_value("A draft")
    await expect(field).to_be_focused()
    assert asked == ["limit=1", "limit=50"]
    # Once in some seconds, and no more than it takes to see that there is nothing new.
    for _ in range(3):
        await page.evaluate("dispatchEvent(new Event('focus'))")
    await come_back(page, event)
    await has_looked(page)
    await page.clock.fast_forward(60_000)
    assert asked == ["limit=1", "limit=50", "limit=1"]


async def test_question_comes_after_what_was_said_elsewhere(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server)
    await ask(page, "One")
    other = await open_page(server, url=page.url)
    await ask(other, "Two")
    await idle(page)
    # What is sent without a key that was pressed, too.
    await page.evaluate("$('message').value = 'Three'")
    await page.get_by_role("button", name="Send").click()
    await expect(texts(page)).to_have_text(["One", "Hello", "Two", "Hello", "Three", "Hello"])
    await is_complete(replies(page).last)
    assert [content for _, content, _ in rows.messages(tenant.org_id)] == await texts(page).all_inner_texts()
    # And it is the end of the chat that is replaced.
    await replies(page).last.get_by_role("button", name="Regenerate").click()
    await is_complete(replies(page).last)
    await expect(page.locator("#notice")).to_be_empty()


async def test_question_that_waits_for_what_was_said_elsewhere_is_not_held_up_by_its_failure(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(model=says("Hello")), ignore=FAILED_REQUEST)
    await ask(page, "One")
    await idle(page)
    await intercept(page, "**/messages?*", lambda route: route.abort())
    await ask(page, "Two")
    await expect(texts(page)).to_have_text(["One", "Hello", "Two", "Hello"])
    await expect(page.locator("#notice")).to_be_empty()


async def test_reply_that_runs_elsewhere_is_read_on_and_the_reader_stays_where_they_are(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Long", messages=60)
    model = Gated(pieces=["one ", "two ", "three"])
    server = await start_server(model=model)
    page = await open_page(server, url=f"{base(server)}/#{chat_id}")
    await page.get_by_role("button", name="Show earlier messages").click()
    await expect(texts(page)).to_have_count(60)
    other = await open_page(server, url=page.url)
    await expect(texts(other)).to_have_count(50)
    await say(other, "Hi")
    model.go(2)
    await expect(replies(other).last.locator(".text")).to_have_text("one two ")
    await idle(page)
    # Earlier messages leave their reader there.
    await expect(page.get_by_role("button", name="Jump to latest")).to_be_visible()
    top = await page.evaluate("$('scroller').scrollTop")
    await page.get_by_role("button", name="Send").focus()
    await come_back(page)
    await expect(replies(page).last.locator(".text")).to_have_text("one two ")
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    await expect(page.locator("#live")).to_contain_text("The chat has gone on elsewhere")
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    model.go()
    await is_complete(replies(page).last)
    await expect(texts(page)).to_have_count(62)
    assert await page.evaluate("$('scroller').scrollTop") == top
    # What was shown already is not to be had again.
    await expect(page.get_by_role("button", name="Show earlier messages")).to_be_hidden()


async def test_more_than_a_page_that_was_said_elsewhere_is_had_a_page_at_a_time(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id, others = (add_chat(rows, tenant, title, messages) for title, messages in (("Short", 2), ("Long", 62)))
    server = await start_server()
    page = await open_page(server, url=f"{base(server)}/#{chat_id}")
    await expect(texts(page)).to_have_count(2)
    await idle(page)
    rows("delete from messages where chat_id = %s", chat_id)
    rows("update messages set chat_id = %s where chat_id = %s", chat_id, others)
    await come_back(page)
    await expect(texts(page)).to_have_count(50)
    await page.get_by_role("button", name="Show earlier messages").click()
    await expect(texts(page)).to_have_text([f"Message {number}" for number in range(1, 63)])


async def test_earlier_page_that_comes_after_all_was_replaced_elsewhere_is_not_shown(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id, others = (add_chat(rows, tenant, title, messages) for title, messages in (("Long", 62), ("Short", 2)))
    server = await start_server()
    page = await open_page(server, url=f"{base(server)}/#{chat_id}")
    await expect(texts(page)).to_have_count(50)
    await idle(page)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        earlier = await route.fetch()
        asked.set()
        await answer.wait()
        with suppress(Error):  # It is not wanted any more.
            await route.fulfill(response=earlier)

    await intercept(page, "**/messages?*before=*", hold)
    await page.get_by_role("button", name="Show earlier messages").click()
    await asked.wait()
    rows("delete from messages where chat_id = %s", chat_id)
    rows("update messages set chat_id = %s where chat_id = %s", chat_id, others)
    await come_back(page)
    await expect(texts(page)).to_have_text(["Message 1", "Message 2"])
    answer.set()
    # Who asks for the earlier ones has them by then.
    await page.evaluate("new Promise((done) => setTimeout(done))")
    await ask(page, "Hi")
    await expect(texts(page)).to_have_count(4)


async def test_failure_to_show_what_was_said_elsewhere_is_not_taken_for_one_of_the_connection(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    chat_id = add_chat(rows, tenant, "Chat", messages=2)
    server = await start_server()
    page = await open_page(server, url=f"{base(server)}/#{chat_id}")
    await expect(texts(page)).to_have_count(2)
    await idle(page)
    rows("update messages set id = gen_random_uuid() where chat_id = %s", chat_id)
    await page.evaluate("void (thread.renew = () => { throw new Error('a bug of ours'); })")
    await page.clock.fast_forward(6_000)
    with pytest.raises(Error, match="a bug of ours"):
        await page.evaluate("past.catchUp(), past.ready()")


async def test_message_that_replaces_others_is_asked_by_what_was_shown_when_it_was_sent(
    start_server: StartServer, open_page: OpenPage
) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server, ignore=FAILED_REQUEST)
    await ask(page, "One")
    other = await open_page(server, url=page.url)
    await ask(other, "Two")
    await idle(page)
    asked, answered = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        asked.set()
        await answered.wait()
        await route.continue_()

    await intercept(page, "**/messages?*", hold)
    await come_back(page)
    await asked.wait()
    await replies(page).get_by_role("button", name="Regenerate").click()
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    answered.set()
    await expect(page.locator("#notice strong")).to_have_text("The chat has gone on")
    await expect(texts(page)).to_have_text(["One", "Hello"])
    await page.get_by_role("button", name="Show it").click()
    await expect(texts(page)).to_have_text(["One", "Hello", "Two", "Hello"])


@pytest.mark.parametrize("place", ["first", "last"])
async def test_messages_that_were_replaced_elsewhere_are_not_shown_any_more(
    start_server: StartServer, open_page: OpenPage, place: str
) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server)
    await ask(page, "One", "Two")
    other = await open_page(server, url=page.url)
    await expect(texts(other)).to_have_count(4)
    question = getattr(other.locator("#messages > .user"), place)
    await question.get_by_role("button", name="Edit").click()
    await ask(other, "Three")
    await page.locator("#messages > .user").last.get_by_role("button", name="Edit").click()
    await page.locator("#messages > .user").last.get_by_role("button", name="Copy").focus()
    await idle(page)
    await come_back(page)
    before = [] if place == "first" else ["One", "Hello"]
    await expect(texts(page)).to_have_text([*before, "Three", "Hello"])
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    note = page.locator("#editing")
    await expect(note).to_contain_text("The message is not there any more: sent, this is a new one.")
    await page.keyboard.press("Enter")
    await expect(texts(page)).to_have_text([*before, "Three", "Hello", "Two", "Hello"])


async def test_note_at_an_edit_counts_what_is_there_now(start_server: StartServer, open_page: OpenPage) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server)
    await ask(page, "One")
    other = await open_page(server, url=page.url)
    await ask(other, "Two", "Three")
    await idle(page)
    await page.locator("#messages > .user").get_by_role("button", name="Edit").click()
    note = page.locator("#editing > span")
    await expect(note).to_have_text("Sent again, it replaces the message and its reply.")
    await come_back(page)
    await expect(note).to_have_text("Sent again, it replaces the message and the 5 after it.")
    await expect(page.locator("#live > p").last).to_have_text(await note.inner_text())
    await ask(page, "One, in long")
    await expect(texts(page)).to_have_text(["One, in long", "Hello"])


async def test_message_that_waits_to_be_tried_again_stays_with_what_is_told_of_it(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server, ignore=FAILED_REQUEST)
    await ask(page, "One")
    other = await open_page(server, url=page.url)
    await ask(other, "Two")
    # The server has it, and the page does not know.
    answered = asyncio.Event()

    async def lose(route: Route) -> None:
        await route.fetch()
        answered.set()
        await route.abort()

    await idle(page)
    await intercept(page, "**/chat/stream", lose, times=1)
    await say(page, "Three")
    await answered.wait()
    await expect(page.locator("#notice strong")).to_have_text("The server cannot be reached")
    await come_back(page)
    await has_looked(page)
    await page.get_by_role("button", name="Retry").click()
    await is_complete(replies(page).last)
    await expect(texts(page)).to_have_text(["One", "Hello", "Two", "Hello", "Three", "Hello"])
    assert len(rows.messages(tenant.org_id)) == 6


async def test_message_that_is_tried_again_comes_after_what_was_said_elsewhere_meanwhile(
    start_server: StartServer, open_page: OpenPage
) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server, ignore=FAILED_REQUEST)
    await ask(page, "One")
    other = await open_page(server, url=page.url)
    await idle(page)
    # As on a machine that was woken up, and has no network yet.
    for url in ("**/messages?*", "**/chat/stream"):
        await intercept(page, url, lambda route: route.abort(), times=1)
    await say(page, "Three")
    await expect(page.locator("#notice strong")).to_have_text("The server cannot be reached")
    await ask(other, "Two")
    await come_back(page)
    await page.get_by_role("button", name="Retry").click()
    await is_complete(replies(page).last)
    await expect(texts(page)).to_have_text(["One", "Hello", "Two", "Hello", "Three", "Hello"])


async def test_failure_of_a_reply_is_not_told_below_what_came_after_it(
    start_server: StartServer, open_page: OpenPage
) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server, ignore=FAILED_REQUEST)
    headers = {"content-type": "text/event-stream", "x-message-id": str(uuid.uuid4())}
    await ask(page, "One")
    body = 'data: {"error":"Not stored","message":"The reply was taken back."}\n\n'
    await intercept(page, "**/chat/stream", lambda route: route.fulfill(headers=headers, body=body), times=1)
    await say(page, "Two")
    await expect(page.locator("#notice strong")).to_have_text("The question is not stored")
    other = await open_page(server, url=page.url)
    await ask(other, "Two")
    await idle(page)
    await come_back(page)
    await expect(page.locator("#notice")).to_be_empty()
    await expect(texts(page)).to_have_text(["One", "Hello", "Two", "Hello"])


@pytest.mark.parametrize("awaited", [True, False])
async def test_chat_that_was_deleted_elsewhere_is_told_and_not_asked_for_again(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant, awaited: bool
) -> None:
    model = Gated(pieces=["one ", "two"])
    server = await start_server(model=model)
    page = await open_page(server, ignore=FAILED_REQUEST)
    await say(page, "Hi")
    model.go(1 if awaited else 2)
    await expect(replies(page).locator(".text")).to_have_text(re.compile("one"))
    if awaited:
        # Nobody reads it on, and how it ends is looked for.
        await intercept(page, "**/chat/stream/*", lambda route: route.fulfill(status=204))
        await page.reload()
        await expect(replies(page).locator(".status")).to_have_text("Not read to the end")
    else:
        await is_complete(replies(page))
    await idle(page)
    await page.get_by_role("textbox", name="Message").fill("A draft")
    await has_looked(page)
    rows("delete from chats where org_id = %s", tenant.org_id)
    asked = looks(page)
    if awaited:
        await page.clock.fast_forward(8_000)
    else:
        await come_back(page)
    notice = page.locator("#notice").get_by_role("alert")
    await expect(notice).to_contain_text("There is no such chat.")
    await expect(texts(page)).to_have_count(2)
    await expect(page.get_by_role("navigation").get_by_role("link", name="Hi")).to_have_count(0)
    before = len(asked)
    for _ in range(3):
        await come_back(page)
        await has_looked(page)
    assert len(asked) == before
    await notice.get_by_role("button", name="New chat").click()
    await expect(texts(page)).to_have_count(0)
    await expect(page.get_by_role("textbox", name="Message")).to_have_value("A draft")


async def test_chat_that_began_in_the_place_of_one_that_is_gone_is_looked_at_too(
    start_server: StartServer, open_page: OpenPage
) -> None:
    server = await start_server(model=says("Hello"))
    page = await open_page(server, url=f"{base(server)}/#{uuid.uuid4()}", ignore=FAILED_REQUEST)
    await expect(page.locator("#notice").get_by_role("alert")).to_contain_text("There is no such chat.")
    await ask(page, "One")
    other = await open_page(server, url=page.url)
    await ask(other, "Two")
    await idle(page)
    await come_back(page)
    await expect(texts(page)).to_have_text(["One", "Hello", "Two", "Hello"])


async def test_end_of_a_reply_that_was_replaced_elsewhere_is_not_awaited(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model), ignore=FAILED_REQUEST)
    await read_word(page, model)
    await intercept(page, "**/chat/stream/*", lambda route: route.fulfill(status=204))
    await page.reload()
    await expect(replies(page)).to_have_attribute("data-status", "streaming")
    await page.clock.install()
    rows("delete from messages where org_id = %s", tenant.org_id)
    await page.clock.fast_forward(8_000)
    await expect(replies(page)).to_have_attribute("data-status", "unread")
    asked = looks(page)
    for _ in range(3):
        await page.clock.fast_forward(10_000)
        await has_looked(page)
    assert asked == []


async def test_reply_is_as_it_ended_whatever_an_older_answer_does_not_know_of_it(
    start_server: StartServer, open_page: OpenPage
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model), ignore=FAILED_REQUEST)
    await read_word(page, model)
    # Nobody reads it on, and how it ends is looked for.
    await intercept(page, "**/chat/stream/*", lambda route: route.fulfill(status=204), times=1)
    await page.reload()
    await expect(replies(page).locator(".status")).to_have_text("Not read to the end")
    late: list[tuple[Route, APIResponse]] = []

    async def hold(route: Route) -> None:
        late.append((route, await route.fetch()))

    await intercept(page, "**/messages?limit=50", hold)
    await eventually(lambda: len(late) == 1)
    await say(page, "Two")
    await expect(replies(page).last).to_have_attribute("id", re.compile("."))
    await page.get_by_role("button", name="Stop").click()
    await eventually(lambda: len(late) == 2)
    for route, response in late:
        await route.fulfill(response=response)
    await expect(replies(page).last).to_have_attribute("data-status", "stopped")
