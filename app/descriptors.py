"""File descriptors: as many as the machine gives, and some kept back from clients, for files and the database."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

log = logging.getLogger(__name__)

# Where there is no hard limit, and on machines that say so and do not mean it.
ENOUGH = 1_048_576

# The listener, pages, logs, the event loop's own, and connections that are being refused.
KEPT = 64

# Connections that wait to be accepted; Linux takes at most net.core.somaxconn.
BACKLOG = 4096

# How many connections are accepted in one step of asyncio's loop. With none left it logs as many tracebacks.
ACCEPTED_AT_ONCE = 32

# A client who is refused has so long to send its request, and to read the answer.
REFUSE_S = 1.0

# How often the log says so.
TELL_EVERY_S = 60.0


def fill_standard() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed: a client's connection would take its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def raise_limit() -> None:
    """Raise the soft limit, often 1,024, to the hard one. Workers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < enough:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
        except (OSError, ValueError) as exc:
            # macOS gives a process fewer than its hard limit says.
            log.warning("Descriptors not raised", extra={"limit": soft, "cause": str(exc)})


def limit_for_clients(connections: int) -> int:
    """Return the number from which on descriptors are kept back, `connections` of them for the database."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ENOUGH
    return max(soft - connections - KEPT, soft // 2)


@asynccontextmanager
async def letting_in(
    server: Callable[[], asyncio.Protocol], listener: socket.socket, *, kept: int
) -> AsyncIterator[None]:
    """Let clients in to `server`, a factory of protocols, meanwhile; keep so many descriptors for the database."""
    gate = Gate(server, limit_for_clients(kept))
    logging.getLogger("asyncio").addFilter(gate.take)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(gate, sock=listener, backlog=ACCEPTED_AT_ONCE)
    # For asyncio both are one number: how many it accepts in a step, and how many may wait for that.
    listener.listen(BACKLOG)
    try:
        yield
    finally:
        listening.close()


class Gate:
    """Lets clients in while there are descriptors below `limit`; refuses the others with 503.

    The kernel gives the lowest number that is free. So that a number is high says that all below are in use,
    whatever for.
    """

    def __init__(self, server: Callable[[], asyncio.Protocol], limit: int) -> None:
        self.server = server
        self._limit = limit
        self._told_at_s = float("-inf")

    def __call__(self) -> asyncio.Protocol:
        return Arrival(self)

    def is_open(self, number: int) -> bool:
        if number < self._limit:
            return True
        self.tell()
        return False

    def is_shut(self, number: int) -> bool:
        """Whether not even a refused client may be waited for."""
        return number >= self._limit + KEPT // 2

    def tell(self) -> None:
        now_s = time.monotonic()
        if now_s - self._told_at_s >= TELL_EVERY_S:
            self._told_at_s = now_s
            log.error("No descriptors left for clients", extra={"limit": self._limit})

    def take(self, record: logging.LogRecord) -> bool:
        """Filter of asyncio's log: with no descriptors at all it logs a traceback for each try to accept."""
        exc = record.exc_info[1] if record.exc_info else None
        if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
            self.tell()
            return False
        return True


class Arrival(asyncio.Protocol):
    """A connection that has just been accepted: it becomes a client's, or is refused."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._transport: asyncio.Transport | None = None

    # uvloop's transport is asyncio's by its methods alone.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        number = transport.get_extra_info("socket").fileno()
        if self._gate.is_open(number):
            protocol = self._gate.server()
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
            return
        self._transport = transport
        if self._gate.is_shut(number):
            self._refuse(transport)
            transport.close()
        else:
            asyncio.get_running_loop().call_later(REFUSE_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._refuse(self._transport)
            # What else it sends is read and thrown away: bytes that are not read would take the answer back (RFC
            # 9112, 9.6).
            self._transport = None

    def _refuse(self, transport: asyncio.Transport) -> None:
        transport.write(refusal())
        # It may have gone by now.
        with suppress(OSError):
            transport.write_eof()


def refusal() -> bytes:
    """Return the whole answer: no request has been read."""
    request_id = str(uuid.uuid4())
    message = "The server has no room for another connection; try again."
    body = json.dumps({"error": "Busy", "message": message, "requestId": request_id})
    head = [
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Retry-After: 1",
        "Connection: close",
        f"x-request-id: {request_id}",
    ]
    return "\r\n".join([*head, "", body]).encode()
