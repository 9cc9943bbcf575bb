"""A client whose streams break in every way, and who gets each reply's text all the same: to the character."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from app.statuses import failure

from .figures import Figures
from .plan import Plan
from .streams import Failed, Stream, refusal, retry_after

End = Literal["done", "failed", "stopped", "left"]

# Not even a ping for so long: the connection is dead.
ALARM_S = 2.0
HEARTBEAT_S = 0.5

# For so long the server waits for a client who was cut off.
RESUME_WINDOW_S = 2.0

# It comes back until nothing new has come for so long.
PATIENCE_S = 60.0

BOM = "\ufeff"

# How a stream is, and what breaks it. `dup` is left out: a client without ids can only notice it.
SHAPES = (
    *("as=local", "gap=lognormal:5ms:0.8", "ttft=300ms", "stall@5=500ms", "text=unicode", "text=markdown"),
    *("crlf", "bom", "noise", "utf8", "chop=7", "burst=200ms", "big=64k", ""),
)
BREAKS = (
    *("fin@{}", "rst@{}", "fin@{}*3", "hang@{}", "cut@done", "fail@{}", "endless", ""),
    *("status=429:1s*1", "status=503:1s*2", "status=500*1", "status=529*1"),
)


@dataclass(frozen=True)
class Trial:
    """A question's faults, and how its reply is to end for its client."""

    sim: str
    end: End
    # Stops, or leaves, after so many characters.
    leaves_at: int | None

    @classmethod
    def draw(cls, rng: random.Random) -> Trial:
        shapes = {shape.partition("=")[0]: shape for shape in rng.sample(SHAPES, 2)}
        if "as" in shapes:
            # Another name of it.
            shapes.pop("gap", None)
        broken = rng.choice(BREAKS).format(rng.randrange(50))
        sim = " ".join(filter(None, [*shapes.values(), broken]))
        if broken.startswith("fail"):
            return cls(sim, "failed", None)
        if broken == "endless" or rng.random() < 0.2:
            return cls(sim, rng.choice(["stopped", "left"]), rng.randrange(200))
        return cls(sim, "done", None)

    @property
    def kind(self) -> str:
        """The names of the knobs."""
        return " ".join(word.split("=")[0].split("@")[0] for word in self.sim.split()) or "no fault"


class BreakingStream(Stream):
    """Asks one question after another, each with faults of its own, and comes back until there is an end."""

    def __init__(self, plan: Plan, number: int, session: aiohttp.ClientSession) -> None:
        super().__init__(plan, number, session)
        self._rng = random.Random(f"{plan.question['seed']} {number}")

    async def _ask(self, figures: list[Figures]) -> None:
        trial = Trial.draw(self._rng)
        try:
            await Turn(self._session, self._url, self._headers, trial, figures, self._target).run()
        except Failed as failed:
            raise Failed(f"{failed} ({trial.kind}; to be {trial.end})") from None


class Turn:
    """A question with its reply, over as many connections as it takes."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        headers: Mapping[str, str],
        trial: Trial,
        figures: list[Figures],
        target: int,
    ) -> None:
        self._session, self._url, self._trial = session, url, trial
        self._figures, self._target = figures, target
        # Each is asked once, so that a double would show.
        self._question = str(uuid.uuid4())
        self._headers = {**headers, "Idempotency-Key": self._question}
        self._reply_id: str | None = None
        self._text = ""
        self._last: dict[str, Any] | None = None
        self._has_left = False
        # Since when it does not read the reply, and the longest time for which it did not.
        self._cut_s: float | None = None
        self._away_s = 0.0

    async def run(self) -> None:
        tries, until_s = 0, time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            chars = len(self._text)
            with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                await self._read()
            if self._cut_s is None:
                self._cut_s = time.monotonic()
            if self._last is not None:
                self._judge(self._last)
            if self._has_left or self._last is not None:
                return
            tries += 1
            if len(self._text) > chars:
                tries, until_s = 0, time.monotonic() + PATIENCE_S
            await asyncio.sleep(min(0.05 * 2**tries, 1.0))
        raise Failed(f"nothing new for {PATIENCE_S:g} s")

    async def _read(self) -> None:
        asked_s = time.monotonic()
        async with self._request() as response:
            if response.status in (429, 500, 503, 529):
                await asyncio.sleep(retry_after(response))
            elif response.status not in (200, 204):
                raise await refusal(response)
            else:
                if self._cut_s is not None:
                    self._away_s = max(self._away_s, time.monotonic() - self._cut_s)
                    self._cut_s = None
                if response.status == 204:
                    # It has all there is of a reply that is not whole.
                    self._last = {"error": "Ended", "message": failure("disconnected")}
                    return
                self._reply_id = response.headers["x-message-id"]
                await self._read_events(response, asked_s)

    def _request(self) -> Any:
        if self._reply_id is not None:
            path, _, query = self._url.partition("?")
            url = f"{path}/{self._reply_id}?offset={len(self._text)}&{query}"
            return self._session.get(url, headers=self._headers)
        body = {"message": self._question, "sim": self._trial.sim}
        return self._session.post(self._url, json=body, headers=self._headers)

    async def _read_events(self, response: aiohttp.ClientResponse, asked_s: float) -> None:
        word_s = 0.0
        async for line in response.content:
            field = line.decode().removeprefix(BOM)
            if not field.startswith("data: "):
                continue
            event = json.loads(field[6:])
            if event.get("error") == "Cut short":
                return
            if "error" in event or event["done"]:
                self._last = event
                return
            self._text += event["token"]
            if event["token"].strip():
                now_s, figures = time.monotonic(), self._figures[self._target]
                times, since_s = (figures.gaps, word_s) if word_s else (figures.first, asked_s)
                times.add(now_s - since_s)
                word_s = now_s
                figures.words += 1
            if self._trial.leaves_at is not None and len(self._text) >= self._trial.leaves_at:
                if self._trial.end == "left":
                    self._has_left = True
                    return
                await self._stop()

    async def _stop(self) -> None:
        """Stop the reply. It may be repeated, and is."""
        path, _, _ = self._url.partition("?")
        async with self._session.delete(f"{path}/{self._reply_id}", headers=self._headers) as response:
            if response.status not in (200, 503):
                raise await refusal(response)

    def _judge(self, last: dict[str, Any]) -> None:
        """A reply that came to its end before it was broken off is right, too, if it is whole."""
        ends = {"Stopped": "stopped", "Stream failed": "failed"}
        end = "done" if last.get("done") else ends.get(last["error"], last["error"])
        if end == "Ended" and self._trial.end != "done":
            # Its last event was cut off.
            return
        if last.get("message") == failure("disconnected") and self._away_s > RESUME_WINDOW_S / 2:
            # On a busy machine it came back too late.
            return
        if end not in ("done", self._trial.end):
            raise Failed(f"ended as {end}")
        if end == "done" and last["sha256"] != hashlib.sha256(self._text.encode()).hexdigest():
            raise Failed("its text is not what was sent")
