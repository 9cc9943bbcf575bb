"""How long models take, around any of them: until the first piece, and from one piece to the next."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from time import perf_counter

from app.models import Conversation, Model, Piece, PushReply, Reasoning, Reply

# Upper bounds of what is counted together, in seconds.
FIRST_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
GAPS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)


class Histogram:
    """How many times were up to each bound, the last beyond all.

    For each piece of each reply: prometheus_client's own takes 1.3 us of CPU to note one, this one 0.15.
    """

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, time_s: float) -> None:
        self.counts[bisect_left(self.bounds_s, time_s)] += 1
        self.sum_s += time_s


class Timings:
    def __init__(self) -> None:
        self.first = Histogram(FIRST_S)
        self.gaps = Histogram(GAPS_S)


def timed(model: Model, timings: Timings) -> Model:
    """Return a model that says the same, and notes when.

    Pieces are those of text and of reasoning. Where only the whole reply counts (`POST /chat`), nothing is noted.
    """

    def start(conversation: Conversation) -> Reply:
        pieces = model(conversation)
        if not conversation.stream:
            return pieces
        return TimedPush(pieces, timings) if isinstance(pieces, PushReply) else TimedReply(pieces, timings)

    return start


class TimedReply(Reply):
    """A reply that is pulled. What its taker takes their time for, while nobody reads for example, is no gap."""

    def __init__(self, pieces: Reply, timings: Timings) -> None:
        self.text_length: int | None = getattr(pieces, "text_length", None)
        self.total_pieces: int | None = getattr(pieces, "total_pieces", None)
        self._pieces = aiter(pieces)
        self._aclose = pieces.aclose
        # Where the next time goes.
        self._times = timings.first
        self._gaps = timings.gaps
        # Not the event loop's clock: uvloop's ticks in milliseconds.
        self._since_s = perf_counter()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        since_s = self._next_since_s()
        piece = await anext(self._pieces)
        if isinstance(piece, str | Reasoning):
            self._times.observe(perf_counter() - since_s)
            self._times = self._gaps
        return piece

    async def aclose(self) -> None:
        await self._aclose()

    def _next_since_s(self) -> float:
        """Return since when the next piece is waited for: the first one since the start, others from now on."""
        return perf_counter() if self._times is self._gaps else self._since_s


class TimedPush(TimedReply, PushReply):
    """A reply that is pushed."""

    def __init__(self, pieces: PushReply, timings: Timings) -> None:
        super().__init__(pieces, timings)
        self._push = pieces.push

    def push(self, say: Callable[[str], bool]) -> Awaitable[bool]:
        since_s, times, gaps = self._next_since_s(), self._times, self._gaps
        # A push that may be followed by another has said something.
        self._times = gaps

        def note_and_say(piece: str) -> bool:
            nonlocal since_s, times
            now_s = perf_counter()
            time_s, since_s = now_s - since_s, now_s
            # As `observe` does: calls would make it 0.3 us for each piece, in place of 0.2.
            times.counts[bisect_left(times.bounds_s, time_s)] += 1
            times.sum_s += time_s
            times = gaps
            return say(piece)

        return self._push(note_and_say)
