"""Growth: each statement in a database with a million messages, against one that is next to empty.

Both answer with the same number of rows: the small one holds just enough to fill a page and a history. The texts
are those of `sql/`, sent over psycopg2 as the server sends them. Commits do not wait for the disk here, so that it
does not drown what is compared.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from statistics import median
from typing import Any

import psycopg2
import psycopg2.extras

from .rig import ORG_ID, QUESTION, ROOT, USER_ID, WORDS, Bench

PAGE = 51
HISTORY = 40
BIG_CHAT = 10_000
# The same in the small database: two pages.
SMALL_CHAT = 2 * PAGE
CHATS_OF_USER = 200

SMALL = "bench_small"
LARGE = "bench_large"

FILL = """
-- Foreign keys need no check while the rows are made up: half the time.
set session_replication_role = replica;
insert into orgs (id, name) values (%(org)s, 'Bench');
insert into users (org_id, id, email)
    select %(org)s, case when n = 0 then %(user)s else gen_random_uuid() end, 'user' || n || '@example.com'
    from generate_series(0, %(users)s - 1) as n;
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


def growth(bench: Bench, messages: int, repeats: int) -> dict[str, Any]:
    """Return the milliseconds of each statement (p50) in both databases, and their ratio; they take turns."""
    began = time.monotonic()
    large = Probe(bench, LARGE, messages=messages, big_chat=BIG_CHAT)
    small = Probe(bench, SMALL, messages=0, big_chat=SMALL_CHAT, chats_of_user=PAGE, per_chat=2)
    bench.say(f"    filled {messages} messages in {time.monotonic() - began:.0f} s")
    bench.checkpoint()
    with ExitStack() as stack:
        # So that a stop need not write it to disk.
        stack.callback(drop, bench, LARGE)
        probes = [stack.enter_context(closing(probe)) for probe in (small, large)]
        times: dict[str, tuple[list[float], list[float]]] = {}
        for repeat in range(-20, repeats):
            for name in small.statements:
                # Who goes first changes too: the second finds warmer caches.
                for place in (0, 1) if repeat % 2 else (1, 0):
                    elapsed = probes[place].run(name)
                    if repeat >= 0:
                        times.setdefault(name, ([], []))[place].append(elapsed)
    result = {
        name: {"small_ms": median(a) * 1000, "large_ms": median(b) * 1000, "ratio": median(b) / median(a)}
        for name, (a, b) in times.items()
    }
    for name, figures in result.items():
        bench.say(f"    {name:<28} x {figures['ratio']:.2f}")
    return {"messages": messages, "big_chat": BIG_CHAT, "statements": result}


def drop(bench: Bench, name: str) -> None:
    with closing(psycopg2.connect(bench.postgres_url)) as admin:
        admin.autocommit = True
        admin.cursor().execute(f"drop database if exists {name}")


class Probe:
    """One database, filled, and the statements of the server against it."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        *,
        messages: int,
        big_chat: int,
        chats_of_user: int = CHATS_OF_USER,
        per_chat: int = 100,
    ) -> None:
        from app.storage.migrate import migrate

        psycopg2.extras.register_uuid()
        with closing(psycopg2.connect(bench.postgres_url)) as admin:
            admin.autocommit = True
            admin.cursor().execute(f"create database {name}")
        url = bench.postgres_url.replace("/llm_app?", f"/{name}?")
        migrate(url, timeout_s=10)
        self._sql = {path.stem: path.read_text() for path in (ROOT / "sql").glob("*.sql")}
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()
        self._cursor.execute("set synchronous_commit = off")
        self._big = uuid.uuid4()
        self._content = " ".join(WORDS)
        chats = max(chats_of_user, (messages - big_chat) // per_chat)
        params = {
            "org": ORG_ID,
            "user": USER_ID,
            "users": max(1, chats // CHATS_OF_USER),
            "own_chats": chats_of_user,
            "chats": chats,
            "per_chat": per_chat,
            "big": self._big,
            "big_count": big_chat,
            "content": QUESTION,
        }
        self._cursor.execute(FILL, params)
        self._cursor.execute("vacuum analyze")
        self._open: list[uuid.UUID] = []
        self.statements: dict[str, Callable[[], None]] = {
            "turn_open, new chat": lambda: self._turn_open(None),
            "turn_open, big chat": lambda: self._turn_open(self._big),
            "turn_close": self._turn_close,
            "chat_list": lambda: self._list("chat_list", before=None),
            "message_list, big chat": lambda: self._list("message_list", chat_id=self._big, before=None),
            "message_list, deep page": lambda: self._list("message_list", chat_id=self._big, before=self._deep),
        }
        # The message after the first page and some more: a page that begins in the middle of the chat.
        self._cursor.execute(
            "select id from messages where chat_id = %s and org_id = %s and position = %s",
            (self._big, ORG_ID, big_chat // 2 + PAGE - 1),
        )
        self._deep = self._cursor.fetchall()[0][0]

    def close(self) -> None:
        self._connection.close()

    def run(self, name: str) -> float:
        """Run one statement, and those that it needs before it; return the seconds that it took itself."""
        if name == "turn_close":
            self._turn_open(None)
        began = time.perf_counter()
        self.statements[name]()
        return time.perf_counter() - began

    def _execute(self, name: str, **params: object) -> int:
        self._cursor.execute(self._sql[name], params)
        return len(self._cursor.fetchall())

    def _turn_open(self, chat_id: uuid.UUID | None) -> None:
        reply_id = uuid.UUID(int=random.getrandbits(128), version=4)
        self._execute(
            "turn_open",
            org_id=ORG_ID,
            user_id=USER_ID,
            chat_id=chat_id,
            new_chat_id=uuid.uuid4(),
            title=QUESTION,
            question_id=uuid.uuid4(),
            reply_id=reply_id,
            content=QUESTION,
            server_id=1,
            history_limit=HISTORY,
            key=None,
            asked=b"",
        )
        self._open.append(reply_id)

    def _turn_close(self) -> None:
        rows = self._execute(
            "turn_close",
            org_id=ORG_ID,
            reply_id=self._open.pop(),
            server_id=1,
            content=self._content,
            status="complete",
            resume_window_s=None,
        )
        assert rows == 1, "the turn was open"

    def _list(self, name: str, **params: object) -> None:
        rows = self._execute(name, org_id=ORG_ID, user_id=USER_ID, page_size=PAGE, **params)
        assert rows >= PAGE - 1, "both databases fill a page"
