"""What questions ask of the simulator: which are refused for now, and what is to happen to whose streams."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from math import ceil
from typing import TypeVar

from aiohttp import web

from app.errors import ApiError
from app.models import Conversation
from app.models.knobs import BadKnobs, Knobs, Refusal, parse
from app.models.simulated import TunedConversation
from app.replies.faults import Faults, FaultyStream
from app.replies.reader import EventReader
from app.replies.reply import Reply
from app.settings import SETTINGS, Settings
from app.storage.store import Caller

# Questions and replies that are kept in mind; the oldest are forgotten first.
KEPT = 1_000

# A question that is asked again later than that is another one.
REFUSED_S = 600.0

# Whose, its key, and what is asked.
Question = tuple[Caller, str | None, bytes]

Key = TypeVar("Key")
Value = TypeVar("Value")


class Kept(OrderedDict[Key, Value]):
    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        if len(self) > KEPT:
            self.popitem(last=False)


class Simulator:
    """Each process keeps this for itself: at another one nothing happens to the streams of a reply."""

    def __init__(self, settings: Settings, *, is_heard: bool) -> None:
        self._settings = settings
        # Whether the model is the simulated one.
        self._is_heard = is_heard
        # How often questions were refused, and when that began.
        self._refused: Kept[Question, tuple[int, float]] = Kept()
        self._faults: Kept[str, Faults] = Kept()

    def admit(
        self,
        caller: Caller,
        key: str | None,
        knobs: Knobs | None,
        digest: Callable[[], bytes],
        is_stream: bool,
    ) -> Callable[..., Conversation]:
        """Let a question pass; return what makes its conversation. `digest`: by what it is known again.

        Raises:
            ApiError: 400, its knobs would not be heard of; another status, it is to be refused, still.
        """
        if knobs is None:
            return Conversation
        if knobs.on_the_wire and not is_stream:
            raise ApiError(400, "Bad sim", f"sim has {knobs.on_the_wire[0]!r}, expected with a stream.")
        if knobs.of_the_model and not self._is_heard:
            message = (
                f"sim has {knobs.of_the_model[0]!r}, expected none of the model: it is not the simulated one."
            )
            raise ApiError(400, "Bad sim", message)
        if knobs.status is not None:
            self._refuse((caller, key, digest()), knobs.status)
        return partial(TunedConversation, knobs=knobs) if self._is_heard else Conversation

    def _refuse(self, question: Question, refusal: Refusal) -> None:
        now_s = asyncio.get_running_loop().time()
        times, since_s = self._refused.pop(question, (0, now_s))
        if now_s - since_s > REFUSED_S:
            times, since_s = 0, now_s
        if times == refusal.times:
            return
        self._refused[question] = times + 1, since_s
        again = refusal.retry_after_s
        headers = {} if again is None else {"Retry-After": str(ceil(again))}
        message = f"The simulator was to answer with {refusal.status}."
        raise ApiError(refusal.status, "Simulated", message, headers=headers)

    def noted(self, reply: Reply, knobs: Knobs | None) -> Reply:
        """Let happen to the streams of a reply what its question has asked for."""
        if knobs is not None and knobs.on_the_wire:
            self._faults[reply.id] = Faults(knobs)
        return reply

    def break_stream(self, request: web.Request, reader: EventReader, reply_id: str) -> None:
        faults = self._faults.get(reply_id)
        if faults is not None:
            reader.stream = FaultyStream(request, self._settings, faults)


SIMULATOR: web.AppKey[Simulator] = web.AppKey("simulator", Simulator)


def read_sim(request: web.Request, given: object) -> Knobs | None:
    """Return the knobs that a question names, None if it names none.

    Raises:
        ApiError: 400, they are not what they should be, or not allowed here.
    """
    if given is None:
        return None
    if not request.app[SETTINGS].sim_faults:
        raise ApiError(400, "Bad sim", "sim is given, expected none: SIM_FAULTS is not set.")
    if not isinstance(given, str):
        raise ApiError(400, "Bad sim", "sim is not a string, expected one like 'ttft=2s fin@30'.")
    try:
        return parse(given) if given.split() else None
    except BadKnobs as exc:
        raise ApiError(400, "Bad sim", str(exc)) from None


def refuse_sim_in_url(request: web.Request, where: str) -> None:
    """Refuse what would not be heard."""
    if "sim" in request.query:
        raise ApiError(400, "Bad sim", f"sim is in the URL, expected {where}.")
