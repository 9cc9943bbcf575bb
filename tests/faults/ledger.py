"""Clients that keep a ledger, and the servers they ask: real processes on one PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args

import aiohttp
import psutil
import psycopg2
from support import Rows, Tenant, eventually

from app.models import alternate
from app.models.texts import compose
from app.statuses import FinalStatus, failure

# `make faults` sets FAULTS=full: the same tests, at length.
FULL = os.environ.get("FAULTS") == "full"
# Of what is random in these tests: the same seed cuts the same streams at the same tokens.
SEED = int(os.environ.get("FAULTS_SEED", "1"))

ROOT = Path(__file__).parents[2]
NODE = Path(__file__).parent / "node"
INVARIANTS = (Path(__file__).parent / "invariants.sql").read_text()
# A story of 219 words, with the number that makes each question another.
LONG = "tell a story"
SIM_SEED = "faults"

T = TypeVar("T")


def scale(short: T, full: T) -> T:
    return full if FULL else short


# The default of HISTORY_LIMIT_MESSAGES.
HISTORY_LIMIT = 40

STATUSES: tuple[FinalStatus, ...] = get_args(FinalStatus)
# By what the last event of a stream says.
STATUS_OF = {failure(status): status for status in STATUSES}


def expected_text(*asked: str) -> str:
    """Return what a server with SIM_SEED answers to the last of a chat's questions."""
    return "".join(compose(asked, random.Random("\0".join([SIM_SEED, *asked]))))


CUTS = ("FIN", "RST", "half-close", "stop reading")


def cut(how: str, client: Any) -> None:
    """Do to a client's socket what is to be seen of `how`, but for closing it: after FIN and RST."""
    if how == "RST":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    elif how == "half-close":
        client.shutdown(socket.SHUT_WR)


class DidNotStart(Exception):
    """The server has ended where it should have begun to listen."""


@dataclass
class Entry:
    """What one client knows of its turn."""

    question: str
    chat_id: str | None = None
    reply_id: str | None = None
    seen: str = ""
    # The last event: done, or an error; None if none came.
    last: dict[str, Any] | None = None
    status: int | None = None
    # How its reply has ended, as the answer to a stop said.
    told: str | None = None
    first_word_s: float | None = None
    # When each word came, for those who want to know.
    words_at_s: list[float] | None = None

    @property
    def is_done(self) -> bool:
        return self.last is not None and self.last.get("done") is True


class Server:
    """`python -m app` on its own, beside others on the same database."""

    module = "app"

    def __init__(self, url: str, log: Path, **environ: str) -> None:
        self.database, self._log, self._environ = url, log, environ
        self.host, self.port = "127.0.0.1", 0
        self.start()

    def start(self) -> None:
        """Start it, on the port that it had before if it had one."""
        defaults = {
            "SIM_SEED": SIM_SEED,
            "SIM_DELAY_MS": "2-8",
            "USER_STREAM_LIMIT": "0",
            "USER_READER_LIMIT": "0",
            "USER_TURNS_PER_MINUTE": "0",
        }
        self._log.touch()
        begin = self._log.stat().st_size
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", self.module],
                cwd=ROOT,
                env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
                | {"DATABASE_URL": self.database, "PORT": str(self.port)}
                | defaults
                | self._environ,
                stdout=log,
                stderr=log,
            )
        give_up = time.monotonic() + 40
        while not self.port or self._address(begin) is None:
            if address := self._address(begin):
                self.host, _, port = address.rpartition(":")
                self.port = int(port)
            if self.popen.poll() is not None:
                raise DidNotStart
            assert time.monotonic() < give_up, "the server does not listen"
            time.sleep(0.02)

    def _address(self, begin: int) -> str | None:
        for line in self._log.read_bytes()[begin:].splitlines():
            if b'"Listening"' in line:
                address: str = json.loads(line)["address"]
                return address
        return None

    @property
    def base(self) -> str:
        return f"http://{self.host}:{self.port}"

    def errors(self) -> list[str]:
        errors = ('"level": "error"', "Traceback", "Exception ignored")
        return [line for line in self.log().splitlines() if any(error in line for error in errors)]

    def log(self) -> str:
        return self._log.read_text()

    def usage(self) -> tuple[int, int]:
        """Return bytes of resident memory and the number of open descriptors."""
        process = psutil.Process(self.popen.pid)
        return process.memory_info().rss, process.num_fds()

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self, timeout_s: float = 20) -> int:
        return self.popen.wait(timeout_s)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()


class Address(Protocol):
    """Where to ask: a server, or a proxy before some."""

    @property
    def base(self) -> str: ...


