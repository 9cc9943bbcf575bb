"""The simulated model: made-up text, a word at a time."""

from __future__ import annotations

import asyncio
import heapq
import random
import re
from collections.abc import Callable, Generator, Sequence
from math import ceil

from app.models import Conversation, PushReply, excerpt

# A word with the white space before it.
WORD = re.compile(r"\s*\S+")

# What asks for a story: the word itself, however it is asked for. Not "history", not "storyboard".
ASKS_FOR_STORY = re.compile(r"\bstory\b", re.IGNORECASE)

# How far behind its schedule a reply may be: what it is to catch up after it was held, or the loop was blocked.
MAX_LAG_S = 0.1

# What is said without a delay is said in parts, one in a step of the event loop, so that others get their turn.
WORDS_AT_ONCE = 32

TICKS_PER_S = 1000

# A timer of uvloop, whose unit is the millisecond, rings up to half of one early. What is due by then is taken
# as due: to wait for so little again would spin the loop.
EARLY_TICKS = 0.5


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


class SimulatedReply(PushReply):
    """Says `words`, each after a delay of its own from `delay_s` (uniform); with (0, 0), at once."""

    def __init__(
        self, words: Sequence[str], rng: random.Random, delay_s: tuple[float, float], clock: Clock
    ) -> None:
        self.text_length = sum(map(len, words))
        self.total_pieces = len(words)
        # Each push goes on where the one before it has stopped.
        self._words = iter(words)
        self._rng = rng
        self._delay_s = delay_s
        self._clock = clock
        self._due_s = clock.loop.time()
        self._pushed: asyncio.Future[bool] | None = None

    async def push(self, say: Callable[[str], bool]) -> bool:
        assert self._pushed is None or self._pushed.done(), "two pushes of one reply, expected one at a time"
        schedule = self._paced(say) if self._delay_s[1] else self._at_once(say)
        self._pushed = self._clock.run(schedule)
        try:
            return await self._pushed
        except BaseException:
            await self.aclose()
            raise

    def _paced(self, say: Callable[[str], bool]) -> Schedule:
        clock, draw, (least_s, most_s) = self._clock, self._rng.random, self._delay_s
        for word in self._words:
            # Due times add up, so that late timers do not slow the reply.
            due_s = self._due_s + least_s + (most_s - least_s) * draw()
            if due_s < clock.now_s - MAX_LAG_S:
                due_s = clock.now_s - MAX_LAG_S
            self._due_s = due_s
            yield due_s
            if not say(word):
                return True
        return False

    def _at_once(self, say: Callable[[str], bool]) -> Schedule:
        for number, word in enumerate(self._words):
            if number and number % WORDS_AT_ONCE == 0:
                # Overdue: in the loop's next step.
                yield 0.0
            if not say(word):
                return True
        return False

    def __aiter__(self) -> SimulatedReply:
        return self

    async def __anext__(self) -> str:
        said: list[str] = []

        def say(word: str) -> bool:
            said.append(word)
            return False

        if await self.push(say):
            return said[0]
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._words = iter(())
        if self._pushed is not None and not self._pushed.done():
            self._pushed.set_result(False)


# A generator that yields when it is to be resumed, in seconds of the loop's time.
Schedule = Generator[float, None, bool]

Sleeper = tuple[Schedule, "asyncio.Future[bool]"]


class Clock:
    """One timer for many schedules: those due within the same millisecond are resumed together.

    With a timer of its own for each, the event loop would order all of them one by one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # When a schedule was last started or resumed.
        self.now_s = loop.time()
        self._sleepers: dict[int, list[Sleeper]] = {}
        # Those of the sleepers, as a heap.
        self._ticks: list[int] = []
        # For the first of them.
        self._timer: asyncio.TimerHandle | None = None

    def run(self, schedule: Schedule) -> asyncio.Future[bool]:
        """Return a future of what the schedule returns or raises; once done, the schedule is not resumed."""
        outcome: asyncio.Future[bool] = self.loop.create_future()
        self.now_s = self.loop.time()
        self._resume([(schedule, outcome)])
        return outcome

    def _resume(self, due: list[Sleeper]) -> None:
        sleepers = self._sleepers
        for sleeper in due:
            schedule, outcome = sleeper
            if outcome.done():
                continue
            try:
                tick = ceil(next(schedule) * TICKS_PER_S)
            except StopIteration as end:
                if not outcome.done():
                    outcome.set_result(end.value)
            except BaseException as exc:
                # For this one's caller to handle: the others are still due.
                if not outcome.done():
                    outcome.set_exception(exc)
            else:
                if tick not in sleepers:
                    self._add(tick)
                sleepers[tick].append(sleeper)

    def _add(self, tick: int) -> None:
        self._sleepers[tick] = []
        heapq.heappush(self._ticks, tick)
        if tick == self._ticks[0]:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ticks:
            self._timer = self.loop.call_at((self._ticks[0] + EARLY_TICKS) / TICKS_PER_S, self._ring)

    def _ring(self) -> None:
        self.now_s = self.loop.time()
        due: list[Sleeper] = []
        while self._ticks and self._ticks[0] <= self.now_s * TICKS_PER_S:
            due += self._sleepers.pop(heapq.heappop(self._ticks))
        # What is due again by now waits for the loop's next step.
        self._set_timer()
        self._resume(due)
