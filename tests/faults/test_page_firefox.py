"""The page in a real Firefox: a reply is read, its connection is cut, it is stopped; what is kept is there again.

Needs Firefox (Debian: apt-get install firefox-esr).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from firefox import Firefox, firefox
from ledger import FULL
from serving import StartServer
from support import Gated, Rows, eventually, tool

from app.storage.store import DEMO_ORG_ID

pytestmark = pytest.mark.skipif(not FULL, reason="LEFT OUT: Firefox, in `make faults` alone")

# The keys, as WebDriver has them.
ENTER, ESCAPE = "\ue007", "\ue00c"
REPLY = "document.querySelector('#messages > .assistant:last-child')"
TEXT = f"{REPLY}.querySelector('.text').textContent"
LINE = f"{REPLY}.querySelector('.figures')"
STATUS = f"{REPLY}?.dataset.status"


@pytest_asyncio.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Firefox]:
    folder = tmp_path / "profile"
    folder.mkdir()
    async with firefox(tool("firefox-esr", "firefox"), folder) as browser:
        yield browser


async def test_reply_is_read_cut_gone_on_with_and_read_again(
    start_server: StartServer, browser: Firefox, rows: Rows
) -> None:
    model = Gated(pieces=["# One\n\n", "two ", "three ", "*four*"])
    server = await start_server(model=model, seed_demo=True)
    await browser.open(f"http://{server.host}:{server.port}/")
    await browser.until("document.activeElement.id === 'message'")
    await browser.type(*"Grüße", ENTER)
    model.go(2)
    await browser.until(f"{TEXT} === 'Onetwo '")

    await browser.evaluate(f"{LINE}.click()")
    await browser.evaluate("document.getElementById('cut').click()")
    told = "document.getElementById('went-on').textContent"
    await browser.until(f"/^Went on at character 11 after [0-9.]+ s$/.test({told})")
    model.go(2)
    await browser.until(f"{STATUS} === 'complete'")
    assert await browser.evaluate(f"{TEXT}") == "Onetwo three four"
    assert await browser.evaluate(f"{REPLY}.querySelector('h1, h2, h3, h4, h5, h6').textContent") == "One"
    assert "1 resume" in await browser.evaluate(f"{LINE}.textContent")
    check = "document.getElementById('check').textContent"
    await browser.until(f"{check}.startsWith('Equal to fullText: 23 characters')")
    await browser.type(ESCAPE)
    await browser.until("document.getElementById('inspector').hidden")
    assert await browser.evaluate(f"document.activeElement === {LINE}")
    stored = rows.messages(str(DEMO_ORG_ID))
    assert stored[-2:] == [("user", "Grüße", "complete"), ("assistant", "# One\n\ntwo three *four*", "complete")]

    line = await browser.evaluate(f"{LINE}.textContent")
    await browser.evaluate("location.reload()")
    await browser.until(f"{STATUS} === 'complete' && {LINE}.textContent === {line!r}")


async def test_stop_ends_the_reply(start_server: StartServer, browser: Firefox, rows: Rows) -> None:
    model = Gated()
    server = await start_server(model=model, seed_demo=True)
    await browser.open(f"http://{server.host}:{server.port}/")
    await browser.until("document.activeElement.id === 'message'")
    await browser.type(*"Hi", ENTER)
    model.go(2)
    await browser.until(f"{TEXT} === 'word word '")
    await browser.type(ESCAPE)
    await browser.until(f"{STATUS} === 'stopped'")
    await eventually(lambda: rows.messages(str(DEMO_ORG_ID))[-1] == ("assistant", "word word ", "stopped"))
