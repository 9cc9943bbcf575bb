"""Real models without a socket: what they are asked, what their streams say, what their failures mean."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstream import ASKED, KEY, STREAMS, anthropic, openai, sse

from app.models import (
    Conversation,
    Message,
    ModelError,
    Piece,
    Reasoning,
    Stop,
    Usage,
    alternate,
)
from app.models.anthropic import Messages
from app.models.events import DONE, Events
from app.models.failures import failure, redact, retry_after_s
from app.models.openai import ChatCompletions
from app.settings import Settings

# ---- Events


def read(*chunks: bytes) -> list[Any]:
    """Return the events of a stream, and what it breaks off with."""
    events, read = Events(), list[Any]()
    try:
        for part in (*map(events.feed, chunks), events.end()):
            for event in part:
                read.append(event)  # one by one: what comes before a failure counts
    except ModelError as exc:
        read.append(str(exc))
    return read


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b'data: {"a": 1}\n\n', [{"a": 1}]),
        (b'data:{"a": 1}\n\n', [{"a": 1}]),
        (b'data: {"a": 1}\r\n\r\ndata: {"a": 2}\r\rdata: {"a": 3}\n\n', [{"a": 1}, {"a": 2}, {"a": 3}]),
        (b'data: {"a": 1}\ndata: {"a": 2}\n', [{"a": 1}, {"a": 2}]),
        (b'data: {"a": 1}', [{"a": 1}]),
        (b'data: {"a":\ndata:  1}\n\n', [{"a": 1}]),
        (b'data: {"a":\ndata:  1}', [{"a": 1}]),
        (b'data: {"a":\r\ndata:  1}\r\n\r\n', [{"a": 1}]),
        (b'data: {"a": 1', []),
        (b"\n\n: ping\n\ndata:\n\ndata: \n\nretry: 3\nid: 7\n\n", []),
        (b'\xef\xbb\xbfdata: {"a": 1}\n\n', [{"a": 1}]),
        ('data: {"a": "\u2028é\x85"}\n\n'.encode(), [{"a": "\u2028é\x85"}]),
        (b'data: {"a": "\xff"}\n\n', [{"a": "\ufffd"}]),
        (b"data: [DONE]\n\n", [DONE]),
        (b"data:[DONE] ", [DONE]),
        (b'event: x\ndata: {"a": 1}\n\n', [{"a": 1}]),
        (b'event: error\ndata: {"a": 1}\n\ndata: {"a": 2}\n\n', [{"error": {"a": 1}}, {"a": 2}]),
        (b'event: error\ndata: {"error": 1}\n\n', [{"error": 1}]),
        (b"event: error\ndata: no JSON\n\n", [{"error": "no JSON"}]),
        (b'data: {"a": 1}\n\ndata: {"a\n\n', [{"a": 1}, "an event is not a JSON object"]),
        (b"data: [1]\n\n", ["an event is not a JSON object"]),
        (b"data: " + b"[" * 100_000 + b"\n\n", ["an event is not a JSON object"]),
        (b"<html>\n<body>502</body>\n</html>", []),
    ],
)
def test_stream_is_read(stream: bytes, events: list[Any]) -> None:
    assert read(stream) == events
    assert read(*(bytes([byte]) for byte in stream)) == events


FRAGMENTS = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n"),
        *(b"data: ", b"data:", b"data", b": ping", b"event: error", b"event: x", b"event:", b"id: 7", b" "),
        *(
            b'{"a": 1}',
            b'{"a": "\xe4\xb8\x96"}',
            b'{"error": 1}',
            b'{"a":',
            b" 1}",
            b"[DONE]",
            b"1",
            b"null",
            b'"',
        ),
        *(b"\xef\xbb\xbf", b"\xf0\x9f\x91\xa9", b"\xe2\x80\xa8", b"\x85", b"\xf0\x9f", b"\xff", b"\0"),
        b'data: {"choices": [{"delta": {"content": "\xf0\x9f\x91\xa9"}}]}\n\n',
    ]
)


@given(st.lists(FRAGMENTS, max_size=20).map(b"".join), st.lists(st.integers(0, 300), max_size=12).map(sorted))
def test_any_stream_cut_anywhere_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(*chunks) == read(stream)


@given(st.lists(st.text(max_size=20), max_size=8), st.sampled_from(["\n", "\r", "\r\n"]), st.randoms())
def test_what_is_encoded_is_read_whatever_the_line_ends(texts: list[str], end: str, random: Any) -> None:
    said = [{"said": text} for text in texts]
    lines = [f"data: {json.dumps(event, ensure_ascii=random.random() < 0.5)}" for event in said]
    # json.dumps leaves no line end within a line but those that are none here.
    stream = "".join(line + end * random.choice([1, 2]) for line in lines).encode("utf-8", "replace")
    cuts = sorted(random.randrange(len(stream) + 1) for _ in range(5))
    chunks = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(*chunks) == json.loads(json.dumps(said).encode("utf-8", "replace"))


@pytest.mark.parametrize("chunk_bytes", [1, 700, 100_000])
def test_event_is_bounded_wherever_it_is_cut(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.events.EVENT_LIMIT_BYTES", 10_000)
    whole = b'data: "' + b"x" * 10_000
    for stream in (whole, whole + b'"\n\n', b"data: x\n" * 1_429):
        chunks = [stream[at : at + chunk_bytes] for at in range(0, len(stream), chunk_bytes)]
        assert read(*chunks) == ["an event is longer than 10000 bytes"]
    # Of many short ones there may be any number.
    assert len(read(b'data: {"a": 1}\n\n' * 1_000)) == 1_000


# ---- Streams


def openai_pieces(stream: bytes) -> tuple[list[Piece], Stop | None, bool]:
    return decoded(ChatCompletions(Settings()), stream)


def decoded(wire: Any, stream: bytes) -> tuple[list[Piece], Stop | None, bool]:
    decoder = wire.decoder()
    pieces = [piece for event in read(stream) for piece in decoder.decode(event)]
    return pieces, decoder.stop, decoder.is_over


def chunk(delta: Any, **more: Any) -> bytes:
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": None}], **more})


def test_openai_stream() -> None:
    stream = (
        chunk({"role": "assistant", "content": ""}, usage=None)
        + chunk({"reasoning_content": "Hm", "reasoning": "Hm"})
        + chunk({"reasoning": "m."})
        + chunk({"content": None, "reasoning_content": None})
        + chunk({"content": "One"})
        + sse({"choices": []})
        + sse({"choices": None, "error": None})
        + sse({"id": "x", "prompt_filter_results": []})
        + sse({"choices": [{"index": 0, "finish_reason": "", "delta": {"content": " two"}}]})
        + sse({"choices": [{"index": 0, "finish_reason": "stop", "delta": None}]})
        + sse({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}})
        + b"data: [DONE]\n\n"
    )
    pieces = [Reasoning("Hm"), Reasoning("m."), "One", " two", Usage(3, 0)]
    assert openai_pieces(stream) == (pieces, Stop("end"), True)


def test_openai_usage_with_every_chunk() -> None:
    stream = b"".join(chunk({"content": "x"}, usage={"prompt_tokens": 3, "completion_tokens": n}) for n in (1, 2))
    assert openai_pieces(stream)[0] == [Usage(3, 1), "x", Usage(3, 2), "x"]


@pytest.mark.parametrize(
    ("finish", "stop"),
    [
        ("stop", "end"),
        ("length", "length"),
        ("content_filter", "refusal"),
        ("tool_calls", "end"),
        ("eos", "end"),
        ("error", None),
        ("", None),
        (None, None),
    ],
)
def test_openai_ends(finish: str | None, stop: Any) -> None:
    assert openai_pieces(openai("x", finish=finish))[1:] == (Stop(stop) if stop else None, True)
    assert openai_pieces(openai("x", finish=finish, done=False))[1:] == (Stop(stop) if stop else None, False)


def test_openai_refusal_in_words() -> None:
    stream = chunk({"refusal": "I can't."}) + openai(finish="stop")
    assert openai_pieces(stream) == (["I can't."], Stop("refusal"), True)


def test_anthropic_stream() -> None:
    stream = (
        sse({"type": "message_start", "message": {"usage": {"input_tokens": 3, "cache_read_input_tokens": 4}}})
        + sse({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}})
        + sse({"type": "ping"})
        + sse({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "Hm."}})
        + sse({"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": "x"}})
        + sse({"type": "content_block_stop", "index": 0})
        + sse({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}})
        + sse({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "One"}})
        + sse({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{"}})
        + sse({"type": "something_new", "delta": {"text": "no"}})
        + sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}})
        + sse({"type": "message_stop"})
    )
    pieces = [Usage(7, None), Reasoning("Hm."), "One", Usage(7, 9)]
    assert decoded(Messages(Settings()), stream) == (pieces, Stop("end"), True)


def test_anthropic_counts_are_cumulative_and_the_last_one_counts_a_zero_too() -> None:
    usages = [
        {"input_tokens": 0, "output_tokens": 1},
        {"input_tokens": 12, "cache_creation_input_tokens": 1},
        {"cache_read_input_tokens": 0, "output_tokens": 5},
        None,
        {"input_tokens": "many", "output_tokens": -1},
        {"output_tokens": 0},
    ]
    stream = b"".join(sse({"type": "message_delta", "delta": {}, "usage": usage}) for usage in usages)
    counted = [(0, 1), (13, 1), (13, 5), (13, 5), (13, 5), (13, 0)]
    assert decoded(Messages(Settings()), stream)[0] == [Usage(*counts) for counts in counted]


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        ("end_turn", "end"),
        ("stop_sequence", "end"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
        (None, "end"),
    ],
)
def test_anthropic_ends(reason: str | None, stop: Any) -> None:
    assert decoded(Messages(Settings()), anthropic("x", stop=reason))[1:] == (Stop(stop), True)
    assert decoded(Messages(Settings()), anthropic("x", stop=reason, done=False))[1:] == (None, False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "delta",
                    "text",
                    "content",
                    "choices",
                    "usage",
                    "message",
                    "finish_reason",
                    "input_tokens",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["type", "choices", "delta", "usage", "message"]), JSON, max_size=4))
def test_no_event_breaks_a_decoder(event: dict[str, Any]) -> None:
    for wire in (ChatCompletions(Settings()), Messages(Settings())):
        list(wire.decoder().decode(event))


# ---- Failures


@pytest.mark.parametrize(
    ("status", "said", "reason", "passing"),
    [
        (429, {"type": "rate_limit_error", "message": "slow down"}, "busy", True),
        (429, {"code": "insufficient_quota", "message": "You exceeded your current quota"}, None, False),
        (529, {"type": "overloaded_error"}, "busy", True),
        (503, "<html>", "busy", True),
        (500, {"type": "api_error"}, None, True),
        (502, "", None, True),
        (408, {}, None, True),
        (401, {"type": "authentication_error", "message": "invalid x-api-key"}, None, False),
        (402, {"message": "Insufficient Balance"}, None, False),
        (404, "model not found", None, False),
        (413, {"type": "request_too_large"}, "too_long", False),
        (400, {"message": "prompt is too long: 200001 tokens > 200000 maximum"}, "too_long", False),
        (400, {"message": "input length and `max_tokens` exceed context limit"}, "too_long", False),
        (400, {"code": "context_length_exceeded"}, "too_long", False),
        (400, {"message": "This model's maximum context length is 8192 tokens."}, "too_long", False),
        (400, {"type": "exceed_context_size_error"}, "too_long", False),
        (400, {"message": "Prompt contains 9 tokens, too large for model with 8"}, "too_long", False),
        (400, {"code": "content_filter", "message": "The response was filtered"}, "refused", False),
        (400, {"message": "rejected as a result of our content management policy"}, "refused", False),
        (403, {"message": "Your input was flagged", "code": 403}, "refused", False),
        (400, {"message": "messages: roles must alternate"}, None, False),
        (None, {"type": "overloaded_error", "message": "Overloaded"}, "busy", True),
        (None, {"code": 502, "message": "Provider returned error"}, None, True),
        (None, {"code": "rate_limit_exceeded"}, "busy", True),
        (None, {"message": "what now"}, None, False),
        (None, ["?"], None, False),
        (200, {"code": 429}, "busy", True),
    ],
)
def test_failure_is_named(status: int | None, said: Any, reason: str | None, passing: bool) -> None:
    named = failure(status, said, [])
    assert (named.reason, named.passing) == (reason, passing)


def test_failure_is_one_short_line() -> None:
    line = str(failure(400, {"type": "bad", "message": "first\n\tsecond " + "x" * 999}, []))
    assert re.fullmatch("400 bad first second x+", line)
    assert len(line) <= 304


@given(
    st.text("αβγδε", min_size=11, max_size=200),
    st.text("abc ", max_size=50),
    st.text("abc ", max_size=50),
)
def test_no_character_of_a_quote_is_left(quote: str, before: str, after: str) -> None:
    assert not set(redact(before + quote + after, [f"ηηη{quote}ηηη"])) & set(quote)


def test_short_secrets_are_hidden_as_words() -> None:
    assert redact("key abc of abcd: 'abc'", ["abc"]) == "key … of abcd: '…'"
    assert redact("see\tone two  three\nfour five: no", ["one\ntwo three four\n\nfive"]) == "s…no"
    assert redact("model not found", [KEY, "What is a neural net?"]) == "model not found"


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        (None, None, None),
        ("0", None, 0),
        ("2.5", None, 2.5),
        ("-1", None, None),
        ("1e9", None, None),
        ("nan", None, None),
        ("soon", None, None),
        ("9" * 30, None, None),
        ("Wed, 25 Nov 2026 10:00:20 GMT", "Wed, 25 Nov 2026 10:00:00 GMT", 20),
        ("Wed, 25 Nov 2026 10:00:00 GMT", "Wed, 25 Nov 2026 10:00:20 GMT", 0),
        ("Wed, 25 Nov 2020 10:00:00 GMT", None, 0),
        ("Wed, 25 Nov 2026 10:00:20 GMT", "yesterday", None),
        ("Wed, 99 Nov 2026 10:00:20 GMT", None, None),
    ],
)
def test_retry_after(value: str | None, date: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, date) == seconds


# ---- Requests


@pytest.mark.parametrize(("asked", "sent"), [(None, 4096), (70, 70), (9999, 4096)])
def test_the_lesser_limit_goes_out(asked: int | None, sent: int) -> None:
    conversation = Conversation(ASKED.messages, stream=True, max_tokens=asked)
    assert Messages(Settings()).body(conversation)["max_tokens"] == sent
    assert ChatCompletions(Settings()).body(conversation)["max_completion_tokens"] == sent
    assert ChatCompletions(Settings(model_url="http://x")).body(conversation)["max_tokens"] == sent


def test_where_providers_are_by_themselves() -> None:
    assert ChatCompletions(Settings()).url == "https://api.openai.com/v1/chat/completions"
    assert Messages(Settings()).url == "https://api.anthropic.com/v1/messages"


def test_reply_of_white_space_is_not_sent() -> None:
    history = [{"role": "user", "content": "One"}, {"role": "assistant", "content": " \n"}]
    assert alternate(history, "Two") == [Message("user", "One\n\nTwo")]


def test_streams_of_the_tests_are_those_of_the_wires() -> None:
    for name, wire in (("openai", ChatCompletions), ("anthropic", Messages)):
        pieces, stop, is_over = decoded(wire(Settings()), STREAMS[name]("One", " two"))
        assert ("".join(piece for piece in pieces if isinstance(piece, str)), stop, is_over) == (
            "One two",
            Stop("end"),
            True,
        )
