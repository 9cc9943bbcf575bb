"""When the words of a reply got here, in a real Chromium: the line under it, and the inspector."""

from __future__ import annotations

import asyncio
import json
import re
import shlex

import pytest
from pages import (
    FAILED_REQUEST,
    OpenPage,
    browser,
    context,
    is_complete,
    open_page,
    replies,
    save_settings,
    say,
    shown,
    start_server,
)
from playwright.async_api import Locator, Page, expect
from serving import StartServer
from support import Gated, Rows, Tenant, says

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

CLIPBOARD = ["clipboard-read", "clipboard-write"]
LINE = re.compile(r"^\d+ ms first · \d+ words · [\d.]+/s · longest gap \d+ ms$")

SHIFTS = """
    window.shifts = [];
    new PerformanceObserver((list) => {
        for (const { hadRecentInput, sources } of list.getEntries())
            if (!hadRecentInput) shifts.push(sources.map(({ node }) => node?.className ?? String(node)));
    }).observe({ type: 'layout-shift', buffered: true });
"""


def line_of(reply: Locator) -> Locator:
    return reply.get_by_role("button", name=re.compile(r"words?\b"))


async def inspect(page: Page) -> Locator:
    """Open the inspector of the last reply."""
    await line_of(replies(page).last).click()
    inspector = page.get_by_role("complementary", name="How the reply arrived")
    await expect(inspector.get_by_role("heading")).to_be_focused()
    return inspector


async def cells(inspector: Locator, row: int) -> list[str]:
    return await inspector.locator(f"[aria-rowindex='{row}'] > *").all_inner_texts()


# ---- The line under a reply


async def test_layout_does_not_shift_while_a_reply_streams(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server(sim_delay_ms=(4.0, 6.0)), viewport={"width": 1280, "height": 700})
    await page.evaluate(SHIFTS)
    # The second one is scrolled to.
    for _ in range(2):
        await say(page, "Tell a story")
        await is_complete(replies(page).last)
    assert await page.evaluate("shifts") == []


async def test_line_is_kept_over_a_reload_and_the_events_are_not(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(sim_delay_ms=(4.0, 6.0)))
    await say(page, "Tell a story")
    await is_complete(replies(page).last)
    line = await line_of(replies(page)).inner_text()
    assert LINE.match(line)
    words = len((await shown(replies(page))).split())
    assert f" {words} words " in line

    await page.reload()
    await expect(line_of(replies(page))).to_have_text(line)
    inspector = await inspect(page)
    await expect(inspector).to_contain_text("Its events are not here any more: they last as long as the page.")
    await expect(inspector.get_by_role("definition").nth(1)).to_have_text(str(words))
    await expect(inspector.get_by_role("button", name="Export as JSON lines")).to_be_disabled()
    await expect(inspector.get_by_role("button", name="Cut the connection")).to_be_disabled()


# ---- The inspector


async def test_inspector_shows_each_event_and_what_it_is_compared_with(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(model=says("One", " two", " three")))
    await say(page, "Hi")
    await is_complete(replies(page))
    inspector = await inspect(page)
    table = inspector.get_by_role("table", name="Events")
    await expect(table).to_have_attribute("aria-rowcount", "7")
    assert await cells(inspector, 2) != []
    found = [await cells(inspector, row) for row in range(2, 8)]
    said = [json.loads(row[4]) for row in found[:5]]
    assert [event["token"] for event in said] == ["One", " ", "two", " ", "three"]
    assert [int(row[2]) for row in found[:5]] == [len(f"data: {row[4]}\n\n") for row in found[:5]]
    assert json.loads(found[5][4])["done"] is True
    await expect(inspector.locator("#check")).to_have_text(
        re.compile(r"^Equal to fullText: 13 characters, SHA-256 [0-9a-f]{12}…$")
    )
    # It is said where it fails; where it does not, the text is enough.
    await expect(replies(page).locator(".status")).to_be_empty()


