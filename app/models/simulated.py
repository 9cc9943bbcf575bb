"""The simulated model: made-up text, a word at a time."""

from __future__ import annotations

import asyncio
import heapq
import random
import re
from collections.abc import Sequence
from math import ceil

from app.models import Conversation, excerpt

# A word with the white space before it.
WORD = re.compile(r"\s*\S+")

# What asks for a story: the word itself, however it is asked for. Not "history", not "storyboard".
ASKS_FOR_STORY = re.compile(r"\bstory\b", re.IGNORECASE)

# How far behind its schedule a simulated reply may catch up after the reader held it back.
MAX_LAG_S = 0.1


class Template:
    """A text with fields, split into words once; the replies made of it share the strings."""

    def __init__(self, text: str) -> None:
        self._words = WORD.findall(text)
        # The last first: what is filled in moves none that is still to be.
        self._fields = [at for at, word in enumerate(self._words) if "{" in word][::-1]

    def fill(self, **values: object) -> list[str]:
        words = self._words.copy()
        for at in self._fields:
            # A value may bring white space, and braces that are no fields.
            words[at : at + 1] = WORD.findall(words[at].format(**values))
        return words


REPLIES = [
    Template(
        'You wrote: "{quote}". This is reply {turn} of our chat. I am a simulated model, so every word here is'
        " made up, but each one comes to you in an event of its own."
    ),
    Template(
        'About "{quote}": that is a good thing to ask a server that has no model yet. This is reply {turn} in this'
        " chat, streamed word by word and kept in PostgreSQL before you are told that it is done."
    ),
    Template(
        'Thank you for "{quote}". Watch the gaps between these words: each takes ten to thirty milliseconds unless'
        " something between us holds them back. It is reply {turn} of this chat."
    ),
    Template(
        'So, "{quote}"! Reply {turn} of our chat says nothing wise, but it says it steadily: a real model will'
        " one day stand in this very place, and nothing around it will need to change."
    ),
]

STORY = Template(
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


def compose(asked: Sequence[str], rng: random.Random) -> list[str]:
    """Return the words of a reply to the last of `asked`: 20 to 60, or a story of 150 or more."""
    template = STORY if ASKS_FOR_STORY.search(asked[-1]) else rng.choice(REPLIES)
    return template.fill(quote=excerpt(asked[-1], words=12, chars=80), turn=len(asked))


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
        loop = asyncio.get_running_loop()
        if self._clock is None or self._clock.loop is not loop:
            self._clock = Clock(loop)
        asked = [message.content for message in conversation.messages if message.role == "user"]
        rng = self._rng
        if self._seed is not None:
            rng = random.Random("\0".join([self._seed, *asked]))  # noqa: S311
        words = compose(asked, rng)
        if not conversation.stream:
            return SimulatedReply(["".join(words)], rng, (0.0, 0.0), self._clock)
        return SimulatedReply(words, rng, self._delay_s, self._clock)


class SimulatedReply:
    """An async iterator over `words`, each after its own delay from `delay_s`."""

    def __init__(
        self, words: Sequence[str], rng: random.Random, delay_s: tuple[float, float], clock: Clock
    ) -> None:
        self.text_length = sum(map(len, words))
        self.total_tokens = len(words)
        self._words = iter(words)
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
        for word in self._words:
            if self._at_once:
                said.set_result(word)
                return said
            # Due times add up, so that late timers do not slow the reply.
            self._due_s = due_s = self._due_s + self._least_s + self._spread_s * self._random()
            sleepers = self._sleepers.get(ceil(due_s * TICKS_PER_S))
            if sleepers is None:
                # The first of its tick, or late.
                self._due_s = due_s = max(due_s, self._clock.time() - MAX_LAG_S)
                sleepers = self._clock.sleepers_at(due_s)
            sleepers.append((said, word))
            return said
        said.set_exception(StopAsyncIteration())
        return said

    async def aclose(self) -> None:
        self._words = iter(())


TICKS_PER_S = 1000

# A timer of uvloop, whose unit is the millisecond, rings up to half of one early. What is due by then is taken
# as due: to wait for so little again would spin the loop.
EARLY_TICKS = 0.5

Sleepers = list[tuple["asyncio.Future[str]", str]]


class Clock:
    """One timer for many sleepers: those due within the same millisecond wake together.

    With a timer of its own for each, the event loop would order all of them one by one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
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
            for sleeper, word in self.sleepers.pop(heapq.heappop(self._ticks)):
                if not sleeper.done():
                    sleeper.set_result(word)
        self._timer = None
        if self._ticks:
            self._set_timer()
