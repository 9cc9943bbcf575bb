"""Budgets: what a turn sets aside, what it is charged, and whom they refuse."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp.test_utils import TestServer
from house import answer, ask, chat_of, question, read_pieces, stop, waiting
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, post, says
from test_readme import snippet

from app.models import Conversation, Model, ModelError, Reasoning, Stop, Usage
from app.parsers import Price
from app.replies.turns import TURNS
from app.storage.db import Database
from app.storage.store import DEMO_ORG_ID, DEMO_USER_ID, Store

INVARIANTS = (Path(__file__).parent / "faults" / "invariants.sql").read_text()

# A question of one token, and a reply of a hundred at most.
QUESTION = b'{"message": "Hi"}'
MAX_TOKENS = 100
SET_ASIDE = 1 + MAX_TOKENS

# A server whose lock nobody holds.
DEAD = 1


@pytest.fixture(autouse=True)
def _budgets_add_up(rows: Rows) -> Iterator[None]:
    """After each test, as after any fault: what a budget has used is what its replies were charged."""
    yield
    [(wrong,)] = rows(f"select budgets_that_do_not_add_up from ({INVARIANTS}) as invariants")
    rows("delete from budgets")
    assert wrong == 0


class Budgets:
    """The budgets of a tenant."""

    def __init__(self, rows: Rows, tenant: Tenant) -> None:
        self._rows, self._tenant = rows, tenant

    def give(self, units: object, scope: str = "user", period: str = "day") -> None:
        self._rows(
            "insert into budgets (org_id, user_id, period, units) values (%s, %s, %s, %s)",
            self._tenant.org_id,
            self._tenant.user_id if scope == "user" else None,
            period,
            units,
        )

    def state(self) -> list[tuple[float, float]]:
        """Return (used, reserved) of each, in units, the org's first."""
        return [
            (used / 1_000_000, reserved / 1_000_000)
            for used, reserved in self._rows(
                "select used, reserved from budgets where org_id = %s and (user_id is null or user_id = %s)"
                " order by owner_id, period",
                self._tenant.org_id,
                self._tenant.user_id,
            )
        ]


@pytest.fixture
def budgets(rows: Rows, tenant: Tenant) -> Budgets:
    return Budgets(rows, tenant)


def counts(*pieces: Any) -> Model:
    """Return a model that says these pieces, and whose provider counts 7 and 30 tokens."""
    return says(*pieces, Usage(7, 30), Stop("end"))


async def post_chat(server: TestServer, tenant: Tenant, headers: str = "") -> tuple[int, dict[bytes, bytes], Any]:
    client = await RawClient.connect(server)
    client.send(post("/chat", QUESTION, tenant, headers=headers))
    status, head = await client.read_head()
    return int(status.split()[1]), head, json.loads(await client.reader.readexactly(int(head[b"content-length"])))


# ---- What is set aside


@pytest.mark.parametrize("servers", [1, 3])
async def test_of_a_hundred_questions_at_once_a_budget_for_ten_opens_ten(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets, servers: int
) -> None:
    model = Gated(pieces=["Hello"])
    started = [
        await start_server(model=model, model_max_tokens=MAX_TOKENS, db_timeout_s=30.0) for _ in range(servers)
    ]
    budgets.give(10 * SET_ASIDE, "org")
    budgets.give(10 * SET_ASIDE + 50)

    async def one(at: int) -> tuple[bytes, RawClient]:
        client = await RawClient.connect(started[at % servers])
        client.send(post("/chat/stream", QUESTION, tenant))
        status, _ = await client.read_head()
        return status, client

    asked = await asyncio.gather(*map(one, range(100)))
    statuses = [status for status, _ in asked]
    assert (statuses.count(b"HTTP/1.1 200 OK"), statuses.count(b"HTTP/1.1 429 Too Many Requests")) == (10, 90)
    assert budgets.state() == [(0, 10 * SET_ASIDE)] * 2
    model.pieces = ["Hello"]
    model.go(10)
    for status, client in asked:
        if b"200" in status:
            assert events(b"".join(await client.read_chunks()))[-1]["usage"] == {
                "input": 1,
                "output": 3,
                "estimated": True,
            }
    assert budgets.state() == [(10 * 4, 0)] * 2


