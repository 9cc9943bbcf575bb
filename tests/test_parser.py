"""`web/sse.js` in a real Chromium: any stream, cut anywhere, gives the same events."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import sync_playwright

from app.replies.events import encode_numbered_tokens, encode_tokens
from app.replies.reply import storable
from app.replies.sse import PING, encode_event

pytestmark = pytest.mark.browser

SSE_JS = Path(__file__).parent.parent / "web" / "sse.js"

# A stream, and where it is cut. Many go to the browser at once.
Case = tuple[bytes, list[int]]
Parse = Callable[[Sequence[Case]], list[dict[str, Any]]]

PARSE = """(cases) => cases.map(([latin1, cuts]) => {
    const bytes = Uint8Array.from(latin1, (character) => character.charCodeAt(0));
    const parser = new SseParser();
    const events = [0, ...cuts].flatMap((from, i) => parser.push(bytes.subarray(from, cuts[i])));
    return { events, retry: parser.retry, lastEventId: parser.lastEventId };
})"""

# Cut in two at each byte, and into single bytes.
PARSE_CUT_EVERYWHERE = """(latin1) => {
    const bytes = Uint8Array.from(latin1, (character) => character.charCodeAt(0));
    const parse = (chunks) => {
        const parser = new SseParser();
        return JSON.stringify(chunks.flatMap((chunk) => parser.push(chunk)));
    };
    const results = new Set([parse(Array.from(bytes, (byte) => Uint8Array.of(byte)))]);
    for (let at = 0; at <= bytes.length; at += 1) results.add(parse([bytes.slice(0, at), bytes.slice(at)]));
    return [...results];
}"""

# The same for text, in UTF-16 units.
PARSE_TEXT_CUT_EVERYWHERE = """(text) => {
    const parse = (chunks) => {
        const parser = new SseParser();
        return JSON.stringify(chunks.flatMap((chunk) => parser.push(chunk)));
    };
    const results = new Set([parse(text.split(''))]);
    for (let at = 0; at <= text.length; at += 1) results.add(parse([text.slice(0, at), text.slice(at)]));
    return [...results];
}"""


@pytest.fixture(scope="module")
def evaluate() -> Iterator[Callable[..., Any]]:
    """Give a function that runs JavaScript in a page that has loaded sse.js, and nothing else."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM"),
            args=["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"],
            chromium_sandbox=False,
        )
        page = browser.new_page()
        page.add_script_tag(path=SSE_JS)
        yield page.evaluate
        browser.close()


@pytest.fixture(scope="module")
def parse(evaluate: Callable[..., Any]) -> Parse:
    return lambda cases: evaluate(PARSE, [[stream.decode("latin-1"), cuts] for stream, cuts in cases])


def cut(streams: st.SearchStrategy[bytes]) -> st.SearchStrategy[Case]:
    return streams.flatmap(
        lambda stream: st.tuples(
            st.just(stream), st.lists(st.integers(0, len(stream)), max_size=12).map(sorted) | st.just([])
        )
    )


def batches(cases: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(cases, min_size=1, max_size=20)


examples = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)

PIECES = st.text(max_size=20) | st.sampled_from(
    [
        " ",
        "\n\n",
        "\r\n",
        "\u2028",
        "\u00a0",
        "e\u0301",
        "שלום",
        "\U0001f469\u200d\U0001f680",
        '"\\',
        "\0",
        "\ud800",
        "data: ",
    ]
)


@examples
@given(
    batches(
        st.tuples(st.lists(PIECES.map(storable), max_size=8), st.booleans(), st.randoms(use_true_random=False))
    )
)
def test_what_the_server_encodes_is_parsed_to_the_same_text(parse: Parse, batch: list[Any]) -> None:
    cases: list[Case] = []
    texts = []
    for pieces, numbered, random in batch:
        text = ""
        stream = PING
        for piece in pieces:
            stream += encode_numbered_tokens(piece, "id", len(text)) if numbered else encode_tokens(piece)
            text += piece
        stream += encode_event({"token": "", "done": True, "fullText": text})
        cases.append((stream, sorted(random.randrange(len(stream) + 1) for _ in range(random.randrange(12)))))
        texts.append(text)

    for result, text, (_, numbered, _) in zip(parse(cases), texts, batch, strict=True):
        *tokens, done = (json.loads(event["data"]) for event in result["events"])
        assert "".join(token["token"] for token in tokens) == text
        assert done["fullText"] == text
        if numbered and text:
            assert result["lastEventId"] == f"id:{len(text)}"


