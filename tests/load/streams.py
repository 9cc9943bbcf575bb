"""The generator of streams in Python: what streams.c does, also over TLS, for some five times the CPU."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import aiohttp

from .asides import stop_replies
from .figures import Figures, Tick
from .plan import AGAIN_S, Plan

TICK_S = 1.0

# At the end: for the answers that have not begun, since they name the replies.
ANSWER_S = 2.0

# A token event with more than white space, which JSON may write as an escape.
WORD = re.compile(rb'data: \{"token":"(?: |\\[nrt])*[^ "]')
DONE = b'data: {"token":"","done":true'
ERROR = re.compile(rb'data: \{"error":"([^"]*)')


class Failed(Exception):
    """A kind of failure; `again_s`: when to ask again."""

    def __init__(self, kind: str, again_s: float = AGAIN_S) -> None:
        super().__init__(kind)
        self.again_s = again_s


class Stream:
    """Asks at one address as one user, again and again."""

    def __init__(self, plan: Plan, number: int, session: aiohttp.ClientSession) -> None:
        self._target = number % len(plan.targets)
        target = plan.targets[self._target]
        self._url = target.url
        self._headers = {"Content-Type": "application/json", **plan.users[plan.user_of(number)]}
        self._plan = plan
        self._session = session
        # The reply that is under way.
        self.reply_id: str | None = None
        self.awaits_answer = False
        self.is_over = False

    async def talk(self, all_figures: list[Figures]) -> None:
        while not self.is_over:
            again_s = 0.0
            all_figures[self._target].open += 1
            try:
                await self._ask(all_figures)
                all_figures[self._target].replies += 1
            except Failed as failed:
                all_figures[self._target].failures[str(failed)] += 1
                again_s = failed.again_s
            finally:
                all_figures[self._target].open -= 1
                self.reply_id = None
                self.awaits_answer = False
            await asyncio.sleep(again_s)

    async def _ask(self, all_figures: list[Figures]) -> None:
        is_answered = False
        try:
            asked_s = time.monotonic()
            request = self._session.post(
                self._url, data=self._plan.body, headers=self._headers, allow_redirects=False
            )
            self.awaits_answer = True
            async with request as response:
                is_answered, self.awaits_answer = True, False
                if response.status != 200:
                    raise await refusal(response)
                self.reply_id = response.headers.get("x-message-id")
                await self._read(response, asked_s, all_figures)
        except aiohttp.ClientConnectorError as exc:
            number = exc.os_error.errno
            raise Failed(os.strerror(number) if number else str(exc.os_error)) from None
        except TimeoutError:
            raise Failed(f"silent for {self._plan.silence_s:g} s") from None
        except ValueError:
            raise Failed("a line that is too long") from None
        except (aiohttp.ClientError, ConnectionError):
            raise Failed("broken off" if is_answered else "closed without an answer") from None

    async def _read(self, response: aiohttp.ClientResponse, asked_s: float, all_figures: list[Figures]) -> None:
        word_s, is_done, error = 0.0, False, None
        async for line in response.content:
            if WORD.match(line):
                now_s, figures = time.monotonic(), all_figures[self._target]
                if word_s:
                    figures.gaps.add(now_s - word_s)
                else:
                    figures.first.add(now_s - asked_s)
                word_s = now_s
                figures.words += 1
            elif line.startswith(DONE):
                is_done = True
            elif found := ERROR.match(line):
                error = found[1].decode(errors="replace")
        if error is not None:
            raise Failed(f"error event: {error}")
        if not is_done:
            raise Failed("ended without done")


async def refusal(response: aiohttp.ClientResponse) -> Failed:
    body, name = await response.content.read(4096), ""
    if found := re.search(rb'"error": ?"([^"]*)', body):
        name = found[1].decode(errors="replace")
    return Failed(f"{response.status} {name}".rstrip(), retry_after(response))


def retry_after(response: aiohttp.ClientResponse) -> float:
    """Return after how many seconds to ask again."""
    with suppress(ValueError):
        return max(float(response.headers.get("Retry-After", "")), AGAIN_S)
    return AGAIN_S


async def ticks(plan: Plan, stopped: asyncio.Event, stream: Callable[..., Stream] = Stream) -> AsyncIterator[Tick]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=plan.silence_s, sock_read=plan.silence_s)
    figures = [Figures() for _ in plan.targets]
    began_cpu_s = time.process_time()
    all_streams: dict[int, Stream] = {}
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):

        async def begin(number: int) -> None:
            await asyncio.sleep(plan.ramp_s * number / plan.streams)
            all_streams[number] = stream(plan, number, session)
            await all_streams[number].talk(figures)

        talks = [group.create_task(begin(number)) for number in range(plan.streams)]
        until_s = time.monotonic() + plan.seconds
        while not stopped.is_set() and (left_s := until_s - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), min(left_s, TICK_S))
            yield Tick(list(figures), time.process_time() - began_cpu_s)
            # Streams look theirs up each time.
            figures[:] = [Figures(open=old.open) for old in figures]
        for asker in all_streams.values():
            asker.is_over = True
        ended_s = time.monotonic()
        while time.monotonic() - ended_s < ANSWER_S and any(asker.awaits_answer for asker in all_streams.values()):
            await asyncio.sleep(0.02)
        left = {number: asker.reply_id for number, asker in all_streams.items() if asker.reply_id}
        for talk in talks:
            talk.cancel()
    await stop_replies(plan, left)