async def test_all_budgets_that_apply_are_charged_and_said_and_no_others(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets
) -> None:
    server = await start_server(model=counts("Hello"), model_max_tokens=MAX_TOKENS)
    other = Budgets(rows, rows.tenant(tenant.org_id))
    other.give(1)
    for scope, period, units in (("org", "day", 4000), ("org", "month", 3000), ("user", "day", 2000)):
        budgets.give(units, scope, period)
    budgets.give("1000.5", "user", "month")
    status, head, _ = await post_chat(server, tenant)
    assert status == 200
    assert head[b"ratelimit-policy"] == (
        b'"org-day";q=4000;qu="units", "org-month";q=3000;qu="units",'
        b' "user-day";q=2000;qu="units", "user-month";q=1000;qu="units"'
    )
    limits = [
        dict(part.split(b"=") for part in limit.split(b";")[1:]) for limit in head[b"ratelimit"].split(b", ")
    ]
    assert [int(limit[b"r"]) for limit in limits] == [3899, 2899, 1899, 899]
    day_s, month_s = int(limits[0][b"t"]), int(limits[1][b"t"])
    assert 0 < day_s <= 86_400
    assert day_s <= month_s <= 31 * 86_400
    assert budgets.state() == [(37, 0)] * 4
    assert other.state() == [(37, 0)] * 2 + [(0, 0)]


async def test_without_budgets_nothing_is_said_of_them(server: TestServer, rows: Rows, tenant: Tenant) -> None:
    status, head, _ = await post_chat(server, tenant)
    assert (status, b"ratelimit" in head, b"ratelimit-policy" in head) == (200, False, False)
    assert rows(
        "select budgets, reserved, charged from messages where org_id = %s and role = 'assistant'", tenant.org_id
    ) == [(None, None, None)]


async def test_price_of_a_fraction_leaves_a_reply_its_whole_length(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets
) -> None:
    granted: list[int | None] = []

    async def model(conversation: Conversation) -> AsyncIterator[Any]:
        granted.append(conversation.max_tokens)
        yield "Hello"
        yield Usage(7, MAX_TOKENS)
        yield Stop("length")

    price = Price(Decimal("0.15"), Decimal("0.600001"))
    server = await start_server(model=model, model_max_tokens=MAX_TOKENS, model_price=price)
    budgets.give("0.01")
    status, _, body = await post_chat(server, tenant)
    assert (status, body["stop"], granted) == (200, "length", [MAX_TOKENS])
    # 7 x 0.15 + 100 x 0.600001 millionths, rounded up once.
    assert rows("select charged from messages where org_id = %s and charged is not null", tenant.org_id) == [(62,)]


async def test_more_than_an_estimate_is_not_charged_where_roles_did_not_alternate(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets
) -> None:
    server = await start_server(model=Gated(), model_max_tokens=MAX_TOKENS)
    budgets.give(1000)
    client, reply_id = await ask(server, tenant)
    chat_id = chat_of(rows, reply_id)
    for _ in range(4):
        # Without a word, so that the next question goes out together with this one.
        await answer(await stop(server, tenant, reply_id))
        client = await question(server, tenant, chat_id)
        reply_id = (await client.read_head())[1][b"x-message-id"].decode()
    turn = server.app[TURNS].find(reply_id)
    turn._meter.notes += 1
    assert turn.usage().input == 13
    [(reserved,)] = rows("select reserved from messages where id = %s", reply_id)
    assert reserved >= (13 + MAX_TOKENS) * 1_000_000
    await answer(await stop(server, tenant, reply_id))


# ---- Who is refused


@pytest.mark.parametrize("units", [0, SET_ASIDE - MAX_TOKENS + 49, "0.000001"])
async def test_question_that_a_budget_has_too_little_for_is_402(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets, units: object
) -> None:
    server = await start_server(model_max_tokens=MAX_TOKENS)
    budgets.give(1_000_000, "org")
    budgets.give(units)
    status, head, body = await post_chat(server, tenant)
    assert (status, body["error"]) == (402, "Budget spent")
    assert b"retry-after" not in head
    assert head[b"ratelimit"].startswith(b'"org-day";r=1000000;t=')
    assert (rows.messages(tenant.org_id), budgets.state()) == ([], [(0, 0)] * 2)


