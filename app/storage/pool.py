"""Connections that are kept: at most so many, and the one that was used last is used next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import aiopg


class Session(NamedTuple):
    """A connection, and the one cursor that it ever has."""

    connection: aiopg.Connection
    cursor: aiopg.Cursor


class PoolClosed(Exception):
    """No connection is given any more."""


class Pool:
    """Whoever waits for a connection does so for at most `timeout_s`, and in turn."""

    def __init__(self, connect: Callable[[], Awaitable[Session]], *, size: int, timeout_s: float) -> None:
        self._connect = connect
        self._size = size
        self._timeout_s = timeout_s
        # A slot is held for each connection that is in use or being made. One is made only where none is free, so
        # that there are never more connections than slots.
        self._slots = asyncio.Semaphore(size)
        self._free: list[Session] = []
        self.used: set[Session] = set()
        # Of those in use, the ones that nobody is to have after.
        self._condemned: set[Session] = set()
        self._closed = False

    async def take(self) -> Session:
        """Return an open connection, to be given back.

        Raises:
            PoolClosed: as it says.
            TimeoutError: in `timeout_s` none was given back or made.
            Exception: what `connect` raises.
        """
        if self._closed:
            raise PoolClosed
        if self._is_one_free() and not self._slots.locked():
            # At once, and so without a timer.
            await self._slots.acquire()
            session = self._free.pop()
        else:
            session = await self._wait()
        self.used.add(session)
        if self._closed:
            self.give_back(session)
            raise PoolClosed
        return session

    async def _wait(self) -> Session:
        async with asyncio.timeout(self._timeout_s):
            await self._slots.acquire()
            try:
                if self._closed:
                    # Meanwhile.
                    raise PoolClosed
                return self._free.pop() if self._is_one_free() else await self._connect()
            except BaseException:
                self._slots.release()
                raise

    def _is_one_free(self) -> bool:
        while self._free and self._free[-1].connection.closed:
            self._free.pop()
        return bool(self._free)

    def give_back(self, session: Session) -> None:
        self.used.remove(session)
        # aiopg must not close a connection twice: another may have its file descriptor by now.
        if not session.connection.closed:
            if self._closed or session in self._condemned:
                session.connection.close()
            else:
                self._free.append(session)
        self._condemned.discard(session)
        self._slots.release()

    def clear(self) -> None:
        """Close the free connections now, the others when they are given back."""
        self._condemned |= self.used
        while self._free:
            self._free.pop().connection.close()

    async def close(self, timeout_s: float) -> None:
        """Close the free connections now, the others when they are given back, or after `timeout_s`."""
        self._closed = True
        self.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for _ in range(self._size):
                    await self._slots.acquire()
        for session in self.used:
            session.connection.close()
