"""What the simulated model says."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models import excerpt
from app.models.texts import ASKS_FOR_STORY, STORY, WORD, Template, compose


@given(st.text(min_size=1, max_size=300).filter(lambda message: not ASKS_FOR_STORY.search(message)))
def test_reply_has_20_to_60_words_and_mentions_the_message(message: str) -> None:
    for seed in range(8):
        words = list(compose([message], random.Random(seed)))
        assert 20 <= len(words) <= 60
        assert excerpt(message, words=12, chars=80) in "".join(words)
        assert words == WORD.findall("".join(words))


@pytest.mark.parametrize("braces", ["{turn}", "{quote}", "{0} {} {{", "} { }}", "{turn!r:>99}", "%s"])
def test_braces_in_a_message_are_quoted_as_they_are(braces: str) -> None:
    template = Template('"{quote}" is {turn}.')
    words = list(template.fill(quote=f"A {braces} b", turn=2))
    assert words == ['"A', *WORD.findall(f" {braces}"), ' b"', " is", " 2."]


def test_replies_share_the_words_of_their_template() -> None:
    first, second = (compose([message], random.Random(1)) for message in ("A story", "My story"))
    own = [(one, other) for one, other in zip(first, second, strict=True) if one is not other]
    assert own == [(' "A', ' "My'), (' story".', ' story".'), (" 1", " 1")]


@pytest.mark.parametrize(
    "message",
    [
        "tell a story",
        "Tell me a story",
        "TELL ME A STORY!!!",
        "Could you please tell us a short story about a fox?",
        "I would like a story, please",
        "Story",
    ],
)
def test_message_with_the_word_story_gets_the_story(message: str) -> None:
    assert list(compose([message], random.Random(1))) == list(STORY.fill(quote=message, turn=1))


@pytest.mark.parametrize(
    "message",
    ["history", "What is the history of Rome?", "Draw a storyboard", "my_story_2", "Tell me a sto ry"],
)
def test_message_without_the_word_story_gets_no_story(message: str) -> None:
    assert len(compose([message], random.Random(1))) < 150


def test_only_the_last_message_asks_for_a_story() -> None:
    assert len(compose(["Tell me a story", "Thanks"], random.Random(1))) < 150


def test_words_have_the_white_space_before_them() -> None:
    first, *rest = compose(["tell a story"], random.Random(1))
    assert not first[0].isspace()
    assert all(word[0].isspace() and len(word.split()) == 1 for word in rest)
    assert len(rest) >= 149
