"""How many turns may run at once, and how often one user may ask."""

from __future__ import annotations

import asyncio
from collections import deque
from math import ceil

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
        # When each user's last turns were admitted.
        self._admitted: dict[Caller, deque[float]] = {}

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
        if settings.user_turns_per_minute:
            self._ration(caller, settings.user_turns_per_minute)

    def _ration(self, caller: Caller, limit: int) -> None:
        now_s = asyncio.get_running_loop().time()
        times = self._admitted.setdefault(caller, deque(maxlen=limit))
        if len(times) == limit and now_s - times[0] < MINUTE_S:
            message = f"You have asked {limit} times within a minute, expected at most as often."
            wait_s = ceil(MINUTE_S - (now_s - times[0]))
            raise ApiError(429, "Too many turns", message, headers={"Retry-After": str(wait_s)})
        times.append(now_s)

    def forget_old(self) -> None:
        long_ago_s = asyncio.get_running_loop().time() - MINUTE_S
        self._admitted = {caller: times for caller, times in self._admitted.items() if times[-1] > long_ago_s}


LIMITS: web.AppKey[Limits] = web.AppKey("limits", Limits)
