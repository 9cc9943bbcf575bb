"""Take the picture in the README: `make screenshot`. Its text is always the same, its times are this machine's."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from playwright.sync_api import expect, sync_playwright
from processes import ROOT, Process

PICTURE = ROOT / "web" / "screenshot.png"
QUESTION = "Tell me a story about the sea"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # The embedded PostgreSQL runs under another account, where this one is root.
        Path(folder).chmod(0o755)
        server = Process(DATA_DIR=folder, SIM_SEED="picture")
        try:
            take(server.listening())
        finally:
            server.popen.terminate()
            server.end()


def take(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM"), args=["--disable-gpu"], chromium_sandbox=False
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.goto(url)
        page.get_by_role("textbox", name="Message").fill(QUESTION)
        page.keyboard.press("Enter")
        page.get_by_role("button", name=re.compile(" words ")).click()
        expect(page.locator("#messages > .assistant")).to_have_attribute("data-status", "complete", timeout=60_000)
        expect(page.get_by_role("link", name=QUESTION)).to_be_visible()
        expect(page.locator("#check")).not_to_be_empty()
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
