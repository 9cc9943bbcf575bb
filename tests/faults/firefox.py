"""A Firefox, spoken to by WebDriver BiDi over a WebSocket: what its vendor's driver would do, without one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

# It is not to talk to anybody, nor to ask anything.
PREFERENCES = """
    user_pref("app.update.disabledForTesting", true);
    user_pref("browser.shell.checkDefaultBrowser", false);
    user_pref("datareporting.policy.dataSubmissionEnabled", false);
    user_pref("network.captive-portal-service.enabled", false);
    user_pref("network.connectivity-service.enabled", false);
    user_pref("toolkit.telemetry.reportingpolicy.firstRun", false);
"""


class Firefox:
    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._context = ""

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        # Answers come in order, events in between.
        while (said := await self._socket.receive_json(timeout=60)).get("id") != number:
            pass
        assert said["type"] == "success", said
        return said["result"]

    async def begin(self) -> None:
        await self.call("session.new", capabilities={})
        self._context = (await self.call("browsingContext.getTree"))["contexts"][0]["context"]

    async def open(self, url: str) -> None:
        await self.call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        """Return a string, a number, a boolean or None."""
        answer = await self.call(
            "script.evaluate", expression=expression, target={"context": self._context}, awaitPromise=True
        )
        assert answer["type"] == "success", answer
        return answer["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 30) -> None:
        """Wait until an expression is true, looked at in every frame."""
        frame = "await new Promise((go) => setTimeout(go, 16))"
        await asyncio.wait_for(self.evaluate(f"(async () => {{ while (!({expression})) {frame}; }})()"), timeout_s)

    async def type(self, *keys: str) -> None:
        """Press keys, one after another, as somebody at the keyboard."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        await self.call("input.performActions", context=self._context, actions=[source])


@asynccontextmanager
async def firefox(program: str, folder: Path) -> AsyncIterator[Firefox]:
    """Run it on a profile of its own."""
    (folder / "user.js").write_text(PREFERENCES)
    arguments = ["--headless", "--no-remote", "--remote-debugging-port", "0", "--profile", str(folder)]
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr
    try:
        listening = "WebDriver BiDi listening on "
        while listening not in (line := (await process.stderr.readline()).decode()):
            assert line, "Firefox has ended before it listened"
        drained = asyncio.create_task(process.stderr.read())
        url = line.split(listening)[1].strip() + "/session"
        async with ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            browser = Firefox(socket)
            await browser.begin()
            yield browser
    finally:
        process.kill()
        await process.wait()
    await drained