async def test_question_that_waits_for_what_is_set_aside_is_429(
    start_server: StartServer, tenant: Tenant, budgets: Budgets
) -> None:
    model = Gated(pieces=["Hello"])
    server = await start_server(model=model, model_max_tokens=MAX_TOKENS)
    budgets.give(SET_ASIDE + 4)
    client, _ = await ask(server, tenant)
    status, head, body = await post_chat(server, tenant)
    assert (status, body["error"], head[b"retry-after"]) == (429, "Budget reserved", b"5")
    assert head[b"ratelimit"].startswith(b'"user-day";r=4;t=')
    model.go(1)
    await client.read_chunks()
    # Once it has ended, there is room; and since it has, for so much that it is less than usual.
    model.pieces = ["Hello"]
    model.go(1)
    assert (await post_chat(server, tenant))[0] == 200
    assert budgets.state() == [(8, 0)]


@pytest.mark.parametrize("when", ["it is spent", "the rest is set aside"])
async def test_key_sent_again_gives_the_earlier_reply_and_is_not_charged(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets, when: str
) -> None:
    model = Gated(pieces=["Hello"])
    server = await start_server(model=model, model_max_tokens=MAX_TOKENS)
    budgets.give(SET_ASIDE)
    key = "Idempotency-Key: one\r\n"
    first, reply_id = await ask(server, tenant, key)
    if when == "it is spent":
        model.go(1)
        await first.read_chunks()
        rows("update budgets set units = 4")
    again, same_id = await ask(server, tenant, key)
    assert same_id == reply_id
    model.go(1)
    assert events(b"".join(await again.read_chunks()))[-1]["fullText"] == "Hello"
    await eventually(lambda: budgets.state() == [(4, 0)])
    assert len(rows.messages(tenant.org_id)) == 2


# ---- How a reply ends whose budget has less than it may take


async def test_reply_that_reaches_what_the_budget_has_left_ends_with_budget_spent(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets
) -> None:
    async def model(conversation: Conversation) -> AsyncIterator[Any]:
        # As providers do that listen: words of seven bytes, as long as English ones.
        assert conversation.max_tokens == 70
        for _ in range(70):
            yield "twelve "
        yield Usage(5, 70)
        yield Stop("length")

    server = await start_server(model=model, model_max_tokens=MAX_TOKENS)
    budgets.give(71)
    client, reply_id = await ask(server, tenant)
    read = events(b"".join(await client.read_chunks()))
    assert read[-1] == {
        "error": "Budget spent",
        "message": "The budget is spent; what it said so far is saved.",
    }
    assert rows("select status, reason, content, charged from messages where id = %s", reply_id) == [
        ("failed", "budget", "twelve " * 70, 75_000_000)
    ]
    # Of its question, the provider counts more than was set aside.
    assert budgets.state() == [(75, 0)]
    assert (await post_chat(server, tenant))[0] == 402


async def test_model_that_does_not_listen_is_cut_off_and_charged_no_more_than_it_was_granted(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets
) -> None:
    model = Gated("seventy ")
    server = await start_server(model=model, model_max_tokens=MAX_TOKENS)
    budgets.give(71)
    client, reply_id = await ask(server, tenant)
    model.go(1000)
    assert events(b"".join(await client.read_chunks()))[-1]["error"] == "Budget spent"
    assert model.closed.is_set()
    assert rows("select content from messages where id = %s", reply_id) == [("seventy " * 70,)]
    assert budgets.state() == [(71, 0)]


async def test_whole_reply_that_is_cut_by_its_budget_is_402_and_saved(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets
) -> None:
    server = await start_server(model=says("Hello", Usage(1, 70), Stop("length")), model_max_tokens=MAX_TOKENS)
    budgets.give(71)
    status, _, body = await post_chat(server, tenant)
    assert (status, body["error"]) == (402, "Budget spent")
    assert rows.messages(tenant.org_id)[1] == ("assistant", "Hello", "failed")


