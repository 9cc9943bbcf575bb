"""The encoder, by itself."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from app.replies.events import encode_numbered_tokens, encode_tokens
from app.replies.sse import encode_event

ANY_TEXT = st.text(st.characters(exclude_categories=()))


def test_event_is_compact_ascii_and_ends_in_a_blank_line() -> None:
    assert encode_event({"token": "é\u2028\n", "done": False}) == (
        b'data: {"token":"\\u00e9\\u2028\\n","done":false}\n\n'
    )


def test_event_id_stands_before_the_data() -> None:
    assert encode_event({"a": 1}, "x:5") == b'id: x:5\ndata: {"a":1}\n\n'


@given(ANY_TEXT)
def test_tokens_concatenated_are_the_text(text: str) -> None:
    lines = encode_tokens(text).decode("ascii").split("\n\n")
    assert lines.pop() == ""
    tokens = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(token["token"] for token in tokens) == text
    assert all(list(token) == ["token", "done"] and token["token"] and not token["done"] for token in tokens)
    assert all(token["token"].isspace() or not any(map(str.isspace, token["token"])) for token in tokens)


@given(ANY_TEXT, st.integers(0, 10**6))
def test_numbered_tokens_are_the_same_events_with_the_code_points_sent(text: str, sent: int) -> None:
    plain = encode_tokens(text).split(b"\n\n")
    for numbered in encode_numbered_tokens(text, "m", sent).split(b"\n\n")[:-1]:
        event_id, data = numbered.split(b"\n")
        assert data == plain.pop(0)
        sent += len(json.loads(data.removeprefix(b"data: "))["token"])
        assert event_id == f"id: m:{sent}".encode()
    assert plain == [b""]
