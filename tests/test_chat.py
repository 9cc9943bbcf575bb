"""`POST /chat`, the two lists, and every bad request."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from typing import Any
from uuid import RFC_4122, UUID, uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from serving import StartServer
from support import RawClient, Rows, Tenant, events, logged, post, says

from app.logs import Formatter, quiet_bad_http
from app.models import Conversation, Message

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
JSON = {"Content-Type": "application/json"}


async def test_chat_answers_with_the_stored_reply_and_no_delay(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(sim_delay_ms=(60_000.0, 60_000.0)))
    async with asyncio.timeout(5):
        response = await client.post("/chat", json={"message": "Hi there"}, headers=tenant.headers)
    answer = await response.json()
    assert response.status == 200
    assert list(answer) == ["chat_id", "message_id", "reply", "created_at", "stop", "usage"]
    assert TIME.fullmatch(answer["created_at"])
    assert "Hi there" in answer["reply"]
    assert rows("select chat_id::text, content, status from messages where id = %s", answer["message_id"]) == [
        (answer["chat_id"], answer["reply"], "complete")
    ]


async def test_conversation_goes_on_and_the_model_is_given_it(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    heard: list[list[Message]] = []

    async def model(conversation: Conversation) -> Any:
        heard.append(list(conversation.messages))
        yield f"reply {len(heard)}"

    client = await aiohttp_client(await start_server(model=model, history_limit_messages=3))
    chat_id = None
    for number in range(1, 4):
        body = {"message": f"question {number}", "chat_id": chat_id}
        response = await client.post("/chat", json=body, headers=tenant.headers)
        chat_id = (await response.json())["chat_id"]
    assert heard == [
        [Message("user", "question 1")],
        [Message("user", "question 1"), Message("assistant", "reply 1"), Message("user", "question 2")],
        # Of the last three before the question, the whole turns: it begins with a question.
        [Message("user", "question 2"), Message("assistant", "reply 2"), Message("user", "question 3")],
    ]


async def test_new_ids_stand_side_by_side_in_the_indexes(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(model=says("a")))
    before_ms = time.time_ns() // 1_000_000
    for _ in range(3):
        assert (await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)).status == 200
    after_ms = time.time_ns() // 1_000_000
    ids = rows("select id, chat_id from messages where org_id = %s order by created_at, position", tenant.org_id)
    # UUIDv7: the first 48 bits are the time, 74 others chance.
    for made in (UUID(value) for row in ids for value in row):
        assert (made.version, made.variant) == (7, RFC_4122)
        assert before_ms <= made.int >> 80 <= after_ms
    assert len({message for message, _ in ids}) == 6


async def test_question_whose_reply_has_no_text_goes_out_with_the_next_one(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    heard: list[list[Message]] = []

    async def model(conversation: Conversation) -> Any:
        heard.append(list(conversation.messages))
        if len(heard) < 3:
            raise RuntimeError
        yield "reply"

    client = await aiohttp_client(await start_server(model=model))
    stream = await client.post("/chat/stream", json={"message": "One"}, headers=tenant.headers)
    await stream.read()
    for message in ("Two", "Three", "Four"):
        body = {"message": message, "chat_id": stream.headers["x-chat-id"]}
        await client.post("/chat", json=body, headers=tenant.headers)
    # Roles alternate, whatever failed: several providers refuse two messages of the user in a row.
    assert heard == [
        [Message("user", "One")],
        [Message("user", "One\n\nTwo")],
        [Message("user", "One\n\nTwo\n\nThree")],
        [Message("user", "One\n\nTwo\n\nThree"), Message("assistant", "reply"), Message("user", "Four")],
    ]


async def test_model_that_fails_is_502_and_its_part_is_saved(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client = await aiohttp_client(await start_server(model=says("part ", RuntimeError("secret"))))
    response = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)
    assert response.status == 502
    answer = await response.json()
    assert answer["error"] == "Reply failed"
    assert "secret" not in str(answer)
    assert rows.messages(tenant.org_id)[1] == ("assistant", "part ", "failed")


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("Hi", "Hi"),
        ("  What  is\n a word? ", "What is a word?"),
        ("one two three four five six seven eight nine", "one two three four five six seven eight…"),
        ("x" * 70, "x" * 60 + "…"),
        ("\u5929" * 1000, "\u5929" * 60 + "…"),
        (" " * 500 + "late", "late"),
    ],
)
async def test_new_chat_is_titled_by_the_first_words(
    client: TestClient, tenant: Tenant, message: str, title: str
) -> None:
    await client.post("/chat", json={"message": message}, headers=tenant.headers)
    response = await client.get("/chats", headers=tenant.headers)
    assert [chat["title"] for chat in (await response.json())["chats"]] == [title]


# --- the lists


async def test_chats_are_listed_newest_first_page_by_page(client: TestClient, tenant: Tenant) -> None:
    made = []
    for number in range(5):
        response = await client.post("/chat", json={"message": f"Chat {number}"}, headers=tenant.headers)
        made.append((await response.json())["chat_id"])

    listed, before = [], None
    sizes = []
    while True:
        params = {"limit": "2"} | ({"before": before} if before else {})
        page = await (await client.get("/chats", params=params, headers=tenant.headers)).json()
        listed += [chat["chat_id"] for chat in page["chats"]]
        sizes.append(len(page["chats"]))
        before = page["next"]
        if before is None:
            break
    assert listed == made[::-1]
    assert sizes == [2, 2, 1]
    assert list(page["chats"][0]) == ["chat_id", "title", "created_at", "updated_at"]
    assert TIME.fullmatch(page["chats"][0]["created_at"])


async def test_chats_of_a_user_without_any_are_an_empty_page(client: TestClient, tenant: Tenant) -> None:
    response = await client.get("/chats", headers=tenant.headers)
    assert await response.json() == {"chats": [], "next": None}


async def test_messages_are_listed_from_the_end_oldest_first_within_a_page(
    client: TestClient, tenant: Tenant
) -> None:
    chat_id = None
    for number in range(3):
        body = {"message": f"Question {number}", "chat_id": chat_id}
        response = await client.post("/chat", json=body, headers=tenant.headers)
        chat_id = (await response.json())["chat_id"]
    url = f"/chats/{chat_id}/messages"

    last = await (await client.get(url, params={"limit": "4"}, headers=tenant.headers)).json()
    assert [message["role"] for message in last["messages"]] == ["user", "assistant"] * 2
    assert [message["content"] for message in last["messages"]][::2] == ["Question 1", "Question 2"]
    assert list(last["messages"][0]) == ["message_id", "role", "content", "status", "created_at"]
    assert last["next"] == last["messages"][0]["message_id"]

    first = await (
        await client.get(url, params={"limit": "4", "before": last["next"]}, headers=tenant.headers)
    ).json()
    assert [message["content"] for message in first["messages"]][::2] == ["Question 0"]
    assert first["next"] is None


async def test_page_of_exactly_the_limit_has_no_next(client: TestClient, tenant: Tenant) -> None:
    response = await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)
    chat_id = (await response.json())["chat_id"]
    chats = await (await client.get("/chats", params={"limit": "1"}, headers=tenant.headers)).json()
    messages = await (
        await client.get(f"/chats/{chat_id}/messages", params={"limit": "2"}, headers=tenant.headers)
    ).json()
    assert chats["next"] is None
    assert messages["next"] is None


@pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "x", "", "٣", "1" * 5000])
async def test_bad_limit_is_400(client: TestClient, tenant: Tenant, limit: str) -> None:
    response = await client.get("/chats", params={"limit": limit}, headers=tenant.headers)
    assert response.status == 400
    assert "from 1 to 100" in (await response.json())["message"]


async def test_page_before_an_unknown_message_is_404(client: TestClient, tenant: Tenant) -> None:
    answer = await (await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)).json()
    before = {"before": str(uuid4())}
    messages = await client.get(f"/chats/{answer['chat_id']}/messages", params=before, headers=tenant.headers)
    assert messages.status == 404


# --- bad requests: (body, headers, status, error, part of the message)

BAD = {
    "no JSON": (b"{", JSON, 400, "Bad JSON", "not JSON"),
    "empty body": (b"", JSON, 400, "Bad JSON", "not JSON"),
    "NaN": (b'{"message": NaN}', JSON, 400, "Bad JSON", "not JSON"),
    "deep nesting": (b"[" * 100_000, JSON, 400, "Bad JSON", "not JSON"),
    "5000-digit integer": (b'{"message": ' + b"1" * 5000 + b"}", JSON, 400, "Bad JSON", "not JSON"),
    "bad UTF-8": (b'{"message": "\xff"}', JSON, 400, "Bad JSON", "not UTF-8"),
    "UTF-16": ('{"message": "Hi"}'.encode("utf-16"), JSON, 400, "Bad JSON", ""),
    "array": (b"[]", JSON, 400, "Bad JSON", "an array, expected an object"),
    "no message": (b"{}", JSON, 400, "Bad message", "missing or null, expected a string"),
    "message is a number": (b'{"message": 1}', JSON, 400, "Bad message", "a number, expected a string"),
    "message is a boolean": (b'{"message": true}', JSON, 400, "Bad message", "a boolean, expected a string"),
    "blank": (b'{"message": " \\n\\u00a0"}', JSON, 400, "Bad message", "blank"),
    "NUL": (b'{"message": "a\\u0000b"}', JSON, 400, "Bad message", "NUL"),
    "lone surrogate": (b'{"message": "\\ud800"}', JSON, 400, "Bad message", "surrogate"),
    "too long": (
        json.dumps({"message": "x" * 32_001}).encode(),
        JSON,
        400,
        "Bad message",
        "message has 32001 characters, expected at most 32000",
    ),
    "chatId": (b'{"message": "Hi", "chatId": null}', JSON, 400, "Bad name", "chatId is given, expected chat_id."),
    "bad chat_id": (b'{"message": "Hi", "chat_id": "x"}', JSON, 400, "Bad UUID", "chat_id"),
    "chat_id is a number": (b'{"message": "Hi", "chat_id": 1}', JSON, 400, "Bad UUID", "chat_id"),
    "chat_id in braces": (
        b'{"message": "Hi", "chat_id": "{00000000-0000-0000-0000-00000000000}"}',
        JSON,
        400,
        "Bad UUID",
        "chat_id",
    ),
    "no content type": (
        b'{"message": "Hi"}',
        {"Content-Type": ""},
        415,
        "Unsupported media type",
        "application/json",
    ),
    "form": (
        b"message=Hi",
        {"Content-Type": "application/x-www-form-urlencoded"},
        415,
        "Unsupported media type",
        "application/x-www-form-urlencoded, expected application/json",
    ),
    "text": (b'{"message": "Hi"}', {"Content-Type": "text/plain"}, 415, "Unsupported media type", "text/plain"),
    "body too large": (b" " * 600_000, JSON, 413, "Body too large", "at most 524288 bytes"),
    "zip bomb": (
        gzip.compress(b" " * 30_000_000),
        JSON | {"Content-Encoding": "gzip"},
        413,
        "Body too large",
        "at most 524288 bytes",
    ),
    "not the encoding it says": (b"{}", JSON | {"Content-Encoding": "gzip"}, 400, "", ""),
}


@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
@pytest.mark.parametrize("case", BAD)
async def test_bad_body_is_answered_with_what_was_wrong_and_stores_nothing(
    client: TestClient, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture, path: str, case: str
) -> None:
    body, headers, status, error, message = BAD[case]
    response = await client.post(path, data=body, headers=tenant.headers | headers)
    assert response.status == status
    if error:
        answer = await response.json()
        assert list(answer) == ["error", "message", "requestId"]
        assert answer["error"] == error
        assert message in answer["message"]
        assert answer["requestId"] == response.headers["x-request-id"]
    assert rows.messages(tenant.org_id) == []
    assert [r for r in caplog.records if quiet_bad_http(r) and r.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    ("charset", "body"),
    [
        ("utf-8", '{"message": "ä"}'.encode()),
        ("no-such", b'{"message": "Hi"}'),
        ("latin-1", '{"message": "ä"}'.encode()),
    ],
)
async def test_json_is_utf_8_whatever_the_charset_says(
    client: TestClient, tenant: Tenant, charset: str, body: bytes
) -> None:
    headers = tenant.headers | {"Content-Type": f"application/json; charset={charset}"}
    response = await client.post("/chat", data=body, headers=headers)
    assert response.status == 200
    assert json.loads(body)["message"] in (await response.json())["reply"]


async def test_longest_message_is_accepted(client: TestClient, rows: Rows, tenant: Tenant) -> None:
    message = "\U0001f600" * 32_000
    response = await client.post("/chat", json={"message": message}, headers=tenant.headers)
    assert response.status == 200
    assert rows.messages(tenant.org_id)[0] == ("user", message, "complete")


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({}, "Bad message"),
        ({"message": " "}, "Bad message"),
        ({"message": "a\0b"}, "Bad message"),
        ({"message": "Hi", "chatId": "x"}, "Bad UUID"),
        ({"message": "Hi", "chat_id": "x"}, "Bad name"),
    ],
)
async def test_bad_query_of_an_event_source_is_400(
    client: TestClient, rows: Rows, tenant: Tenant, query: dict[str, str], error: str
) -> None:
    response = await client.get("/chat/stream", params=tenant.query | query)
    assert response.status == 400
    assert (await response.json())["error"] == error
    assert rows.messages(tenant.org_id) == []


async def test_body_that_does_not_arrive_is_408(
    start_server: StartServer, rows: Rows, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For so long aiohttp reads on, to throw away what comes late: 10 s by default.
    monkeypatch.setitem(web.RequestHandler.__init__.__kwdefaults__, "lingering_time", 0.1)
    server = await start_server(body_timeout_s=0.1)
    client = await RawClient.connect(server)
    client.send(post("/chat/stream", b'{"message": "Hi"}', tenant)[:-1])
    status, _ = await client.read_head()
    assert status == b"HTTP/1.1 408 Request Timeout"
    assert await client.reader.read() != b"", "the body of the answer"
    assert client.reader.at_eof(), "the connection is closed: what comes late is no request"
    assert rows.messages(tenant.org_id) == []


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("GET", "/chats/x/y/z", 404, None),
        ("DELETE", "/chat", 405, "POST"),
        ("GET", "/chat", 405, "POST"),
        ("PUT", "/chat/stream", 405, "GET, POST"),
        ("POST", "/health", 405, "GET, HEAD"),
    ],
)
async def test_unknown_path_is_404_and_unknown_method_405(
    client: TestClient, method: str, path: str, status: int, allow: str | None
) -> None:
    response = await client.request(method, path)
    assert response.status == status
    assert response.headers.get("Allow") == allow
    assert (await response.json())["requestId"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /chat/stream?message=" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: Marmalade\r\n\r\n",
    ],
)
async def test_malformed_http_is_400_and_one_log_line_without_its_bytes(
    server: TestServer, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    client = await RawClient.connect(server)
    client.send(raw)
    assert await client.reader.readline() in (b"HTTP/1.1 400 Bad Request\r\n", b"HTTP/1.0 400 Bad Request\r\n")
    [record] = [record for record in caplog.records if quiet_bad_http(record)]
    line = json.loads(Formatter("%(levelname)s %(message)s", timestamp=True).format(record))
    assert list(line) == ["timestamp", "level", "message", "requestId", "pid"]
    assert (line["level"], line["message"]) == ("warn", "Malformed HTTP request")


async def test_unexpected_error_is_500_without_its_text(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server()
    client = await aiohttp_client(server)
    rows("alter table chats rename column title to titel")
    try:
        response = await client.get("/chats", headers=tenant.headers)
    finally:
        rows("alter table chats rename column titel to title")
    assert response.status == 500
    assert await response.json() == {
        "error": "Internal error",
        "message": "The server failed; it is logged.",
        "requestId": response.headers["x-request-id"],
    }
    [record] = logged(caplog, "Request failed")
    assert "UndefinedColumn 42703" in str(record.exc_info and record.exc_info[1])


async def test_database_error_is_logged_without_the_row(
    client: TestClient, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    rows("alter table messages add constraint sober check (content not like '%%Quince%%')")
    try:
        response = await client.post("/chat", json={"message": "Quince"}, headers=tenant.headers)
    finally:
        rows("alter table messages drop constraint sober")
    assert response.status == 500
    assert logged(caplog, "Request failed")
    assert "Quince" not in caplog.text + str([vars(record) for record in caplog.records])


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-123_x.y:z", True), ("", False), ("a b", False), ("x" * 129, False), ("<script>", False)],
)
async def test_request_id_is_the_callers_if_it_is_sane(client: TestClient, given: str, kept: bool) -> None:
    response = await client.get("/health", headers={"x-request-id": given})
    answered = response.headers["x-request-id"]
    assert (answered == given) is kept
    assert kept or re.fullmatch(r"[0-9a-f-]{36}", answered)


async def test_stream_of_the_whole_conversation_is_in_the_list(client: TestClient, tenant: Tenant) -> None:
    stream = await client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers)
    done = events(await stream.read())[-1]
    url = f"/chats/{done['chat_id']}/messages"
    page = await (await client.get(url, headers=tenant.headers)).json()
    assert [(m["role"], m["content"], m["status"]) for m in page["messages"]] == [
        ("user", "Hi", "complete"),
        ("assistant", done["fullText"], "complete"),
    ]
    assert page["messages"][1]["message_id"] == done["message_id"]
