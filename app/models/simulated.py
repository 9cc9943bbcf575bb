"""The simulated model: made-up text, a word at a time."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from math import exp

from app.models import Conversation, ModelError, PushReply
from app.models.knobs import GAP_LIMIT_S, Knobs, Lognormal, Uniform
from app.models.texts import Words, compose, seeded, told

# How far behind its schedule a reply may be: what it is to catch up after it was held, or the loop was blocked.
MAX_LAG_S = 0.1

# What is said without a delay is said in parts, one in a step of the event loop, so that others get their turn.
WORDS_AT_ONCE = 32

# To the nearest millisecond: uvloop's clock and timers know no other time, and rounded up twice, words were late.
TICKS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class TunedConversation(Conversation):
    """A question that asks for a pace, a text or a failure of its own. Other models do not know of it."""

    knobs: Knobs = Knobs()


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
        if isinstance(conversation, TunedConversation):
            return self._tuned(conversation)
        asked, rng = self._ask(conversation)
        words = compose(asked, rng)
        if not conversation.stream:
            return SimulatedReply(["".join(words)], rng, (0.0, 0.0), self._tick())
        return SimulatedReply(words, rng, self._delay_s, self._tick())

    def _tuned(self, conversation: TunedConversation) -> SimulatedReply:
        knobs = conversation.knobs
        asked, rng = self._ask(conversation, knobs.seed)
        words = told(asked, rng, knobs)
        if knobs.gap is not None:
            gap = knobs.gap
        else:
            # Where nobody reads along, a wait is one that was asked for.
            gap = Uniform(*self._delay_s) if conversation.stream else Uniform(0, 0)
        return TunedReply(words, rng, gap, knobs, self._tick())

    def _ask(self, conversation: Conversation, seed: str | None = None) -> tuple[list[str], random.Random]:
        """Return what was asked so far, and what decides on the answer."""
        asked = [message.content for message in conversation.messages if message.role == "user"]
        seed = self._seed if seed is None else seed
        return asked, self._rng if seed is None else seeded(seed, asked)

    def _tick(self) -> Clock:
        loop = asyncio.get_running_loop()
        if self._clock is None or self._clock.loop is not loop:
            self._clock = Clock(loop)
        return self._clock


class SimulatedReply(PushReply):
    """Says `words`, each after a delay of its own from `delay_s` (uniform); with (0, 0), at once."""

    def __init__(
        self, words: Words | list[str], rng: random.Random, delay_s: tuple[float, float], clock: Clock
    ) -> None:
        self.text_length: int | None = sum(map(len, words))
        self.total_pieces: int | None = len(words)
        # Each push goes on where the one before it has stopped.
        self._words = iter(words)
        self._rng = rng
        self._delay_s = delay_s
        self._clock = clock
        self._due_s = clock.loop.time()
        self._pushed: asyncio.Future[bool] | None = None

    async def push(self, say: Callable[[str], bool]) -> bool:
        assert self._pushed is None or self._pushed.done(), "two pushes of one reply, expected one at a time"
        self._pushed = self._clock.run(self._schedule(say))
        try:
            return await self._pushed
        except BaseException:
            await self.aclose()
            raise

    def _schedule(self, say: Callable[[str], bool]) -> Schedule:
        return self._paced(say) if self._delay_s[1] else self._at_once(say)

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


class TunedReply(SimulatedReply):
    """Says `words` as the knobs ask for, of which there may be no end."""

    def __init__(
        self, words: Iterator[str], rng: random.Random, gap: Uniform | Lognormal, knobs: Knobs, clock: Clock
    ) -> None:
        super().__init__([] if knobs.endless else list(words), rng, (0.0, 0.0), clock)
        if knobs.endless:
            self._words, self.text_length, self.total_pieces = words, None, None
        self._gap = gap
        self._knobs = knobs
        self._said = 0

    def _schedule(self, say: Callable[[str], bool]) -> Schedule:
        clock = self._clock
        for word in self._words:
            self._due_s = max(self._due_s + self._delay(), clock.now_s - MAX_LAG_S)
            if self._due_s > clock.now_s:
                yield self._due_s
            elif self._said % WORDS_AT_ONCE == 0:
                yield 0.0
            self._fail()
            self._said += 1
            if not say(word):
                return True
        self._fail()
        return False

    def _delay(self) -> float:
        knobs, gap = self._knobs, self._gap
        if self._said == 0 and knobs.ttft is not None:
            delay_s = knobs.ttft
        elif isinstance(gap, Lognormal):
            delay_s = min(gap.median_s * exp(self._rng.gauss(0, gap.sigma)), GAP_LIMIT_S)
        else:
            delay_s = self._rng.uniform(*gap)
        return delay_s + (knobs.stall.pause_s if knobs.stall and knobs.stall.after == self._said else 0.0)

    def _fail(self) -> None:
        if self._said == self._knobs.fail:
            raise ModelError(f"the simulator was to fail after {self._said} words")


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
                tick = round(next(schedule) * TICKS_PER_S)
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
            self._timer = self.loop.call_at(self._ticks[0] / TICKS_PER_S, self._ring)

    def _ring(self) -> None:
        self.now_s = self.loop.time()
        now = round(self.now_s * TICKS_PER_S)
        due: list[Sleeper] = []
        while self._ticks and self._ticks[0] <= now:
            due += self._sleepers.pop(heapq.heappop(self._ticks))
        # What is due again by now waits for the loop's next step.
        self._set_timer()
        self._resume(due)