# ---- What it is charged in the end


async def test_provider_that_never_answered_costs_nothing(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets
) -> None:
    server = await start_server(model=says(ModelError("overloaded", "busy")), model_max_tokens=MAX_TOKENS)
    budgets.give(1000)
    status, head, _ = await post_chat(server, tenant)
    assert (status, head[b"retry-after"]) == (503, b"5")
    assert budgets.state() == [(0, 0)]
    assert rows("select charged from messages where org_id = %s and role = 'assistant'", tenant.org_id) == [(0,)]


async def test_reply_is_charged_for_what_it_had_said_when_it_was_stopped(
    start_server: StartServer, tenant: Tenant, budgets: Budgets
) -> None:
    model = Gated("Hello ")
    server = await start_server(model=model, model_max_tokens=MAX_TOKENS)
    budgets.give(1000)
    client, reply_id = await ask(server, tenant)
    assert await read_pieces(client, model, 2) == "Hello Hello "
    await answer(await stop(server, tenant, reply_id))
    assert budgets.state() == [(1 + 6, 0)]


async def test_provider_that_counts_more_than_was_set_aside_is_believed(
    start_server: StartServer, tenant: Tenant, budgets: Budgets
) -> None:
    server = await start_server(model=says("Hello", Usage(900, 900), Stop("end")), model_max_tokens=MAX_TOKENS)
    budgets.give(1000)
    assert (await post_chat(server, tenant))[0] == 200
    assert budgets.state() == [(1800, 0)]
    assert (await post_chat(server, tenant))[0] == 402


async def test_what_a_model_thinks_is_checkpointed_while_it_says_nothing(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets
) -> None:
    async def model(conversation: Conversation) -> AsyncIterator[Any]:
        yield Reasoning("Well, well.")
        await asyncio.Event().wait()

    server = await start_server(model=model, model_max_tokens=MAX_TOKENS, checkpoint_s=0.02)
    budgets.give(1000)
    _, reply_id = await ask(server, tenant)
    query = "select input_tokens, output_tokens from messages where id = %s"
    await eventually(lambda: rows(query, reply_id) == [(1, 6)])


# ---- The statements, carried out twice, late, or by others


class Turns:
    """Opens, closes and takes back turns by the statements alone."""

    def __init__(self, store: Store, tenant: Tenant) -> None:
        self.store, self._tenant = store, tenant
        self.price = {"input_price": Decimal(1_000_000), "output_price": Decimal(1_000_000)}

    async def open(self, server_id: int = 2) -> str:
        reply_id = str(uuid4())
        row = await self.store.turn_open(
            **self._tenant.__dict__,
            **self.price,
            **{
                "create_caller": False,
                "chat_id": None,
                "title": "Hi",
                "content": "Hi",
                "replaces": None,
                "last": None,
            },
            **{"reply_id": reply_id, "server_id": server_id, "history_limit": 40},
            **{"key": None, "asked": None, "max_tokens": MAX_TOKENS, "min_tokens": 50, "system_bytes": 0},
        )
        assert row.chat_id is not None
        return reply_id

    async def checkpoint(self, reply_id: str, input_tokens: int, output_tokens: int, server_id: int = 2) -> None:
        await self.store.turn_checkpoint(
            server_id=server_id,
            **{"org_ids": [self._tenant.org_id], "reply_ids": [reply_id], "contents": ["Hello"]},
            **{"inputs": [input_tokens], "outputs": [output_tokens], "channels": [], "payloads": []},
        )

    async def close(self, reply_id: str, input_tokens: int = 1, output_tokens: int = 9) -> Any:
        return await self.store.turn_close(
            **{"org_id": self._tenant.org_id, "reply_id": reply_id, "server_id": 2, "content": "Hello"},
            **{"status": "complete", "reason": None, "is_estimated": False},
            **{"input_tokens": input_tokens, "output_tokens": output_tokens, **self.price},
        )

    async def undo(self, reply_id: str) -> Any:
        return await self.store.turn_undo(org_id=self._tenant.org_id, reply_id=reply_id, server_id=2)