FRAGMENTS = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n"),
        *(b"data", b"data:", b"data: ", b"data:  x", b":", b": ping", b" ", b"x", b"data:x\n\n", b"Data: x"),
        *(
            b"event: e",
            b"event:",
            b"id: 7",
            b"id:",
            b"id: a\0b",
            b"retry: 250",
            b"retry: 1x",
            b"retry:",
            b"retry: -1",
        ),
        *(
            b"\xef\xbb\xbf",
            b"\xe4\xb8\x96",
            b"\xf0\x9f\x91\xa9",
            b"\xe2\x80\xa8",
            b"\x85",
            b"\xf0\x9f",
            b"\xff",
            b"\0",
        ),
    ]
)


@examples
@given(batches(cut(st.lists(FRAGMENTS, max_size=20).map(b"".join))))
def test_any_stream_cut_anywhere_is_parsed_as_the_standard_says(parse: Parse, batch: list[Case]) -> None:
    assert parse(batch) == [interpret(stream) for stream, _ in batch]


def interpret(stream: bytes) -> dict[str, Any]:
    """Interpret a whole stream by the letter of WHATWG HTML, 9.2.6."""
    *lines, _ = re.split(r"\r\n|\n|\r", stream.decode("utf-8", "replace").removeprefix("\ufeff"))
    events = []
    data = event_type = id_buffer = last_event_id = ""
    retry = None
    for line in lines:
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "":
            last_event_id = id_buffer
            if data:
                events.append(
                    {
                        "type": event_type or "message",
                        "data": data.removesuffix("\n"),
                        "lastEventId": last_event_id,
                    }
                )
            data = event_type = ""
        elif colon and not name:
            continue
        elif name == "event":
            event_type = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            id_buffer = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return {"events": events, "retry": retry, "lastEventId": last_event_id}


def event(data: str, type_: str = "message", last_event_id: str = "") -> dict[str, str]:
    return {"type": type_, "data": data, "lastEventId": last_event_id}


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("data: a\n\ndata: b\r\rdata: c\r\n\r\n", [event("a"), event("b"), event("c")]),
        ("data: a\r\ndata: b\rdata: c\n\r\n", [event("a\nb\nc")]),
        ("\ufeffdata: after a BOM\n\n", [event("after a BOM")]),
        ("\ufeff\ufeffdata: after two\n\ndata: x\n\n", [event("x")]),
        (": ping\n\n: data: no\n:\ndata: yes\n\n", [event("yes")]),
        (": ping\ndata: a\n: ping\ndata: b\n\n: ping\n: ping\ndata: c\n\n", [event("a\nb"), event("c")]),
        ("data: 世界 👩‍🚀 e\u0301\r\n\r\n", [event("世界 👩‍🚀 e\u0301")]),
        ("data:one\ndata\ndata:  two\n\ndata\n\ndata:\n\n", [event("one\n\n two"), event(""), event("")]),
        ("event: add\ndata: 1\n\nevent: lost\n\ndata: 2\n\n", [event("1", "add"), event("2")]),
        (
            "id: 1\ndata: a\n\ndata: b\n\nid: 2\n\ndata: c\n\nid\ndata: d\n\nid: x\0y\ndata: e\n\n",
            [
                event("a", "message", "1"),
                event("b", "message", "1"),
                event("c", "message", "2"),
                event("d"),
                event("e"),
            ],
        ),
        ("data: whole\n\ndata: unfinished\n", [event("whole")]),
        ("data: whole\n\ndata: unfinished", [event("whole")]),
        ("dat\nDATA: a\nother: b\n data: c\n\n", []),
        ("", []),
    ],
)
def test_stream_cut_at_every_byte_gives_these_events(
    evaluate: Callable[..., Any], stream: str, expected: list[dict[str, str]]
) -> None:
    for results in (
        evaluate(PARSE_CUT_EVERYWHERE, stream.encode().decode("latin-1")),
        evaluate(PARSE_TEXT_CUT_EVERYWHERE, stream),
    ):
        assert [json.loads(result) for result in results] == [expected]


def test_retry_is_kept_where_it_is_a_number(parse: Parse) -> None:
    streams = (b"data: a\n\n", b"retry: 250\n", b"retry: 250\nretry: 9x\n", b"retry:\n", b"retry: -1\n")
    assert [result["retry"] for result in parse([(s, []) for s in streams])] == [None, 250, 250, None, None]