@dataclass
class Ledger:
    """Asks, notes what was acknowledged, and compares it with what is stored."""

    servers: Sequence[Address]
    tenant: Tenant
    rng: random.Random
    session: aiohttp.ClientSession
    entries: list[Entry] = field(default_factory=list)
    # Chats in which several clients ask.
    shared: dict[int, str | None] = field(default_factory=dict)
    # Of all answers; None: a connection that broke before there was one.
    statuses: Counter[int | None] = field(default_factory=Counter)

    def somewhere(self) -> str:
        return self.rng.choice(self.servers).base

    def entry(self, question: str, chat_id: str | None = None) -> Entry:
        # Each is asked once, so that a double would show.
        self.entries.append(Entry(f"{question} {uuid.UUID(int=self.rng.getrandbits(128))}", chat_id))
        return self.entries[-1]

    def _post(self, entry: Entry, url: str) -> Any:
        return self.session.post(
            url,
            json={"message": entry.question} | ({"chat_id": entry.chat_id} if entry.chat_id else {}),
            headers=self.tenant.headers | {"Idempotency-Key": entry.question[-36:]},
        )

    async def ask(self, entry: Entry, *, cut_after: int | None = None, base: str | None = None) -> None:
        """Ask, and read to the end; or break the connection after so many tokens."""
        await self.read(entry, self._post(entry, f"{base or self.somewhere()}/chat/stream"), cut_after)

    async def ask_for_all(self, entry: Entry) -> None:
        """Ask for the whole reply at once."""

        async def take(response: aiohttp.ClientResponse) -> None:
            body = await response.json()
            entry.chat_id = body["chat_id"]
            entry.reply_id, entry.seen, entry.last = body["message_id"], body["reply"], {"done": True}

        await self._answer(entry, self._post(entry, f"{self.somewhere()}/chat"), take)

    async def stop(self, entry: Entry) -> None:
        async def take(response: aiohttp.ClientResponse) -> None:
            entry.told = (await response.json())["status"]

        url = f"{self.somewhere()}/chat/stream/{entry.reply_id}"
        await self._answer(entry, self.session.delete(url, headers=self.tenant.headers), take)

    async def resume(self, entry: Entry, *, cut_after: int | None = None) -> None:
        request = self.session.get(
            f"{self.somewhere()}/chat/stream/{entry.reply_id}?offset={len(entry.seen)}",
            headers=self.tenant.headers,
        )
        await self.read(entry, request, cut_after)

    async def list_chats(self) -> int | None:
        """Return the status of the answer; None if none came."""
        entry = Entry("")
        url = f"{self.somewhere()}/chats"
        await self._answer(entry, self.session.get(url, headers=self.tenant.headers), aiohttp.ClientResponse.read)
        return entry.status

    async def _answer(
        self, entry: Entry, request: Any, take: Callable[[aiohttp.ClientResponse], Awaitable[object]]
    ) -> None:
        """Note the status of an answer, and `take` the body of a good one, for as long as it lasts."""
        entry.status = None
        with suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
            async with request as response:
                entry.status = response.status
                if response.status == 200:
                    await take(response)
        self.statuses[entry.status] += 1

    async def read(self, entry: Entry, request: Any, cut_after: int | None) -> None:
        entry.last, tokens = None, 0
        began_s = time.monotonic()

        async def take(response: aiohttp.ClientResponse) -> None:
            nonlocal tokens
            entry.chat_id, entry.reply_id = response.headers["x-chat-id"], response.headers["x-message-id"]
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                event = json.loads(line[6:])
                if "error" in event or event["done"]:
                    entry.last = event
                    return
                if not event["token"]:
                    # A stream with ids begins with it.
                    continue
                now_s = time.monotonic()
                entry.first_word_s = entry.first_word_s or now_s - began_s
                if entry.words_at_s is not None and not event["token"].isspace():
                    entry.words_at_s.append(now_s)
                entry.seen += event["token"]
                tokens += 1
                if tokens == cut_after and response.connection:
                    await self._cut(response.connection.transport)

        await self._answer(entry, request, take)

    async def _cut(self, transport: Any) -> None:
        """Cut a connection in one of the ways. Who has only closed their half reads on, to what end there is."""
        how = self.rng.choice(CUTS)
        cut(how, transport.get_extra_info("socket"))
        if how == "stop reading":
            transport.pause_reading()
            await asyncio.sleep(0.2)
        if how != "half-close":
            transport.abort()
            raise aiohttp.ClientConnectionError("cut")

    async def until_done(self, entry: Entry, *, cuts: int = 0, patience_s: float = 60) -> None:
        """Ask and, broken off so often at random, come back until there is a last event or a final status."""
        give_up = time.monotonic() + patience_s
        while time.monotonic() < give_up:
            cut = self.rng.randint(1, 60) if cuts else None
            cuts -= cut is not None
            if entry.reply_id is None:
                await self.ask(entry, cut_after=cut)
            else:
                await self.resume(entry, cut_after=cut)
                # 204: ended, with no more to say. 409: its server was killed, and took with it what was not saved.
                if entry.status in (204, 409):
                    return
            if entry.last is not None:
                return
            await asyncio.sleep(0.05 if entry.status == 200 else 0.3)
        raise AssertionError(f"no end in {patience_s:g} s: {entry}")

    def compare(self, rows: Rows) -> dict[str, int]:
        """Compare all that was acknowledged with what is stored; return how many replies have each status."""
        stored = {
            str(reply_id): (before, status, content)
            for reply_id, before, status, content in rows(
                "select id,"
                " (select json_agg(json_build_object('role', role, 'content', content) order by position)"
                " from messages where org_id = reply.org_id and chat_id = reply.chat_id"
                " and position < reply.position),"
                " status, content from messages as reply where org_id = %s and role = 'assistant'",
                self.tenant.org_id,
            )
        }
        counts: dict[str, int] = {}
        for entry in self.entries:
            if entry.reply_id is None:
                continue
            before, status, content = stored[entry.reply_id]
            question = before.pop()
            assert question == {"role": "user", "content": entry.question}
            # What the model was given is what is stored before, in order: it says how often it was asked.
            given = alternate(before[-HISTORY_LIMIT:], entry.question)
            text = expected_text(*(message.content for message in given if message.role == "user"))
            counts[status] = counts.get(status, 0) + 1
            assert text.startswith(entry.seen), f"a client saw what was not said: {entry}"
            assert text.startswith(content), f"stored what was not said: {entry}"
            # A server that was killed takes what it had not saved with it.
            assert status == "interrupted" or content.startswith(entry.seen), f"a client saw more: {entry}"
            if status == "complete":
                assert content == text
            # What one was told, all are told for ever.
            assert entry.told in (None, status), entry
            if entry.last is not None and entry.last.get("message") in STATUS_OF:
                assert status == STATUS_OF[entry.last["message"]], entry
            if entry.is_done:
                assert (status, entry.seen) == ("complete", text), entry
        return counts