@pytest.fixture
async def turns(server: TestServer, postgres_url: str, tenant: Tenant) -> AsyncIterator[Turns]:
    # A server's own store is of that server alone.
    database = Database(postgres_url, pool_size=5, timeout_s=5.0)
    yield Turns(Store(database), tenant)
    await database.close()


async def test_turn_that_is_closed_or_taken_back_twice_is_settled_once(turns: Turns, budgets: Budgets) -> None:
    budgets.give(1000, "org")
    budgets.give(1000)
    closed, undone = await turns.open(), await turns.open()
    assert budgets.state() == [(0, 2 * SET_ASIDE)] * 2
    assert await turns.close(closed)
    assert await turns.undo(undone)
    for again in (turns.close(closed, 50, 50), turns.undo(undone), turns.undo(closed), turns.close(undone)):
        assert await again is None
    assert budgets.state() == [(10, 0)] * 2


async def test_replies_of_a_dead_server_are_settled_by_their_last_checkpoints(
    turns: Turns, rows: Rows, budgets: Budgets
) -> None:
    budgets.give(1000)
    said, silent = await turns.open(DEAD), await turns.open(DEAD)
    await turns.checkpoint(said, 3, 5, DEAD)
    await turns.store.turn_interrupt(given_up=[DEAD], silence_s=5.0, **turns.price)
    query = "select charged, finished_at is null from messages where id = %s"
    assert (rows(query, said), rows(query, silent)) == ([(8_000_000, False)], [(0, False)])
    assert budgets.state() == [(8, 0)]


@pytest.mark.parametrize("opened", [False, True])
async def test_reply_that_ends_after_midnight_is_charged_to_the_day_that_it_began_in(
    turns: Turns, rows: Rows, budgets: Budgets, opened: bool
) -> None:
    budgets.give(1000)
    budgets.give(1000, period="month")
    late = await turns.open()
    rows("update messages set created_at = created_at - interval '1 day' where id = %s", late)
    rows("update budgets set created_at = '-infinity'")
    rows("update budgets set window_start = date_trunc(period, now() - interval '1 day', 'UTC')")
    if opened:
        await turns.close(await turns.open(), 20, 20)
    await turns.close(late)
    [(used, reserved), _] = budgets.state()
    assert (used, reserved) == ((40, 0) if opened else (10, 0))
    [(today,)] = rows(
        "select count(*) from budgets where window_start = date_trunc('day', now(), 'UTC') and period = 'day'"
    )
    assert today == opened


async def test_turn_that_waits_over_midnight_is_of_the_day_that_others_have_begun(
    turns: Turns, rows: Rows, postgres_url: str, budgets: Budgets
) -> None:
    budgets.give(1000)
    budgets.give(1000, period="month")
    with closing(Rows(postgres_url)) as other:
        other("begin")
        tomorrow = "date_trunc('day', now(), 'UTC') + interval '1 day'"
        other(f"update budgets set window_start = {tomorrow} where period = 'day'")
        opening = asyncio.create_task(turns.open())
        await waiting(rows, 1)
        other("commit")
    reply_id = await opening
    query = (
        "select extract(hour from created_at at time zone 'UTC'), created_at > now() from messages where id = %s"
    )
    assert rows(query, reply_id) == [(0, True)]
    assert budgets.state() == [(0, SET_ASIDE)] * 2
    await turns.close(reply_id)
    assert budgets.state() == [(10, 0)] * 2


async def test_turn_that_began_before_its_budget_was_there_is_charged_to_it_all_the_same(
    turns: Turns, rows: Rows, budgets: Budgets
) -> None:
    budgets.give(1000)
    # As a clock that has stepped back since has it, too.
    rows("update budgets set created_at = now() + interval '1 minute'")
    await turns.close(await turns.open())
    assert budgets.state() == [(10, 0)]


async def test_waiting_turn_sees_what_the_one_before_it_has_set_aside(
    turns: Turns, rows: Rows, postgres_url: str, budgets: Budgets
) -> None:
    budgets.give(2 * SET_ASIDE)
    with closing(Rows(postgres_url)) as other:
        other("begin")
        other("select from budgets for update")
        opening = [asyncio.create_task(turns.open()) for _ in range(2)]
        await waiting(rows, 2)
        other("commit")
    await asyncio.gather(*opening)
    assert budgets.state() == [(0, 2 * SET_ASIDE)]
    with pytest.raises(AssertionError):
        await turns.open()


