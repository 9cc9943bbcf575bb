"""Questions, questions that replace others, and stops: many clients in one chat, at two servers, all at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from house import hears
from ledger import SEED, all_ended, broken_invariants, scale
from serving import serving
from support import Rows, Tenant

from app.models import Conversation, Message, alternate

CLIENTS = 8
# So many questions replace others.
REPLACED = scale(8, 1000)

# What each transaction has written to the chat.
NOTE = """
create table notes (transaction xid8 not null default pg_current_xact_id(), kind text not null, id text not null);
create function note() returns trigger language plpgsql as $$
begin
    insert into notes (kind, id) values (lower(tg_op), coalesce(new.id, old.id));
    return null;
end
$$;
create trigger note after insert or delete on messages for each row execute function note();
"""


class Story:
    """A model that takes its time, and notes what it was given with each question."""

    def __init__(self) -> None:
        self.given: dict[str, list[Message]] = {}

    async def __call__(self, conversation: Conversation) -> AsyncIterator[str]:
        question = conversation.messages[-1].content.rpartition("\n\n")[2]
        self.given[question] = list(conversation.messages)
        for word in f"to {question}, a few words".split():
            await asyncio.sleep(0.002)
            yield f"{word} "


class Storm:
    def __init__(self, servers: list[TestServer], tenant: Tenant, session: aiohttp.ClientSession) -> None:
        self._servers, self._session = servers, session
        self._headers = tenant.headers
        self.chat_id = ""
        self.answers: Counter[str] = Counter()
        # The reply that was opened for each question; what was known to who has opened one in the place of others.
        self.replies: dict[str, str] = {}
        self.known: dict[str, list[str]] = {}

    async def begin(self) -> None:
        self.chat_id = (await self._ask(random.Random(0), {"message": "the first"})) or ""
        assert self.chat_id

    async def client(self, number: int) -> None:
        rng, asked, view = random.Random(f"{SEED} {number}"), 0, await self._look()
        while self.answers["replace 200"] < REPLACED:
            # Else it knows the chat of a while ago.
            if rng.random() < 0.7:
                view = await self._look()
            kind = rng.choice(["ask", "replace", "replace", "replace the last", "stop"])
            if kind == "stop":
                await self._stop(rng, rng.choice(view[-4:]))
                continue
            asked += 1
            body = {"message": f"{number} asks {asked}", "chat_id": self.chat_id}
            if kind == "replace":
                body |= {"replaces": rng.choice(view[-8:]), "last": view[-1]}
            elif kind == "replace the last":
                body |= {"replaces": rng.choice(view[-2:])}
            await self._ask(rng, body, view)

    async def _look(self) -> list[str]:
        url = f"/chats/{self.chat_id}/messages?limit=100"
        async with self._session.get(self._servers[0].make_url(url), headers=self._headers) as response:
            return [message["message_id"] for message in (await response.json())["messages"]]

    async def _stop(self, rng: random.Random, reply_id: str) -> None:
        url = rng.choice(self._servers).make_url(f"/chat/stream/{reply_id}")
        async with self._session.delete(url, headers=self._headers) as response:
            self.answers[f"stop {response.status}"] += 1

    async def _ask(self, rng: random.Random, body: dict[str, Any], view: list[str] | None = None) -> str | None:
        """Ask, and read the reply, all of it or not; return the chat."""
        url = rng.choice(self._servers).make_url("/chat/stream")
        async with self._session.post(url, json=body, headers=self._headers) as response:
            kind = "replace" if "replaces" in body else "ask"
            if response.status != 200:
                self.answers[f"{kind} {response.status} {(await response.json())['error']}"] += 1
                return None
            self.answers[f"{kind} 200"] += 1
            self.replies[body["message"]] = reply_id = response.headers["x-message-id"]
            if "replaces" in body:
                assert view is not None
                self.known[reply_id] = view
            if rng.random() < 0.5:
                await response.read()
            return response.headers["x-chat-id"]


@pytest.mark.timeout(300)
async def test_each_question_replaces_what_its_asker_knows_of_or_nothing(
    database: str, own_rows: Rows, say: Callable[..., None]
) -> None:
    own_rows(NOTE)
    model = Story()
    async with serving(database) as start, aiohttp.ClientSession() as session:
        servers = [await hears(await start(model=model, history_limit_messages=100_000)) for _ in range(2)]
        storm = Storm(servers, own_rows.tenant(), session)
        await storm.begin()
        await asyncio.gather(*map(storm.client, range(CLIENTS)))
        await all_ended(own_rows)
    say(**{name.replace(" ", "_"): count for name, count in sorted(storm.answers.items())})
    assert broken_invariants(database) == {}
    # Each was opened or refused, and some of each kind were.
    assert storm.answers.keys() <= {
        *("ask 200", "ask 409 Reply running", "replace 200", "replace 409 Gone on", "replace 409 Reply running"),
        *("stop 200", "stop 404"),
    }
    assert min(storm.answers[kind] for kind in ("ask 200", "replace 200", "replace 409 Gone on")) > 0
    # What there is was opened, and its model given exactly what is before it.
    messages = own_rows(
        "select id::text, role, content from messages where chat_id = %s order by position", storm.chat_id
    )
    assert [role for _, role, _ in messages] == ["user", "assistant"] * (len(messages) // 2)
    history = [{"role": role, "content": content} for _, role, content in messages]
    for at in range(0, len(messages), 2):
        question = messages[at][2]
        assert storm.replies[question] == messages[at + 1][0]
        # One that was ended at once has asked no model.
        if question in model.given:
            assert model.given[question] == alternate(history[:at], question)
    # What is gone is what somebody knew who has asked in its place.
    notes = own_rows(
        "select array_agg(id) filter (where kind = 'insert'), array_agg(id) filter (where kind = 'delete')"
        " from notes group by transaction having count(*) filter (where kind = 'delete') > 0"
    )
    assert len(notes) == storm.answers["replace 200"]
    for inserted, deleted in notes:
        [reply_id] = storm.known.keys() & set(inserted)
        assert set(deleted) <= set(storm.known[reply_id])
        assert len(inserted) == 2
    opened = {reply_id for inserted, _ in notes for reply_id in inserted}
    assert storm.known.keys() <= opened
