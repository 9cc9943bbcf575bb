"""Growth: each statement in a database with a million messages, against one with a thousand.

Two servers, one on each, are asked the same in turns, and PostgreSQL's own log tells how long each statement took.
So nothing is known here of how the server sends them, nor which there are: whatever it runs is compared. Only the
rows that are there beforehand are made up in SQL.

Both answer with the same number of rows, and read them in the same way: PostgreSQL would scan the small tables
whole, and more and more of them as turns are added, and a statement that grows would seem not to. Commits do not
wait for the disk here, so that it does not drown what is compared.
"""

from __future__ import annotations

import re
import time
import uuid
from collections import defaultdict
from contextlib import ExitStack, closing
from os import SEEK_END
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import psycopg2

from .candidates import Job, ours
from .rig import HEADERS, QUESTION, BenchError, Postgres, free_port, started
from .streams import say

# Rows of a page and one more: whether there is another.
PAGE = 51
BIG_CHAT = 10_000
# The same in the small database: as much as makes PostgreSQL read it in the same way.
SMALL_CHAT = 1_000
CHATS_OF_USER = 200
WARM_UP = 20
# What a server runs by itself, once a second.
BACKGROUND = "in the background"
MIN_TIMES = 10

FILL = """
-- Foreign keys need no check while the rows are made up: half the time.
set session_replication_role = replica;
insert into users (org_id, id, email)
    select %(org)s, gen_random_uuid(), 'user' || n || '@example.com'
    from generate_series(1, %(users)s - 1) as n;
create temporary table numbered as select id, row_number() over () - 1 as n from users where id <> %(user)s;
insert into chats (org_id, id, user_id, title, message_count, created_at)
    select %(org)s, gen_random_uuid(), coalesce(numbered.id, %(user)s), 'Chat ' || chat, %(per_chat)s,
        now() - chat * interval '1 minute'
    from generate_series(1, %(chats)s) as chat
    left join numbered on chat > %(own_chats)s and numbered.n = chat %% greatest(%(users)s - 1, 1);
insert into chats (org_id, id, user_id, title, message_count, created_at)
    values (%(org)s, %(big)s, %(user)s, 'Big', %(big_count)s, now() - interval '1 year');
insert into messages (org_id, id, chat_id, position, role, content, status, server_id, created_at, finished_at)
    select %(org)s, gen_random_uuid(), chats.id, n, case when n %% 2 = 1 then 'user' else 'assistant' end,
        %(content)s, 'complete', case when n %% 2 = 0 then 1 end, chats.created_at, now()
    from chats, generate_series(1, chats.message_count) as n;
set session_replication_role = origin;
"""

# A line of PostgreSQL's log: the database, the milliseconds, the statement.
LOGGED = re.compile(r"^(\w+) LOG:  duration: ([0-9.]+) ms  (.*)$", re.MULTILINE)
# A prepared statement's name; of another statement its beginning.
NAME = re.compile(r"(?:.*\bexecute )(\w+)|(?:statement: )?(.{1,40})", re.IGNORECASE)

# Milliseconds by statement and what was asked, in the small database and in the large one.
Times = dict[tuple[str, str], tuple[list[float], list[float]]]


def growth(postgres: Postgres, messages: int, repeats: int) -> dict[str, Any]:
    """Return the milliseconds of each statement (p50) in both databases, and their ratio."""
    # Terse: without the text of a prepared statement each time.
    postgres.run("alter system set log_line_prefix = '%d '")
    postgres.run("alter system set log_error_verbosity = terse")
    postgres.run("select pg_reload_conf()")
    with ExitStack() as stack:
        began = time.monotonic()
        large = Probe(stack, postgres, messages)
        small = Probe(stack, postgres, 0)
        say(f"    filled {messages} messages in {time.monotonic() - began:.0f} s")
        postgres.run("checkpoint")
        times = take_turns(small, large, postgres.log, repeats)
    result = {
        f"{statement}, {asked}": {
            "small_ms": median(a),
            "large_ms": median(b),
            "ratio": median(b) / median(a),
            "times": min(len(a), len(b)),
        }
        for (statement, asked), (a, b) in sorted(times.items())
        if asked != BACKGROUND or min(len(a), len(b)) >= MIN_TIMES
    }
    if not result:
        raise BenchError("PostgreSQL's log tells no durations")
    for name, figures in result.items():
        say(f"    {name:<44} x {figures['ratio']:.2f}")
    return {"messages": messages, "statements": result}


