"""A question that takes the place of an earlier one, and of all after it: retry, regenerate, edit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from aiohttp.test_utils import TestServer
from house import (
    answer,
    come_back,
    disconnect,
    held,
    open_house,
    read_at_the_door,
    read_pieces,
    stop,
    waiting,
)
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, post, says

from app.models import Conversation, Message, Model, ModelError, Piece, Usage
from app.storage.db import DatabaseAway
from app.storage.store import STORE

KEY = "Idempotency-Key: one\r\n"
GONE_ON = {
    "error": "Gone on",
    "message": "What replaces names is not in the chat, or last (if not said: the reply to that) is not its end.",
}
STOPPED = {"error": "Stopped", "message": "The reply was stopped; what it said so far is saved."}


class Echo:
    """A model that answers to each question with it, and notes what it was given."""

    def __init__(self) -> None:
        self.given: list[list[Message]] = []

    async def __call__(self, conversation: Conversation) -> AsyncIterator[str]:
        self.given.append(list(conversation.messages))
        yield f"To {conversation.messages[-1].content}"


def unless(failures: list[Exception], model: Model) -> Model:
    """Return a model that fails so, once for each, before it is the other."""

    async def sometimes(conversation: Conversation) -> AsyncIterator[Piece]:
        while failures:
            raise failures.pop()
        async for piece in model(conversation):
            yield piece

    return sometimes


def turns(*questions: str) -> list[Message]:
    """Return what the model is given of these questions and its answers to them, but for the last one."""
    messages = [Message(*said) for q in questions for said in (("user", q), ("assistant", f"To {q}"))]
    return messages[:-1]


class Chat:
    """A chat of turns that Echo has answered."""

    def __init__(self, server: TestServer, rows: Rows, tenant: Tenant) -> None:
        self.server, self.rows, self.tenant = server, rows, tenant
        self.id: str | None = None

    def store(self) -> Any:
        assert self.server.app is not None
        return self.server.app[STORE]

    async def send(self, message: str, *, headers: str = "", path: str = "/chat/stream", **more: Any) -> RawClient:
        client = await RawClient.connect(self.server)
        body = {"message": message, "chat_id": self.id} | more
        client.send(post(path, json.dumps(body).encode(), self.tenant, headers=headers))
        return client

    async def ask(self, *messages: str, **more: Any) -> dict[str, Any]:
        """Ask them one after the other, each to its end; return what the last answer says."""
        for message in messages:
            status, body = await answer(await self.send(message, path="/chat", **more))
            assert status == 200, body
            self.id = body["chat_id"]
        return body

    async def refused(self, message: str, **more: Any) -> tuple[int, dict[str, Any]]:
        status, body = await answer(await self.send(message, path="/chat", **more))
        del body["requestId"]
        return status, body

    def ids(self) -> list[str]:
        return [
            row[0]
            for row in self.rows("select id::text from messages where chat_id = %s order by position", self.id)
        ]

    def said(self) -> list[tuple[int, str, str]]:
        """Return (position, role, content) of its messages, and see that it counts them."""
        said = self.rows(
            "select position, role, content from messages where chat_id = %s order by position", self.id
        )
        assert self.rows("select message_count from chats where id = %s", self.id) == [(len(said),)]
        return said


def stored(*questions: str) -> list[tuple[int, str, str]]:
    said = [*turns(*questions), Message("assistant", f"To {questions[-1]}")]
    return [(i, message.role, message.content) for i, message in enumerate(said, 1)]


@pytest.fixture
def model() -> Echo:
    return Echo()


@pytest.fixture
async def chat(start_server: StartServer, rows: Rows, tenant: Tenant, model: Echo) -> Chat:
    return Chat(await start_server(model=model), rows, tenant)


# ---- What takes whose place


async def ask_whole(chat: Chat, body: dict[str, Any]) -> str:
    return str((await chat.ask(body.pop("message"), **body))["message_id"])


async def ask_by_stream(chat: Chat, body: dict[str, Any]) -> str:
    return await read_all(await chat.send(body.pop("message"), **body))


async def ask_by_url(chat: Chat, body: dict[str, Any]) -> str:
    body["chatId"] = chat.id
    return await get(chat, body | chat.tenant.query)


async def ask_by_ticket(chat: Chat, body: dict[str, Any]) -> str:
    status, issued = await answer(await chat.send(body.pop("message"), path="/chat/stream/ticket", **body))
    assert status == 200
    reply_id = await get(chat, {"ticket": issued["ticket"]})
    # It asks once, however often it is shown.
    assert await get(chat, {"ticket": issued["ticket"]}) == reply_id
    return reply_id


async def get(chat: Chat, query: dict[str, Any]) -> str:
    client = await RawClient.connect(chat.server)
    client.send(f"GET /chat/stream?{urlencode(query)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return await read_all(client)


async def read_all(client: RawClient) -> str:
    status, head = await client.read_head()
    assert status == b"HTTP/1.1 200 OK"
    assert events(b"".join(await client.read_chunks()))[-1]["done"]
    return head[b"x-message-id"].decode()


@pytest.mark.parametrize("ask", [ask_whole, ask_by_stream, ask_by_url, ask_by_ticket])
@pytest.mark.parametrize("named", ["question", "reply"])
async def test_question_takes_the_place_of_an_earlier_one_and_of_all_after_it(
    chat: Chat, model: Echo, ask: Callable[..., Any], named: str
) -> None:
    await chat.ask("One", "Two", "Three", "Four")
    before = chat.ids()
    replaces = before[2 if named == "question" else 3]
    reply_id = await ask(chat, {"message": "Two again", "replaces": replaces, "last": before[-1]})
    assert chat.said() == stored("One", "Two again")
    assert model.given[-1] == turns("One", "Two again")
    assert len(model.given) == 5
    assert chat.ids()[:2] == before[:2]
    assert chat.ids()[3] == reply_id
    # And it goes on from there.
    await chat.ask("Three again")
    assert model.given[-1] == turns("One", "Two again", "Three again")
    assert chat.said() == stored("One", "Two again", "Three again")


async def test_last_question_is_replaced_without_more_words(chat: Chat, model: Echo) -> None:
    await chat.ask("One", "Two")
    await chat.ask("Two again", replaces=chat.ids()[2], last=None)
    assert chat.said() == stored("One", "Two again")
    assert model.given[-1] == turns("One", "Two again")


async def test_first_question_is_replaced_and_the_chat_stays(chat: Chat, model: Echo) -> None:
    first = await chat.ask("One")
    again = await chat.ask("One again", replaces=chat.ids()[0])
    assert (again["chat_id"], chat.said()) == (first["chat_id"], stored("One again"))
    assert model.given[-1] == turns("One again")


async def test_history_is_limited_to_what_is_before_what_is_replaced(
    start_server: StartServer, rows: Rows, tenant: Tenant, model: Echo
) -> None:
    chat = Chat(await start_server(model=model, history_limit_messages=2), rows, tenant)
    await chat.ask("One", "Two", "Three", "Four")
    await chat.ask("Three again", replaces=chat.ids()[4], last=chat.ids()[-1])
    assert model.given[-1] == turns("Two", "Three again")


async def test_key_of_a_turn_whose_provider_was_busy_asks_anew_in_the_place_of_that_turn(
    start_server: StartServer, rows: Rows, tenant: Tenant, model: Echo
) -> None:
    busy: list[Exception] = []
    servers = [await start_server(model=unless(busy, model)) for _ in range(2)]
    chat = Chat(servers[0], rows, tenant)
    await chat.ask("One", "Two")
    again = {"replaces": chat.ids()[2], "path": "/chat", "headers": KEY}
    # What it was to replace is gone when it is sent again, and again.
    for _ in range(2):
        busy.append(ModelError("529", "busy"))
        status, body = await answer(await chat.send("Two again", **again))
        assert (status, body["error"]) == (503, "Model busy")
        assert [content for _, _, content in chat.said()] == ["One", "To One", "Two again", ""]

    async def send_at(i: int) -> tuple[int, dict[str, Any]]:
        chat.server = servers[i % 2]
        return await answer(await chat.send("Two again", **again))

    answers = await asyncio.gather(*map(send_at, range(10)))
    assert {(status, body["reply"]) for status, body in answers} == {(200, "To Two again")}
    assert chat.said() == stored("One", "Two again")
    assert {body["message_id"] for _, body in answers} == {chat.ids()[-1]}
    assert rows("select reply_id::text from turn_keys where org_id = %s", tenant.org_id) == [(chat.ids()[-1],)]


async def test_key_of_a_busy_turn_replaces_nothing_that_was_asked_after_it(
    start_server: StartServer, rows: Rows, tenant: Tenant, model: Echo
) -> None:
    busy: list[Exception] = []
    chat = Chat(await start_server(model=unless(busy, model)), rows, tenant)
    await chat.ask("One")
    again = {"replaces": chat.ids()[0], "headers": KEY}
    busy.append(ModelError("529", "busy"))
    assert (await chat.refused("One again", **again))[0] == 503
    await chat.ask("Two")
    before = chat.ids()
    assert await chat.refused("One again", **again) == (409, GONE_ON)
    assert chat.ids() == before


async def test_reply_that_is_replaced_is_no_more(chat: Chat) -> None:
    replaced = (await chat.ask("One"))["message_id"]
    await chat.ask("One again", replaces=replaced)
    assert (await answer(await come_back(chat.server, chat.tenant, replaced, 0)))[0] == 404
    assert (await answer(await stop(chat.server, chat.tenant, replaced)))[0] == 404


# ---- What its asker does not know of is not deleted


async def test_earlier_question_is_not_replaced_without_the_last_message_that_its_asker_knows(
    chat: Chat, model: Echo
) -> None:
    await chat.ask("One", "Two", "Three")
    ids = chat.ids()
    for last in (None, *ids[:-1], str(uuid4())):
        assert await chat.refused("Two again", replaces=ids[2], last=last) == (409, GONE_ON)
    assert chat.said() == stored("One", "Two", "Three")
    assert len(model.given) == 3


async def test_question_that_is_replaced_already_is_409(chat: Chat) -> None:
    await chat.ask("One", "Two")
    question = chat.ids()[2]
    await chat.ask("Two again", replaces=question)
    for last in (None, chat.ids()[-1]):
        assert await chat.refused("Two, too", replaces=question, last=last) == (409, GONE_ON)
    assert chat.said() == stored("One", "Two again")


async def test_message_of_another_chat_is_409_whoever_has_it(chat: Chat, rows: Rows) -> None:
    others = []
    for tenant in (chat.tenant, rows.tenant(chat.tenant.org_id), rows.tenant()):
        other = Chat(chat.server, rows, tenant)
        await other.ask("One", "Two")
        others.append(other)
    await chat.ask("Mine")
    for replaces in (*(message for other in others for message in other.ids()), str(uuid4())):
        for last in (None, replaces, chat.ids()[-1]):
            assert await chat.refused("Mine again", replaces=replaces, last=last) == (409, GONE_ON)
    for other in others:
        assert other.said() == stored("One", "Two")
    assert chat.said() == stored("Mine")


async def test_chat_of_another_user_is_404_whatever_is_to_be_replaced(chat: Chat, rows: Rows) -> None:
    await chat.ask("One")
    for tenant in (rows.tenant(chat.tenant.org_id), rows.tenant()):
        stranger = Chat(chat.server, rows, tenant)
        stranger.id = chat.id
        for replaces in (*chat.ids(), str(uuid4())):
            status, body = await stranger.refused("Mine", replaces=replaces)
            assert (status, body["message"]) == (404, "There is no such chat.")
    assert chat.said() == stored("One")


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"chat_id": None, "replaces": str(uuid4())}, "Bad replaces"),
        ({"replaces": "x"}, "Bad UUID"),
        ({"replaces": 7}, "Bad UUID"),
        ({"replaces": str(uuid4()), "last": ["x"]}, "Bad UUID"),
        ({"last": str(uuid4())}, "Bad last"),
    ],
)
@pytest.mark.parametrize("path", ["/chat", "/chat/stream", "/chat/stream/ticket"])
async def test_what_cannot_be_replaced_is_400(chat: Chat, path: str, more: dict[str, Any], error: str) -> None:
    chat.id = str(uuid4())
    status, body = await answer(await chat.send("Hi", path=path, **more))
    assert (status, body["error"]) == (400, error)


# ---- A reply that runs


@pytest.mark.parametrize("readers", ["at home", "elsewhere", "none"])
async def test_running_reply_is_stopped_and_then_replaced(
    start_server: StartServer, rows: Rows, tenant: Tenant, elsewhere: bool, readers: str
) -> None:
    house = await open_house(start_server, True, Gated())
    if readers == "elsewhere":
        reply_id, client, _ = await read_at_the_door(house, tenant)
    else:
        client = await Chat(house.home, rows, tenant).send("One")
        reply_id = (await client.read_head())[1][b"x-message-id"].decode()
        await read_pieces(client, house.model, 2)
    if readers == "none":
        await disconnect(house, client, reply_id)
    chat = Chat(house.door if elsewhere else house.home, rows, tenant)
    chat.id = rows("select chat_id::text from messages where id = %s", reply_id)[0][0]
    again = await chat.send("One again", replaces=reply_id)
    status, head = await again.read_head()
    assert status == b"HTTP/1.1 200 OK"
    assert head[b"x-chat-id"].decode() == chat.id
    if readers != "none":
        assert events(b"".join(await client.read_chunks()))[-1] == STOPPED
    assert house.model.closed.is_set()
    assert [(position, role) for position, role, _ in chat.said()] == [(1, "user"), (2, "assistant")]
    assert chat.ids()[1] == head[b"x-message-id"].decode()
    assert (await answer(await come_back(chat.server, tenant, reply_id, 0)))[0] == 404


async def test_running_reply_is_not_stopped_by_who_does_not_know_of_it(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    house = await open_house(start_server, False, Gated())
    chat = Chat(house.home, rows, tenant)
    house.model.pieces = ["Hello"]
    house.model.go()
    first = await chat.ask("One")
    house.model.pieces = ["Hello"]
    client = await chat.send("Two")
    running_id = (await client.read_head())[1][b"x-message-id"].decode()
    for last in (None, first["message_id"]):
        assert await chat.refused("One again", replaces=first["message_id"], last=last) == (409, GONE_ON)
    house.model.go()
    assert events(b"".join(await client.read_chunks()))[-1]["done"]
    assert chat.ids()[-1] == running_id


# ---- Twice, at once, with its answer lost


async def test_key_again_is_the_same_turn_and_deletes_nothing(chat: Chat, model: Echo) -> None:
    await chat.ask("One", "Two")
    body = {"replaces": chat.ids()[2], "headers": KEY}
    again = await chat.ask("Two again", **body)
    await chat.ask("Three")
    assert await chat.ask("Two again", **body) == again
    assert chat.said() == stored("One", "Two again", "Three")
    assert len(model.given) == 4
    for other in ({"replaces": chat.ids()[0]}, {"last": chat.ids()[-1]}, {"replaces": None}):
        status, refused = await chat.refused("Two again", **body | other)
        assert (status, refused["error"]) == (409, "Key reused")


async def test_key_whose_turn_is_replaced_too_replaces_nothing(chat: Chat, model: Echo) -> None:
    await chat.ask("One")
    question = chat.ids()[0]
    await chat.ask("One again", replaces=question, headers=KEY)
    await chat.ask("One, third", replaces=chat.ids()[0])
    assert await chat.refused("One again", replaces=question, headers=KEY) == (409, GONE_ON)
    assert chat.said() == stored("One, third")


async def test_of_two_that_replace_the_same_at_once_one_does(chat: Chat, rows: Rows) -> None:
    await chat.ask("One", "Two")
    question, last = chat.ids()[0], chat.ids()[-1]
    assert chat.id is not None
    with held(rows, "chats", chat.id):
        clients = [await chat.send(f"By {i}", path="/chat", replaces=question, last=last) for i in range(2)]
        await waiting(rows, 2)
    answers = [await answer(client) for client in clients]
    assert sorted(status for status, _ in answers) == [200, 409]
    [winner] = [i for i, (status, _) in enumerate(answers) if status == 200]
    assert chat.said() == stored(f"By {winner}")


async def test_question_that_waits_for_one_that_replaces_is_given_what_that_has_left(
    chat: Chat, model: Echo, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await chat.ask("One", "Two")
    assert chat.id is not None
    # Of as many messages as before.
    with held(rows, "chats", chat.id):
        client = await chat.send("Three")
        await waiting(rows, 1)
        old = chat.ids()[2:]
        rows("delete from messages where id = any(%s::uuid[])", old)
        rows(
            "insert into messages (org_id, id, chat_id, position, role, content, status, finished_at, server_id)"
            " select %s, gen_random_uuid(), %s, position, role, content, 'complete', now(), server_id"
            " from (values (3, 'user', 'Two again', null::bigint), (4, 'assistant', 'To Two again', 1))"
            " as turn (position, role, content, server_id)",
            chat.tenant.org_id,
            chat.id,
        )
        rows("update chats set message_count = 4 where id = %s", chat.id)
    await read_all(client)
    assert model.given[-1] == turns("One", "Two again", "Three")
    assert chat.said() == stored("One", "Two again", "Three")


async def test_one_whose_answer_is_lost_stays_and_has_ended(
    chat: Chat, model: Echo, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await chat.ask("One", "Two")
    store = chat.store()
    turn_open = store.turn_open

    async def open_and_lose(**params: Any) -> Any:
        await turn_open(**params)
        raise DatabaseAway(sent=True)

    question = chat.ids()[0]
    body = {"replaces": question, "last": chat.ids()[-1], "headers": KEY}
    with monkeypatch.context() as patch:
        patch.setattr(store, "turn_open", open_and_lose)
        status, _ = await chat.refused("One again", **body)
    assert status == 503
    ended = "select content, status from messages where chat_id = %s and finished_at is not null order by position"
    await eventually(lambda: rows(ended, chat.id) == [("One again", "complete"), ("", "interrupted")])
    # Who asks again is told that, and asks no second time.
    assert (await chat.refused("One again", **body))[0] == 502
    assert await chat.refused("One again", **body | {"headers": ""}) == (409, GONE_ON)
    await chat.ask("One, third", replaces=chat.ids()[0])
    assert chat.said() == stored("One, third")
    assert len(model.given) == 3


# ---- What it costs


async def test_what_is_replaced_is_not_counted_for_its_place_but_stays_charged(
    start_server: StartServer, rows: Rows, tenant: Tenant
) -> None:
    # A unit is a token; of 100 a reply gets what the question leaves.
    server = await start_server(model=says("Hello", Usage(7, 30)), model_max_tokens=100)
    chat = Chat(server, rows, tenant)
    await chat.ask("x" * 2000)
    rows("insert into budgets (org_id, period, units) values (%s, 'day', 200)", tenant.org_id)
    budget = "select used / 1000000, reserved / 1000000 from budgets where org_id = %s"
    status, refused = await chat.refused("Hi")
    assert (status, refused["error"]) == (402, "Budget spent")
    # Nothing is replaced by what is refused.
    status, refused = await chat.refused("y" * 2000, replaces=chat.ids()[0])
    assert (status, refused["error"]) == (402, "Budget spent")
    assert [content for _, _, content in chat.said()] == ["x" * 2000, "Hello"]
    await chat.ask("Hi", replaces=chat.ids()[0])
    assert rows(budget, tenant.org_id) == [(37, 0)]
    await chat.ask("Hi", replaces=chat.ids()[0])
    assert rows(budget, tenant.org_id) == [(74, 0)]
    usage = await chat.store().usage_read(**tenant.__dict__)
    assert (usage.day_turns, usage.day_input, usage.day_output) == (3, 21, 90)
