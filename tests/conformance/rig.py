"""The server that is asked, and the client's processes: what each did is noted for the judge.

Each scenario has a port and a user of its own, so that whatever comes to that port is its client's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import asdict

import psycopg2
from aiohttp import web

from app.api.identity import Handler
from app.models.knobs import parse
from app.models.texts import seeded, told
from app.server import create_app
from app.settings import Settings

from .judge import Evidence, Finding, Row, Run, Seen, stray, verdict
from .scenarios import Pace, Scenario

SEED = "conformance"

# With quotes and a character of two UTF-16 units, for who writes JSON or a URL by hand.
MESSAGE = 'Tell me a story: "née" & 100 % 🙂'

# `endless` ends here, as failed.
REPLY_LIMIT_CHARS = 50_000

# Of what a client prints; one that goes on waits for the pipe until it is ended.
OUTPUT_LIMIT_BYTES = 1024 * 1024

# Scenarios wait most of the time.
AT_ONCE = 6

# A socket's port says which scenario its requests are of.
Port = int


class Rig:
    def __init__(self, database_url: str, pace: Pace) -> None:
        self._database_url = database_url
        self._pace = pace
        self._seen: dict[Port, list[Seen]] = {}
        self._loses_answer: set[Port] = set()
        # What the client of a port was told.
        self._told: dict[Port, dict[str, str]] = {}
        settings = Settings(
            database_url=database_url,
            sim_faults=True,
            sim_seed=SEED,
            heartbeat_s=pace.heartbeat_s,
            reply_limit_chars=REPLY_LIMIT_CHARS,
            user_stream_limit=0,
            user_reader_limit=0,
            user_turns_per_minute=0,
        )
        app = create_app(settings)
        app.middlewares.insert(0, self._note)
        app.on_response_prepare.append(self._lose_answer)
        self.runner = web.AppRunner(app, handler_cancellation=False, access_log=None, shutdown_timeout=1)

    async def judge(self, scenario: Scenario, command: Sequence[str]) -> Finding:
        """Run the client, and say what is to be said about it."""
        return verdict(await self.run(scenario, command), scenario.checks)

    async def run(self, scenario: Scenario, command: Sequence[str]) -> Evidence:
        pace, org_id, user_id = self._pace, str(uuid.uuid4()), str(uuid.uuid4())
        sim = scenario.sim.format(**asdict(pace))
        evidence = Evidence(MESSAGE, text_of(sim), scenario.stop_after, pace.retry_after_s, pace.limit_s)
        with self._connect() as cursor:
            cursor.execute("insert into orgs (id, name) values (%s, 'Conformance')", [org_id])
            cursor.execute("insert into users (org_id, id, email) values (%s, %s, '')", [org_id, user_id])
        async with self._port(scenario, evidence.seen) as port:
            environ = {
                "CHAT_URL": f"http://127.0.0.1:{port}",
                "CHAT_MESSAGE": MESSAGE,
                "CHAT_SIM": sim,
                "CHAT_ORG": org_id,
                "CHAT_USER": user_id,
                "CHAT_KEY": str(uuid.uuid4()),
                "CHAT_SILENCE_S": f"{pace.silence_s:g}",
            }
            if scenario.stop_after is not None:
                environ["CHAT_STOP_AFTER"] = str(scenario.stop_after)
            self._told[port] = environ
            runs = [self._run_client(command, environ) for _ in range(scenario.runs)]
            evidence.runs += await asyncio.gather(*runs) if scenario.at_once else [await run for run in runs]
        with self._connect() as cursor:
            cursor.execute(
                "select role, content, status from messages where org_id = %s order by position", [org_id]
            )
            evidence.rows += [Row(*row) for row in cursor.fetchall()]
        return evidence

    @contextmanager
    def _connect(self) -> Iterator[psycopg2.extensions.cursor]:
        with closing(psycopg2.connect(self._database_url)) as connection:
            connection.autocommit = True
            yield connection.cursor()

    @asynccontextmanager
    async def _port(self, scenario: Scenario, seen: list[Seen]) -> AsyncIterator[Port]:
        listening = socket.create_server(("127.0.0.1", 0))
        port: Port = listening.getsockname()[1]
        self._seen[port] = seen
        if scenario.loses_answer:
            self._loses_answer.add(port)
        site = web.SockSite(self.runner, listening)
        await site.start()
        try:
            yield port
        finally:
            await site.stop()

    async def _run_client(self, command: Sequence[str], environ: dict[str, str]) -> Run:
        loop = asyncio.get_running_loop()
        process = await asyncio.create_subprocess_exec(
            *command,
            env={name: value for name, value in os.environ.items() if not name.startswith("CHAT_")} | environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # So that what it has started ends with it.
            start_new_session=True,
        )
        assert process.stdout
        assert process.stderr
        reading = asyncio.gather(read_most(process.stdout), read_most(process.stderr))
        code: int | None = None
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.limit_s):
                    code = await process.wait()
            over_s = loop.time()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        printed, stderr = (data.decode("utf-8", "replace") for data in await reading)
        # A line's end after it is not the reply's: none ends in one.
        return Run(re.sub(r"\r?\n\Z", "", printed), code, stderr, over_s)

    # ---- What the server saw

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        is_stream = request.path == "/chat/stream"
        offset = offset_of(request)
        seen = Seen(request.method, offset, is_stream and offset is None, loop.time())
        self._seen.setdefault(port_of(request), []).append(seen)
        is_ticket = request.method == "POST" and request.path == "/chat/stream/ticket"
        if (seen.is_question or is_ticket) and (given := await given_by(request)):
            seen.stray = stray(given, self._told[port_of(request)])
        try:
            response = await handler(request)
            seen.status = response.status
            return response
        finally:
            seen.over_s = loop.time()

    async def _lose_answer(self, request: web.Request, response: web.StreamResponse) -> None:
        if request.path == "/chat/stream" and port_of(request) in self._loses_answer and request.transport:
            self._loses_answer.discard(port_of(request))
            request.transport.abort()


async def read_most(pipe: asyncio.StreamReader) -> bytes:
    try:
        return await pipe.readexactly(OUTPUT_LIMIT_BYTES)
    except asyncio.IncompleteReadError as end:
        return end.partial


def port_of(request: web.Request) -> Port:
    # Not the socket's: it may be closed by now.
    return request.url.port or 0


def offset_of(request: web.Request) -> int | None:
    """Return the characters that a client says it has, if it says so."""
    if request.match_info.get("message_id") and request.method == "GET":
        return int(request.query.get("offset", 0))
    event_id = request.headers.get("last-event-id") or request.query.get("lastEventId", "")
    match = re.search(r":(\d+)", event_id)
    return int(match[1]) if match else None


async def given_by(request: web.Request) -> dict[str, str | None] | None:
    """Return what a question says; None if the server is to say what it is."""
    query, headers = request.query, request.headers
    if request.method == "POST":
        try:
            asked = json.loads(await request.read())
        except ValueError:
            return None
    elif request.method == "GET" and "ticket" not in query:
        asked = dict(query)
    else:
        return None
    if not isinstance(asked, dict):
        return None
    said = {name: None if (value := asked.get(name)) is None else str(value) for name in ("message", "sim")}
    return {
        "CHAT_MESSAGE": said["message"],
        "CHAT_SIM": said["sim"],
        "CHAT_ORG": headers.get("x-org-id", query.get("orgId")),
        "CHAT_USER": headers.get("x-user-id", query.get("userId")),
        "CHAT_KEY": headers.get("idempotency-key"),
    }


def text_of(sim: str) -> str:
    """Return what the model says with these knobs to the first question of a chat, if it is let."""
    words, text = told([MESSAGE], seeded(SEED, [MESSAGE]), parse(sim)), ""
    while len(text) <= REPLY_LIMIT_CHARS and (word := next(words, "")):
        text += word
    return text


@asynccontextmanager
async def running(database_url: str, pace: Pace) -> AsyncIterator[Rig]:
    rig = Rig(database_url, pace)
    await rig.runner.setup()
    try:
        yield rig
    finally:
        await rig.runner.cleanup()