async def test_requests_are_shown_with_their_headers_and_without_the_token(
    start_server: StartServer, open_page: OpenPage, tenant: Tenant
) -> None:
    server = await start_server(model=says("One"))
    page = await open_page(server)
    await say(page, "It's $HOME")
    await is_complete(replies(page))
    inspector = await inspect(page)
    await inspector.get_by_text("Requests and their headers").click()
    request = inspector.locator("#requests li")
    await expect(request).to_contain_text("POST /chat/stream, 200")
    await expect(request).to_contain_text(f"x-org-id: {tenant.org_id}")
    await expect(request).to_contain_text("content-type: text/event-stream")

    curl = str(await page.evaluate("Recording.curl(meter.recordingOf(messages.lastElementChild).requests[0])"))
    command, *arguments = shlex.split(curl)
    assert (command, arguments[:2]) == ("curl", ["-N", f"http://{server.host}:{server.port}/chat/stream"])
    assert json.loads(arguments[-1]) == {"message": "It's $HOME"}
    assert f"x-user-id: {tenant.user_id}" in arguments

    secret = "eyJhbGciOi.secret.secret"
    told = await page.evaluate(
        "(token) => { settings.current.token = token; return Recording.curl(described('/chat/stream')); }", secret
    )
    assert secret not in told
    assert '-H "authorization: Bearer $TOKEN"' in told


