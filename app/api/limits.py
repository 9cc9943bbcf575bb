"""How many turns may run at once, and how often one user may ask, or take a ticket to ask with."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from math import ceil
from typing import Literal

from aiohttp import web

from app.errors import ApiError
from app.replies.turns import Turns
from app.settings import Settings
from app.storage.store import Caller

MINUTE_S = 60.0


class Limits:
    """Each process counts for itself, which costs no statement. A user's limit of 0 is none."""

    def __init__(self, settings: Settings, turns: Turns) -> None:
        self._settings = settings
        self._turns = turns
        limit = settings.user_turns_per_minute
        self._asked = Ration(limit, f"asked {limit} times")
        self._taken = Ration(limit, f"taken {limit} tickets")
        # How many questions were refused because some budget left too little, for what it was gone for.
        self.over_budget: Counter[Literal["used", "reserved"]] = Counter()

    def admit(self, caller: Caller) -> None:
        """Admit a turn that is to be opened at once.

        Raises:
            ApiError: 503, as many turns run as may; 429, its user has as many, or has asked too often.
        """
        settings, running = self._settings, self._turns.running
        if running.total() >= settings.stream_limit:
            message = f"The server is busy with {settings.stream_limit} replies, its limit; try again."
            raise ApiError(503, "Busy", message, headers={"Retry-After": "5"})
        limit = settings.user_stream_limit
        if 0 < limit <= running[caller]:
            message = f"You have {running[caller]} replies running, expected at most {limit} at once."
            raise ApiError(429, "Too many replies", message, headers={"Retry-After": "1"})
        self._asked.take(caller)

    def give_back(self, caller: Caller) -> None:
        """What was admitted has turned out to be a turn of before."""
        self._asked.give_back(caller)

    def admit_ticket(self, caller: Caller) -> None:
        """Admit a ticket, as often as a turn.

        Raises:
            ApiError: 429, its user has taken too many.
        """
        self._taken.take(caller)

    def forget_old(self) -> None:
        self._asked.forget_old()
        self._taken.forget_old()


class Ration:
    """So much within a minute for each user."""

    def __init__(self, limit: int, done: str) -> None:
        self._limit = limit
        self._done = done
        # When each user was last given something.
        self._times: dict[Caller, deque[float]] = {}

    def take(self, caller: Caller) -> None:
        if not self._limit:
            return
        now_s = asyncio.get_running_loop().time()
        times = self._times.setdefault(caller, deque(maxlen=self._limit))
        if len(times) == self._limit and now_s - times[0] < MINUTE_S:
            message = f"You have {self._done} within a minute, expected at most as often."
            wait_s = ceil(MINUTE_S - (now_s - times[0]))
            raise ApiError(429, "Too many turns", message, headers={"Retry-After": str(wait_s)})
        times.append(now_s)

    def give_back(self, caller: Caller) -> None:
        if self._times.get(caller):
            self._times[caller].pop()

    def forget_old(self) -> None:
        long_ago_s = asyncio.get_running_loop().time() - MINUTE_S
        self._times = {caller: times for caller, times in self._times.items() if times and times[-1] > long_ago_s}


LIMITS: web.AppKey[Limits] = web.AppKey("limits", Limits)