@asynccontextmanager
async def ledger(servers: Sequence[Address], tenant: Tenant, seed: int) -> AsyncIterator[Ledger]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Ledger(servers, tenant, random.Random(seed), session)


async def under_database_faults(
    servers: list[Server], rows: Rows, fault: Callable[[], Awaitable[None]], *, times: int = 1
) -> Ledger:
    """Talk while `fault` does its work; after each time every server must be well again within 5 s.

    In the short form, with other tests beside, within 20.
    """
    stop = asyncio.Event()
    async with ledger(servers, rows.tenant(), SEED) as clients:

        async def ask(server: Server | None = None) -> bool:
            entry = clients.entry(clients.rng.choice(["Hi", LONG]))
            await clients.ask(entry, base=server and server.base)
            # Whoever got no stream got a clear answer, and whoever got one an end: the servers live.
            assert entry.status == 503 or (entry.status == 200 and entry.last is not None), entry
            return entry.is_done

        async def talk() -> None:
            while not stop.is_set():
                await ask()
                await asyncio.sleep(0.05)

        async def list_chats() -> None:
            # Turns alone have hardly ever a statement under way at the very moment.
            while not stop.is_set():
                assert await clients.list_chats() in (200, 503)

        async def recover(server: Server) -> None:
            async with asyncio.timeout(scale(20, 5)):
                while not await ask(server):
                    await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as load:
            for _ in range(10):
                load.create_task(talk())
            load.create_task(list_chats())
            for _ in range(times):
                await eventually(
                    lambda: sum(entry.last is None and entry.seen > "" for entry in clients.entries) > 5
                )
                await fault()
                await asyncio.gather(*map(recover, servers))
            stop.set()
    return clients


def broken_invariants(url: str) -> dict[str, int]:
    """Return the counts that are not 0."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(INVARIANTS.replace("%%", "%"))
        [row] = cursor.fetchall()
        assert cursor.description
        return {column.name: count for column, count in zip(cursor.description, row, strict=True) if count}


async def all_ended(rows: Rows) -> None:
    await eventually(lambda: rows("select count(*) from messages where status = 'streaming'") == [(0,)], 30)