async def test_copied_command_gets_the_same_reply_again(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server(model=says("One", " two")), permissions=CLIPBOARD)
    await say(page, "It's @here")
    await is_complete(replies(page))
    inspector = await inspect(page)
    await inspector.get_by_role("button", name="Copy as curl").click()
    await expect(page.locator("#copy-curl")).to_have_attribute("data-said", "Copied")
    curl = await page.evaluate("navigator.clipboard.readText()")
    process = await asyncio.create_subprocess_shell(f"{curl} -sS", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert b'"token":"One"' in output
    assert b'"fullText":"One two"' in output


async def test_export_is_json_lines_of_requests_and_events(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server(model=says("One", " two")))
    await say(page, "Hi")
    await is_complete(replies(page))
    inspector = await inspect(page)
    async with page.expect_download() as download:
        await inspector.get_by_role("button", name="Export as JSON lines").click()
    lines = [json.loads(line) for line in (await (await download.value).path()).read_text().splitlines()]
    assert [line["type"] for line in lines] == ["request", *["event"] * 4]
    assert "".join(json.loads(line["data"]).get("token", "") for line in lines[1:]) == "One two"
    assert sorted(lines[1]) == ["at", "bytes", "data", "gap", "id", "number", "type"]


@pytest.mark.parametrize("lever", ["Cut the connection", "Stop listening for 5 s"])
async def test_connection_that_is_cut_here_goes_on_at_the_next_character(
    start_server: StartServer, open_page: OpenPage, lever: str
) -> None:
    model = Gated(pieces=["one ", "two ", "three ", "four"])
    page = await open_page(await start_server(model=model))
    await say(page, "Hi")
    model.go(2)
    await expect(replies(page).locator(".text")).to_have_text("one two ")
    inspector = await inspect(page)
    await inspector.get_by_role("button", name=lever).click()
    told = inspector.get_by_role("status")
    if lever == "Stop listening for 5 s":
        await expect(told).to_have_text("Cut; going on by itself…")
        await inspector.get_by_role("button", name="Cut the connection").click()
        await expect(told).to_have_text("There is no connection to cut now.")
    await expect(told).to_have_text(re.compile(r"^Went on at character 8 after \d\.\d s$"))
    away_s = float((await told.inner_text()).split()[-2])
    assert (away_s >= 5) == (lever == "Stop listening for 5 s")
    model.go(2)
    await is_complete(replies(page))
    assert await shown(replies(page)) == "one two three four"
    await expect(line_of(replies(page))).to_contain_text("1 resume")
    await expect(inspector.locator("#requests li")).to_have_count(2)
    assert (await inspector.locator("#gaps .resumes").get_attribute("d") or "").count("M") == 1
    await expect(inspector.get_by_role("button", name="Cut the connection")).to_be_disabled()


async def test_silence_of_a_cut_is_not_a_gap(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server())
    figures = await page.evaluate(
        """() => {
            const recording = new Recording();
            const word = { id: '', data: '{}', words: 1 };
            for (const at of [10, 20, 30]) recording.read(recording.sentAt + at, 50, [word]);
            recording.asked({ method: 'GET', url: 'http://a/', headers: [] });
            recording.lost();
            recording.resumed('abc');
            recording.read(performance.now() + 4000, 100, [word, word]);
            recording.read(performance.now() + 4015, 50, [word]);
            return recording;
        }"""
    )
    assert figures["resumes"] == 1
    assert figures["longest"] < 100
    assert [event["wordGap"] is None for event in figures["events"]] == [True, False, False, True, True, False]


async def test_10_000_events_are_a_few_elements(start_server: StartServer, open_page: OpenPage) -> None:
    words = 5000
    page = await open_page(await start_server(model=says(*["word "] * words)))
    await say(page, "Hi")
    await is_complete(replies(page))
    inspector = await inspect(page)
    table = inspector.get_by_role("table", name="Events")
    await expect(table).to_have_attribute("aria-rowcount", str(2 * words + 2))
    assert await table.get_by_role("row").count() < 60
    assert (await inspector.locator("#gaps .gaps").get_attribute("d") or "").count("M") < 400
    await table.focus()
    for key, row in (("Home", 2), ("End", 2 * words + 2)):
        await page.keyboard.press(key)
        await expect(inspector.locator(f"[aria-rowindex='{row}']")).to_be_in_viewport()


async def test_memory_of_a_reply_is_bounded_and_it_says_so(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server(model=says("One")))
    await say(page, "Hi")
    await is_complete(replies(page))
    many, long = await page.evaluate(
        """() => [[25_000, 10], [100, 1_000_000]].map(([count, chars]) => {
            const recording = meter.recordingOf(messages.lastElementChild);
            const event = { id: '', data: 'x'.repeat(chars), words: 1 };
            for (let i = 0; i < count; i += 1) recording.read(performance.now(), chars, [event]);
            return recording.events.length;
        })"""
    )
    assert 19_000 <= many <= 20_000
    assert 10 <= long <= 16
    inspector = await inspect(page)
    await expect(inspector).to_contain_text(re.compile(r"The first 25,\d\d\d events are not kept any more\."))


async def test_gap_under_the_pointer_is_told(start_server: StartServer, open_page: OpenPage) -> None:
    page = await open_page(await start_server(sim_delay_ms=(4.0, 6.0)))
    await say(page, "Tell a story")
    await is_complete(replies(page))
    inspector = await inspect(page)
    plot = inspector.get_by_role("img", name=re.compile(r"^\d+ gaps, the longest \d+ ms$"))
    await plot.hover(position={"x": 7, "y": 20})
    await expect(inspector.locator("#gap-at")).to_have_text(re.compile(r"^Gaps? \d+.*: .*\d+ ms$"))
    bars = inspector.locator("#histogram li")
    counts = await bars.evaluate_all("(all) => all.map((bar) => parseInt(bar.title))")
    assert sum(counts) == int((await plot.get_attribute("aria-label") or "").split()[0])


@pytest.mark.parametrize("width", [1280, 390])
async def test_escape_closes_the_inspector_and_the_reply_goes_on(
    start_server: StartServer, open_page: OpenPage, width: int
) -> None:
    model = Gated()
    page = await open_page(await start_server(model=model), viewport={"width": width, "height": 800})
    await say(page, "Hi")
    model.go(2)
    await expect(line_of(replies(page))).to_contain_text("2 words")
    await line_of(replies(page)).focus()
    await page.keyboard.press("Enter")
    inspector = page.get_by_role("complementary", name="How the reply arrived")
    await expect(inspector).to_be_in_viewport()
    # It glides to its place.
    await inspector.evaluate("(panel) => Promise.all(panel.getAnimations().map(({ finished }) => finished))")
    scroller, panel = [await place.bounding_box() for place in (page.locator("#scroller"), inspector)]
    assert scroller
    assert panel
    if width == 1280:
        assert scroller["x"] + scroller["width"] <= panel["x"]
    else:
        assert panel["width"] == width
        assert panel["y"] + panel["height"] == 800
    await page.keyboard.press("Tab")
    await page.keyboard.press("Escape")
    await expect(inspector).to_be_hidden()
    await expect(line_of(replies(page))).to_be_focused()
    await expect(replies(page)).to_have_attribute("data-status", "live")
    await page.keyboard.press("Escape")
    await expect(replies(page)).to_have_attribute("data-status", "stopped")


# ---- What the simulator is told


async def test_settings_of_the_simulator_go_with_each_question_where_they_are_allowed(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(sim_faults=True), ignore=FAILED_REQUEST)
    await expect(page.get_by_role("button", name="A failing model")).to_be_visible()
    await save_settings(page, sim="words=7 gap=0ms fin@4")
    for reply in range(2):
        await say(page, "Hi")
        await is_complete(replies(page).nth(reply))
        await expect(replies(page).nth(reply).locator(".figures")).to_have_text(re.compile("7 words.* 1 resume$"))

    await save_settings(page, sim="fin@never")
    await say(page, "Hi")
    notice = page.locator("#notice")
    await expect(notice).to_contain_text("sim has 'fin@never', expected some of: ")
    await notice.get_by_role("button", name="Open settings").click()
    await page.locator("#sim").fill("words=3")
    await page.get_by_role("button", name="Save").click()
    await notice.get_by_role("button", name="Retry").click()
    await expect(replies(page).nth(2).locator(".figures")).to_have_text(re.compile(" 3 words "))


async def test_server_that_takes_no_settings_of_the_simulator_is_sent_none(
    start_server: StartServer, open_page: OpenPage
) -> None:
    page = await open_page(await start_server(model=says("Hi")), settings={"sim": "words=3"})
    await page.locator("#open-settings").click()
    await expect(page.get_by_role("textbox", name="Token")).to_be_visible()
    await expect(page.locator("#sim")).to_be_hidden()
    await page.get_by_role("button", name="Cancel").click()
    await say(page, "Hi")
    await is_complete(replies(page))


# ---- The whole page


async def test_keyboard_alone_gets_from_the_start_to_a_renamed_chat(
    start_server: StartServer, open_page: OpenPage, rows: Rows, tenant: Tenant
) -> None:
    page = await open_page(await start_server(sim_delay_ms=(0.0, 0.0)))
    keyboard = page.keyboard
    await keyboard.type("Hello there")
    await keyboard.press("Enter")
    await is_complete(replies(page))

    # The figures of the reply are the one stop between the buttons of its message and what is above.
    line = page.locator(".figures")
    await keyboard.press("Shift+Tab")
    while not await line.evaluate("(element) => element === document.activeElement"):
        await keyboard.press("Shift+Tab")
    await keyboard.press("Enter")
    inspector = page.get_by_role("complementary", name="How the reply arrived")
    await expect(inspector).to_be_visible()
    # Close, the requests, curl, JSON lines: the levers have nothing to break any more.
    for _ in range(5):
        await keyboard.press("Tab")
    await expect(inspector.get_by_role("table", name="Events")).to_be_focused()
    await keyboard.press("Escape")
    await expect(line).to_be_focused()

    await keyboard.press("Control+K")
    await expect(page.get_by_role("searchbox", name="Search chats")).to_be_focused()
    await keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Hello there")).to_be_focused()
    await keyboard.press("ArrowRight")
    await keyboard.press("Enter")
    await expect(page.get_by_role("menuitem", name="Rename")).to_be_focused()
    await keyboard.press("Enter")
    await expect(page.get_by_role("textbox", name="Title")).to_be_focused()
    await keyboard.press("Control+A")
    await keyboard.type("By the keyboard")
    # It is shown before it is stored.
    async with page.expect_response("**/chats/*"):
        await keyboard.press("Enter")
    await expect(page.get_by_role("link", name="By the keyboard")).to_be_focused()
    assert rows("select title from chats where org_id = %s", tenant.org_id) == [("By the keyboard",)]
