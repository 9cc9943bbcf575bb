"""The simulated model: made-up text, a word at a time."""

from __future__ import annotations

import asyncio
import heapq
import random
import re
from collections.abc import Iterable, Sequence
from math import ceil
from operator import itemgetter

from app.models import Conversation, excerpt

# A word with the white space before it; white space at the very end of a text stands alone.
TOKEN = re.compile(r"\s*\S+|\s+")

# What asks for a story: the word itself, however it is asked for. Not "history", not "storyboard".
ASKS_FOR_STORY = re.compile(r"\bstory\b", re.IGNORECASE)

# How far behind its schedule a simulated reply may catch up after the reader held it back.
MAX_LAG_S = 0.1

REPLIES = (
    'You wrote: "{quote}". This is reply {turn} of our chat. I am a simulated model, so every word here is made'
    " up, but each one comes to you in an event of its own.",
    'About "{quote}": that is a good thing to ask a server that has no model yet. This is reply {turn} in this'
    " chat, streamed word by word and kept in PostgreSQL before you are told that it is done.",
    'Thank you for "{quote}". Watch the gaps between these words: each takes ten to thirty milliseconds unless'
    " something between us holds them back. It is reply {turn} of this chat.",
    'So, "{quote}"! Reply {turn} of our chat says nothing wise, but it says it steadily: a real model will one'
    " day stand in this very place, and nothing around it will need to change.",
)

STORY = (
    'You asked for a story: "{quote}". Here is reply {turn} of our chat.\n\n'
    "A lighthouse keeper on a small grey island had one task besides the lamp: every evening she read the"
    " weather aloud into an old radio, word by word, slowly, so that the boats could write it down. Nobody ever"
    " answered. Some nights she wondered whether anyone was listening, and whether it would matter if she"
    " stopped halfway through a sentence and went to bed.\n\n"
    "One autumn a storm took the mast of the radio while she was speaking. She did not notice. She read on to"
    " the end, signed off with the hour, and wrote the report in her book as she always did, down to the last"
    " word that she had said.\n\n"
    "In spring a fishing boat put in with a basket of eels and a question. The skipper had heard the first half"
    " of a report in October, up to the words the wind will turn, and then nothing. He had stayed in harbour"
    " because of them, and he wanted to know how it went on. She opened the book, found the page, put her"
    " finger on the very next word, and read him the rest.\n\n"
    "After that she never wondered again. She mended the mast, and she kept the book."
)


class Simulated:
    """A model that answers at once with made-up text, a word every `delay_ms` milliseconds (uniform).

    With a `seed` the same conversation gives the same text and the same delays.
    """

    def __init__(self, delay_ms: tuple[float, float] = (10.0, 30.0), seed: str | None = None) -> None:
        self._delay_s = (delay_ms[0] / 1000, delay_ms[1] / 1000)
        self._seed = seed
        # Not for secrets.
        self._rng = random.Random()  # noqa: S311
        self._clock: Clock | None = None

    def __call__(self, conversation: Conversation) -> SimulatedReply:
        # Not before: an event loop must be running.
        self._clock = self._clock or Clock()
        asked = [message.content for message in conversation.messages if message.role == "user"]
        rng = self._rng
        if self._seed is not None:
            rng = random.Random("\0".join([self._seed, *asked]))  # noqa: S311
        text = compose(asked, rng)
        if not conversation.stream:
            return SimulatedReply([text], len(text), 1, rng, (0.0, 0.0), self._clock)
        # One at a time: all the words of all the streams would be most of the memory of a stream.
        tokens = map(itemgetter(0), TOKEN.finditer(text))
        return SimulatedReply(tokens, len(text), len(TOKEN.findall(text)), rng, self._delay_s, self._clock)


class SimulatedReply:
    """An async iterator over `tokens`, each after its own delay from `delay_s`."""

    def __init__(
        self,
        tokens: Iterable[str],
        text_length: int,
        total_tokens: int,
        rng: random.Random,
        delay_s: tuple[float, float],
        clock: Clock,
    ) -> None:
        self.text_length = text_length
        self.total_tokens = total_tokens
        self._tokens = iter(tokens)
        self._random = rng.random
        self._least_s = delay_s[0]
        self._spread_s = delay_s[1] - delay_s[0]
        self._at_once = not delay_s[1]
        self._clock = clock
        self._sleepers = clock.sleepers
        self._due_s = clock.time()

    def __aiter__(self) -> SimulatedReply:
        return self

    def __anext__(self) -> asyncio.Future[str]:
        # The future is awaited as it is: no coroutine, and no more frames of ours, for each token.
        said: asyncio.Future[str] = self._clock.create_future()
        for token in self._tokens:
            if self._at_once:
                said.set_result(token)
                return said
            # Due times add up, so that late timers do not slow the reply.
            self._due_s = due_s = self._due_s + self._least_s + self._spread_s * self._random()
            sleepers = self._sleepers.get(ceil(due_s * TICKS_PER_S))
            if sleepers is None:
                # The first of its tick, or late.
                self._due_s = due_s = max(due_s, self._clock.time() - MAX_LAG_S)
                sleepers = self._clock.sleepers_at(due_s)
            sleepers.append((said, token))
            return said
        said.set_exception(StopAsyncIteration())
        return said

    async def aclose(self) -> None:
        self._tokens = iter(())


TICKS_PER_S = 1000

# A timer of uvloop, whose unit is the millisecond, rings up to half of one early. What is due by then is taken
# as due: to wait for so little again would spin the loop.
EARLY_TICKS = 0.5

Sleepers = list[tuple["asyncio.Future[str]", str]]


class Clock:
    """One timer for many sleepers: those due within the same millisecond wake together.

    With a timer of its own for each, the event loop would order all of them one by one.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.time = loop.time
        self.create_future = loop.create_future
        # Those of each tick to come, and what each is told.
        self.sleepers: dict[int, Sleepers] = {}
        self._call_at = loop.call_at
        self._ticks: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def sleepers_at(self, due_s: float) -> Sleepers:
        """Return those who wake at `due_s` of the loop's time, or up to a tick and a half later."""
        tick = ceil(due_s * TICKS_PER_S)
        if tick not in self.sleepers:
            self.sleepers[tick] = []
            heapq.heappush(self._ticks, tick)
            if tick == self._ticks[0]:
                if self._timer is not None:
                    self._timer.cancel()
                self._set_timer()
        return self.sleepers[tick]

    def _set_timer(self) -> None:
        self._timer = self._call_at((self._ticks[0] + EARLY_TICKS) / TICKS_PER_S, self._ring)

    def _ring(self) -> None:
        now = self.time() * TICKS_PER_S
        while self._ticks and self._ticks[0] <= now:
            for sleeper, token in self.sleepers.pop(heapq.heappop(self._ticks)):
                if not sleeper.done():
                    sleeper.set_result(token)
        self._timer = None
        if self._ticks:
            self._set_timer()


def compose(asked: Sequence[str], rng: random.Random) -> str:
    """Return a reply to the last of `asked`: 20 to 60 words, or a story of 150 or more."""
    template = STORY if ASKS_FOR_STORY.search(asked[-1]) else rng.choice(REPLIES)
    return template.format(quote=excerpt(asked[-1], words=12, chars=80), turn=len(asked))