async def test_budget_is_charged_only_for_replies_that_have_set_something_aside_in_it(
    turns: Turns, rows: Rows, postgres_url: str, budgets: Budgets, tenant: Tenant
) -> None:
    budgets.give(1000, "org")
    with closing(Rows(postgres_url)) as other:
        # Two are given by one who takes his time: this reply does not see them.
        other("begin")
        Budgets(other, tenant).give(1000)
        Budgets(other, tenant).give(1000, "org", "month")
        before = await turns.open()
        other("commit")
    after = await turns.open()
    await turns.close(before, 500, 0)
    assert budgets.state() == [(500, SET_ASIDE), (0, SET_ASIDE), (0, SET_ASIDE)]
    await turns.close(after)
    assert budgets.state() == [(510, 0), (10, 0), (10, 0)]


async def test_budget_that_takes_the_place_of_another_is_charged_for_later_replies_alone(
    turns: Turns, rows: Rows, postgres_url: str, budgets: Budgets, tenant: Tenant
) -> None:
    budgets.give(1000)
    with closing(Rows(postgres_url)) as other:
        other("begin")
        other("select now()")
        before = await turns.open()
        other("delete from budgets")
        Budgets(other, tenant).give(2000)
        other("commit")
    after = await turns.open()
    for reply_id in (before, after):
        await turns.close(reply_id)
    assert budgets.state() == [(10, 0)]
    rows("delete from budgets")
    assert await turns.open()


@pytest.mark.parametrize("table", ["chats", "users", "orgs"])
async def test_what_was_set_aside_for_a_reply_that_is_deleted_is_given_back(
    turns: Turns, rows: Rows, budgets: Budgets, tenant: Tenant, table: str
) -> None:
    budgets.give(1000, "org")
    budgets.give(1000)
    await turns.close(await turns.open())
    await turns.open()
    rows(
        "delete from chats where id in (select chat_id from messages where org_id = %s and finished_at is null)",
        tenant.org_id,
    )
    assert budgets.state() == [(10, 0)] * 2
    rows(f"delete from {table} where {'id' if table == 'orgs' else 'org_id'} = %s", tenant.org_id)
    assert budgets.state() == [(10, 0)] * 2


# ---- By hand


async def test_budgets_are_given_and_changed_as_the_documents_say(
    start_server: StartServer, rows: Rows, tenant: Tenant, budgets: Budgets
) -> None:
    server = await start_server(model=counts("Hello"), model_max_tokens=MAX_TOKENS)
    # Each statement that they show, in order.
    text = snippet("sql", "null, 'month'")
    text = text.replace("10000000-0000-0000-0000-000000000000", tenant.org_id)
    text = text.replace("20000000-0000-0000-0000-000000000000", tenant.user_id)
    rows(text)
    assert (await post_chat(server, tenant))[0] == 200
    assert budgets.state() == [(37, 0)] * 2
    rows(snippet("sql", "update budgets").replace("20000000-0000-0000-0000-000000000000", tenant.user_id))
    assert rows("select units from budgets where user_id = %s", tenant.user_id) == [(0,)]
    assert (await post_chat(server, tenant))[0] == 402
    # The line for the demo data, once there is nothing else.
    rows("delete from budgets where org_id = %s", tenant.org_id)
    assert (await post_chat(server, tenant))[0] == 200
    text = snippet("sql", "'day', 0)")
    rows(text.replace(DEMO_ORG_ID, tenant.org_id).replace(DEMO_USER_ID, tenant.user_id))
    assert (await post_chat(server, tenant))[0] == 402


@pytest.mark.parametrize("units", ["NaN", "Infinity", -1, 10**13])
def test_budget_of_no_number_is_refused(budgets: Budgets, units: object) -> None:
    with pytest.raises(Exception, match=r"budgets_units_check|numeric field overflow"):
        budgets.give(units)