def take_turns(small: Probe, large: Probe, log: Path, repeats: int) -> Times:
    times: Times = defaultdict(lambda: ([], []))
    places = {small.database: 0, large.database: 1}
    with log.open(errors="replace") as lines:
        for repeat in range(-min(WARM_UP, repeats), repeats):
            for asked in small.requests:
                # Who goes first changes: the second finds warmer caches.
                for probe in (small, large) if repeat % 2 else (large, small):
                    lines.seek(0, SEEK_END)
                    probe.ask(asked)
                    # It is in the log by now: PostgreSQL writes it before it says that the statement is through.
                    for database, ms, text in LOGGED.findall(lines.read()):
                        if repeat >= 0 and database in places:
                            match = NAME.match(text)
                            statement = match[1] or match[2] if match else text
                            times[statement, asked][places[database]].append(float(ms))
    for (statement, asked), both in list(times.items()):
        # It does not belong to what was asked, and only happened to run then.
        if min(map(len, both)) < repeats / 2:
            del times[statement, asked]
            for found, more in zip(times[statement, BACKGROUND], both, strict=True):
                found += more
    return times


class Probe:
    """A server on a database that is filled, and what it is asked."""

    def __init__(self, stack: ExitStack, postgres: Postgres, messages: int) -> None:
        big_chat = max(SMALL_CHAT, min(BIG_CHAT, messages // 2))
        per_chat = max(2, min(100, messages // (2 * CHATS_OF_USER)) // 2 * 2)
        own_chats = CHATS_OF_USER if messages else PAGE
        chats = max(own_chats, (messages - big_chat) // per_chat)
        big = str(uuid.uuid4())
        url = stack.enter_context(postgres.database())
        self.database = urlsplit(url).path.removeprefix("/")
        # Before the server connects.
        for setting in ("log_min_duration_statement = 0", "synchronous_commit = off", "enable_seqscan = off"):
            postgres.run(f"alter database {self.database} set {setting}")
        job = Job(free_port(), 0.0, url)
        candidate = ours()
        self._server = stack.enter_context(
            started(candidate.command(job), job.port, job.environ(), candidate.folder)
        )
        params = {
            "org": HEADERS["x-org-id"],
            "user": HEADERS["x-user-id"],
            "users": max(1, chats // CHATS_OF_USER),
            "own_chats": own_chats,
            "chats": chats,
            "per_chat": per_chat,
            "big": big,
            "big_count": big_chat,
            "content": QUESTION,
        }
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(FILL, params)
            cursor.execute("vacuum analyze")
            cursor.execute("select id from messages where chat_id = %s order by position", (big,))
            ids = [row[0] for row in cursor.fetchall()]
        # A page that begins in the middle of the chat.
        before = ids[big_chat // 2 + PAGE - 2]
        # Replies are the even ones.
        reply = ids[big_chat // 4 * 2 - 1]
        self.requests: dict[str, tuple[str, str, dict[str, str] | None]] = {
            "a new chat": ("POST", "/chat", {"message": QUESTION}),
            "a big chat": ("POST", "/chat", {"message": QUESTION, "chat_id": big}),
            "chats": ("GET", "/chats", None),
            "a big chat's end": ("GET", f"/chats/{big}/messages", None),
            "a big chat's middle": ("GET", f"/chats/{big}/messages?before={before}", None),
            "a reply resumed": ("GET", f"/chat/stream/{reply}?offset=0", None),
            "a reply stopped": ("DELETE", f"/chat/stream/{reply}", None),
        }

    def ask(self, name: str) -> None:
        self._server.ask(*self.requests[name])
