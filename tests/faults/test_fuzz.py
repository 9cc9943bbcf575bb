"""Requests of every kind, each answer held against web/openapi.json: schemathesis', and raw bytes."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jwt
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from ledger import FULL, ROOT, SEED, Server, all_ended, broken_invariants, scale
from schemathesis import Case, GenerationMode, Response
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support import Rows, Tenant, events

DOCUMENT: dict[str, Any] = json.loads((ROOT / "web/openapi.json").read_text())
# OpenAPI 3.1 has only prose for what is in a stream; schemathesis holds each event against this.
DOCUMENT["components"]["responses"]["Events"]["content"]["text/event-stream"]["schema"] = {
    "properties": {
        "data": {"contentMediaType": "application/json", "contentSchema": {"$ref": "#/components/schemas/Event"}}
    }
}
# By itself it leaves a stream after a hundred events.
CONFIG = SchemathesisConfig.from_dict({"max-stream-events": 100_000})
OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT, config=CONFIG).get_all_operations()]
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# Less than the silence after which a stream is pinged, so that one without an end is seen.
TIMEOUT_S = 10
# A longer one aiohttp answers itself.
URL_LIMIT = 8000
JWT_SECRET = "a secret of no less than 32 characters"


class Fuzz:
    """Checks answers, and keeps the ids that they hold for the requests to come."""

    def __init__(self, server: Server, tenant: Tenant) -> None:
        self.server, self.tenant = server, tenant
        self.rng = random.Random(SEED)
        self.answers: Counter[tuple[str, int]] = Counter()
        self.known: dict[str, list[str]] = {"chat_id": [], "message_id": [], "ticket": [], "before": []}
        # What is acknowledged to be deleted, and what else is then gone.
        self.deleted: set[str] = set()
        self.chat_of: dict[str, str] = {}
        # Each question is asked once, so that a double would show.
        self.number = itertools.count()

    def latest(self, name: str, back: int = 1) -> str:
        return (self.known[name] or ["none"])[-back:][0]

    def check(self, case: Case, response: Response) -> dict[str, Any]:
        """Hold an answer against the document; return what a success says."""
        self.answers[case.operation.label, response.status_code] += 1
        assert response.status_code < 500
        if response.status_code == 400 and len(response.request.url or "") > URL_LIMIT:
            return {}
        case.validate_response(response, checks=CHECKS)
        if (case.operation.label, response.status_code) == ("DELETE /chats/{chat_id}", 204):
            self.deleted.add(chat_id := case.path_parameters["chat_id"])
            self.known["chat_id"] = [other for other in self.known["chat_id"] if other != chat_id]
        if response.status_code != 200:
            return {}
        said: dict[str, Any]
        if response.headers["content-type"] == ["text/event-stream"]:
            *tokens, said = events(response.content)
            assert said["done"]
            if "fullText" in said:
                assert said["fullText"].endswith("".join(event["token"] for event in tokens))
            assert response.headers["x-chat-id"] == [said["chat_id"]]
            assert response.headers["x-message-id"] == [said["message_id"]]
        elif response.headers["content-type"] == ["application/x-ndjson"]:
            said, *_ = map(json.loads, response.content.splitlines())
        else:
            said = json.loads(response.content)
            self.known["before"] += filter(None, [said["next"]]) if "chats" in said else []
        if "message_id" in said and "chat_id" in said:
            self.chat_of[said["message_id"]] = said["chat_id"]
        for name in self.known.keys() & said.keys():
            self.known[name].append(said[name])
        return said

    def each(
        self, strategies: list[st.SearchStrategy[Any]], rounds: int, count: int, ask: Callable[..., None]
    ) -> None:
        """Ask so many of each strategy in each round, the same with the same seed."""
        checks = list(HealthCheck)
        # What fails may fail because of what was asked before: hypothesis is not to look for simpler ones.
        limits = settings(max_examples=count, phases=[Phase.generate], suppress_health_check=checks, deadline=None)
        for _ in range(rounds):
            for strategy in strategies:
                asks = settings(limits, database=None)(given(strategy)(ask))
                seed(self.rng.getrandbits(32))(asks)()

    def finish(self, rows: Rows, database: str, say: Callable[..., None]) -> None:
        """Check that each operation was reached, and that what was acknowledged is all that is stored."""
        asyncio.run(all_ended(rows))
        reached = {operation.label: 0 for operation in OPERATIONS}
        for (label, status), times in self.answers.items():
            reached[label] += times if status < 300 else 0
        statuses = sorted({status for _, status in self.answers})
        say(requests=self.answers.total(), statuses=statuses, reached=reached)
        # In seconds it is up to chance what is among them.
        assert min(reached.values()) > 0 or not FULL, reached
        stored = rows("select id from messages where org_id = %s and role = 'assistant'", self.tenant.org_id)
        replaced = rows("select id from deleted_replies where org_id = %s", self.tenant.org_id)
        kept = {reply_id for reply_id in self.known["message_id"] if self.chat_of[reply_id] not in self.deleted}
        there = {str(reply_id) for [reply_id] in stored}
        assert there <= kept <= there | {str(reply_id) for [reply_id] in replaced}
        assert self.server.errors() == []
        assert broken_invariants(database) == {}


def aim(fuzz: Fuzz, case: Case) -> None:
    """Make most requests the tenant's and about what there is; leave the others as they are."""
    rng, query, body = fuzz.rng, case.query, case.body
    for said in (query, body):
        # Most would replace what is not there.
        if isinstance(said, dict) and rng.random() < 0.7:
            said.pop("replaces", None)
            said.pop("last", None)
    if rng.random() < 0.85:
        if case.operation.label != "GET /chat/stream":
            case.headers.update(fuzz.tenant.headers)
        elif rng.random() < 0.3:
            case.headers.pop("Last-Event-ID", None)
            query = case.query = {"ticket": fuzz.latest("ticket")}
        else:
            query.pop("ticket", None)
            query.pop("lastEventId", None)
            query.update(fuzz.tenant.query)
            query.setdefault("message", "Hi")
            end = rng.choice([":0", ":7", ":999", ":9:end"])
            case.headers.update({"Last-Event-ID": fuzz.latest("message_id") + end} if rng.random() < 0.5 else {})
    if rng.random() < 0.85:
        # Where it is not allowed it is refused, whatever else is asked.
        query.pop("sim", None)
        if isinstance(body, dict):
            body.pop("sim", None)
    if rng.random() < 0.75:
        back = rng.randint(1, 9)
        if case.path_parameters:
            # They would be another reply's.
            case.headers.pop("Last-Event-ID", None)
            query.pop("lastEventId", None)
        for name in case.path_parameters:
            case.path_parameters[name] = fuzz.latest(name, back)
        paged = "before" if case.operation.path == "/chats" else "message_id"
        there = {"before": fuzz.latest(paged, back), "chatId": fuzz.latest("chat_id", back), "offset": back}
        query.update({name: there[name] for name in there.keys() & query.keys()})
        turn = {"replaces": fuzz.latest("message_id", rng.randint(1, 2)), "last": fuzz.latest("message_id")}
        query.update({name: turn[name] for name in turn.keys() & query.keys()})
        if isinstance(body, dict) and "chat_id" in body:
            turn["chat_id"] = fuzz.chat_of.get(turn["last"], "none") if rng.random() < 0.5 else there["chatId"]
            body.update({name: turn[name] for name in turn.keys() & body.keys()})
    if isinstance(body, dict) and isinstance(body.get("message"), str) and body["message"].strip():
        body["message"] = f"{next(fuzz.number)} {body['message']}"
    if str(query.get("message", "")).strip():
        query["message"] = f"{next(fuzz.number)} {query['message']}"


@pytest.mark.timeout(1800)
def test_requests_made_from_the_document_are_answered_as_it_says(
    serve: Callable[..., Server], own_rows: Rows, database: str, say: Callable[..., None]
) -> None:
    fuzz = Fuzz(serve(SIM_DELAY_MS="0-0"), own_rows.tenant())
    cases = [
        operation.as_strategy(generation_mode=mode)
        for operation in OPERATIONS
        for mode in (GenerationMode.POSITIVE, GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        # Nothing can be wrong with a request that holds nothing.
        if mode is GenerationMode.POSITIVE or any(operation.iter_parameters())
    ]
    with requests.Session() as session:

        def ask(case: Case) -> None:
            aim(fuzz, case)
            response = case.call(base_url=fuzz.server.base, session=session, timeout=TIMEOUT_S)
            said = fuzz.check(case, response)
            if "message_id" in said and "Idempotency-Key" in case.headers and case.method == "POST":
                again = case.call(base_url=fuzz.server.base, session=session, timeout=TIMEOUT_S)
                assert fuzz.check(case, again)["message_id"] == said["message_id"]

        fuzz.each(cases, scale(2, 20), scale(3, 17), ask)
    fuzz.finish(own_rows, database, say)


def among(*choices: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(choices)


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 3).flatmap(lambda toss: usual if toss else odd)


def made_of(codes: Iterable[int], *more: bytes) -> st.SearchStrategy[bytes]:
    return st.lists(among(*(bytes([code]) for code in codes), *more), max_size=12).map(b"".join)


# What is no HTTP is left out: aiohttp answers it itself. What is named after a $ is put in when it is sent.
LARGE = {
    "arrays": "[" * 100_000,
    "objects": '{"a":' * 50_000,
    "spaces": " " * 524_288,
    "fits": "x" * 31_990,
    "long": "x" * 32_001,
}
VISIBLE = set(range(0x21, 0x7F)) - {ord("$")}
IN_URL = made_of(
    VISIBLE - set(b"#&/?"), *(b"%%%02x" % code for code in range(256)), b"%", b"%zz", b"%ED%A0%80", b"%F0%9F%98%80"
)
IN_HEADER = made_of({*VISIBLE, *b" \t", *range(0x80, 0x100)}).map(bytes.strip)
IN_QUERY = IN_URL | among(
    b"$chat_id", b"$message_id", b"0", b"7", b"-1", b"1e2", b"%C2%B2", b"%D9%A3", b"9" * 30, b"9" * 4400
)
# What is rarely right by chance, and ends a request where it is not.
RIGHT = {
    b"fullText": among(b"0", b"1"),
    b"reasoning": among(b"0", b"1"),
    b"sim": among(b"", b"fin@1"),
    b"lastEventId": among(b"", b"$message_id:0", b"$message_id:7", b"$message_id:9:end"),
}
QUESTION_QUERY = mostly(
    st.builds(b"message=$number%b&orgId=$org_id&userId=$user_id&".__mod__, IN_URL) | st.just(b"ticket=$ticket&"),
    st.just(b""),
)
IDENTITY = mostly(
    st.just([b"x-org-id: $org_id", b"x-user-id: $user_id", b"Authorization: Bearer $token"]), st.just([])
)
HEADERS = {
    b"x-org-id": [b"$org_id", b"$user_id"],
    b"x-user-id": [b"$user_id"],
    b"x-request-id": [b"a.b_c:d-e", b"x" * 129],
    b"Idempotency-Key": [b"", b"$number", b"k" * 255, b"k" * 256],
    b"Last-Event-ID": [b"", b"$message_id:0", b"$message_id:7", b"$message_id:9:end", b"-" * 36 + b":1"],
    b"Authorization": [b"Bearer", b"Bearer a.b.c", b"Bearer $token", b"Basic Og=="],
    b"Origin": [b"null", b"http://localhost:8080", b"http://x"],
    b"Sec-Fetch-Site": [b"none", b"cross-site"],
    b"Range": [b"bytes=0-3", b"bytes=999999-", b"bytes=-0", b"bytes=3-0"],
    b"If-None-Match": [b"*", b'W/"x"'],
    b"If-Match": [b"*", b'"x"'],
    b"If-Modified-Since": [b"Wed, 21 Oct 2099 07:28:00 GMT", b"Wed, 99 Oct 9999 07:28:00 GMT"],
    b"If-Range": [b'"x"', b"Wed, 21 Oct 2099 07:28:00 GMT"],
    b"Cookie": [b"a=b", b'=;;="'],
}
HEADER = st.one_of(
    st.tuples(st.just(name), among(*values) | IN_HEADER).map(b": ".join) for name, values in HEADERS.items()
)
CONTENT_TYPE = mostly(
    st.just(b"application/json"),
    IN_HEADER
    | among(
        b"APPLICATION/JSON; charset=utf-16",
        b"application/json;charset=\xff",
        b'application/json; charset="',
        b"application/json, text/plain",
        b"text/plain",
    ),
)
MORE_OF_BODY = st.lists(
    among(b"Expect: 100-continue", b"Content-Encoding: gzip", b"Content-Encoding: \xff"), max_size=2, unique=True
)

TEXT = st.text(st.characters(exclude_characters="$"), max_size=20) | st.sampled_from(
    ["\0", "\ud800", "\udfff\ud800", "\u200b", "\U0001f600", "$fits", "$long"]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400),
    lambda deeper: st.lists(deeper, max_size=4) | st.dictionaries(TEXT, deeper, max_size=4),
    max_leaves=8,
)
QUESTION = st.fixed_dictionaries(
    {"message": st.just("$number") | TEXT.map("$number {}".format) | st.sampled_from(["", " \x85\u2028"]) | VALUE},
    optional={
        "chat_id": st.sampled_from(["$chat_id", "$message_id"]) | TEXT | VALUE,
        "replaces": st.sampled_from(["$message_id", "$chat_id"]) | TEXT | VALUE,
        "last": st.sampled_from(["$message_id", "$chat_id"]) | TEXT | VALUE,
        "reasoning": st.booleans() | VALUE,
        "sim": mostly(st.none(), st.sampled_from(["", "fin@1"]) | VALUE),
        "more": VALUE,
    },
)
FRAMING = mostly(st.just("length"), st.sampled_from(["chunked", "HTTP/1.0"]))
GOOD_TITLE = among(b'{"title":"$number"}', b'{"title":" \\u2028$number "}')
GOOD_BODY = among(
    b'{"message":"$number"}',
    b'{"message":"$number","chat_id":"$chat_id"}',
    b'{"message":"$number","chat_id":"$chat_id","replaces":"$message_id"}',
)
ODD_BODY = st.one_of(
    QUESTION.map(lambda question: json.dumps(question).encode()),
    QUESTION.map(lambda question: json.dumps(question, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    QUESTION.map(lambda question: json.dumps(question).encode("utf-16")),
    (VALUE | TEXT).map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=60),
    among(
        b"$arrays",
        b"$objects",
        b'{"message":"$number","deep":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"message":"$number","big":' + b"9" * 5000 + b"}",
        b'{"message":"$number","message":"$number again"}',
        b'\xef\xbb\xbf{"message":"$number"}',
        b'{"message":"$number"}$spaces',
    ),
)


@st.composite
def templates(draw: st.DrawFn, operation: Any) -> tuple[Any, bytes, list[bytes], bytes, str]:
    """Give the operation, a target, headers and a body for it, each odd now and then, and how they are framed."""
    target = operation.path.encode()
    for name in (b"chat_id", b"message_id"):
        there, odd = st.just(b"$" + name), IN_URL
        # Of a chat that is deleted there is no more to ask.
        deletes = operation.label == "DELETE /chats/{chat_id}"
        target = target.replace(b"{%b}" % name, draw(mostly(odd, there) if deletes else mostly(there, odd)))
    target += b"?"
    headers = draw(mostly(st.just([]), st.lists(HEADER, max_size=3)))
    if operation.label == "GET /chat/stream":
        target += draw(QUESTION_QUERY)
    else:
        headers += draw(IDENTITY)
    names = [parameter.name.encode() for parameter in operation.query if parameter.name != "message"]
    pairs = among(b"", b"%00", *names).flatmap(
        lambda name: st.tuples(st.just(name), mostly(RIGHT[name], IN_QUERY) if name in RIGHT else IN_QUERY)
    )
    # At most one long value: more are too long for aiohttp.
    target += b"&".join(map(b"=".join, draw(st.lists(pairs, max_size=2, unique_by=lambda pair: pair[1]))))
    framing = draw(FRAMING)
    if not operation.body:
        return operation, target, headers, b"", framing
    headers.append(b"Content-Type: " + draw(CONTENT_TYPE))
    headers += draw(mostly(st.just([]), MORE_OF_BODY))
    good = GOOD_TITLE if operation.method == "patch" else GOOD_BODY
    return operation, target, headers, draw(good if draw(st.booleans()) else ODD_BODY), framing


def frame(head: bytes, body: bytes, framing: str) -> bytes:
    """Give the bytes of a request (RFC 9112, 6 and 7.1)."""
    if framing != "chunked":
        return head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    middle = len(body) // 2
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:middle], body[middle:]) if part]
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        pytest.param({"JWT_SECRET": JWT_SECRET}, marks=pytest.mark.skipif(not FULL, reason="make faults alone")),
    ],
    ids=["headers", "tokens"],
)
@pytest.mark.timeout(1800)
def test_any_bytes_that_are_http_are_answered_as_the_document_says(
    serve: Callable[..., Server],
    own_rows: Rows,
    database: str,
    say: Callable[..., None],
    environ: dict[str, str],
) -> None:
    fuzz = Fuzz(serve(SIM_DELAY_MS="0-0", **environ), own_rows.tenant())
    claims = {"org_id": fuzz.tenant.org_id, "sub": fuzz.tenant.user_id, "exp": time.time() + 3600}
    token = jwt.encode(claims, JWT_SECRET, "HS256")
    connections: list[socket.socket] = []

    def ask(template: tuple[Any, bytes, list[bytes], bytes, str]) -> None:
        operation, target, headers, body, framing = template
        values = LARGE | {name: fuzz.latest(name) for name in fuzz.known}
        values |= {
            "number": str(next(fuzz.number)),
            "org_id": fuzz.tenant.org_id,
            "user_id": fuzz.tenant.user_id,
            "token": token,
        }
        version = b"HTTP/1.0" if framing == "HTTP/1.0" else b"HTTP/1.1"
        line = b" ".join([operation.method.upper().encode(), target, version])
        head = b"\r\n".join([line, b"Host: localhost", *headers])
        for name, value in values.items():
            head, body = (part.replace(b"$" + name.encode(), value.encode()) for part in (head, body))
        if not connections:
            connections.append(socket.create_connection(("127.0.0.1", fuzz.server.port), TIMEOUT_S))
        connections[0].sendall(frame(head, body, framing))
        with http.client.HTTPResponse(connections[0], method=operation.method.upper()) as raw:
            raw.begin()
            response = Response(
                status_code=raw.status,
                headers={name: raw.headers.get_all(name, []) for name in raw.headers},
                content=raw.read(),
                request=requests.Request("GET", fuzz.server.base).prepare(),
                elapsed=0,
                verify=False,
            )
            # A body that is not encoded as it says ends the connection.
            if raw.will_close or b"Content-Encoding" in head:
                connections.pop().close()
        named = re.match(rb"\w+ /chats/([0-9a-f-]{36})[/?]", head)
        chat_id = named[1].decode() if named else "-"
        fuzz.check(operation.Case(path_parameters={"chat_id": chat_id, "message_id": "-"}), response)

    try:
        fuzz.each([templates(operation) for operation in OPERATIONS], scale(6, 50), scale(7, 22), ask)
    finally:
        for connection in connections:
            connection.close()
    fuzz.finish(own_rows, database, say)
