"""The simulated model."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models import Conversation, Message, excerpt
from app.models.simulated import ASKS_FOR_STORY, STORY, WORD, Simulated, Template, compose


def asks(message: str, stream: bool = True) -> Conversation:
    return Conversation([Message("user", message)], stream)


async def collect(model: Simulated, conversation: Conversation) -> list[str]:
    return [word async for word in model(conversation)]


@given(st.text(min_size=1, max_size=300).filter(lambda message: not ASKS_FOR_STORY.search(message)))
def test_reply_has_20_to_60_words_and_mentions_the_message(message: str) -> None:
    for seed in range(8):
        words = compose([message], random.Random(seed))
        assert 20 <= len(words) <= 60
        assert excerpt(message, words=12, chars=80) in "".join(words)
        assert words == WORD.findall("".join(words))


@pytest.mark.parametrize("braces", ["{turn}", "{quote}", "{0} {} {{", "} { }}", "{turn!r:>99}", "%s"])
def test_braces_in_a_message_are_quoted_as_they_are(braces: str) -> None:
    template = Template('"{quote}" is {turn}.')
    assert template.fill(quote=f"A {braces} b", turn=2) == ['"A', *WORD.findall(f" {braces}"), ' b"', " is", " 2."]


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
    assert compose([message], random.Random(1)) == STORY.fill(quote=message, turn=1)


@pytest.mark.parametrize(
    "message",
    ["history", "What is the history of Rome?", "Draw a storyboard", "my_story_2", "Tell me a sto ry"],
)
def test_message_without_the_word_story_gets_no_story(message: str) -> None:
    assert len(compose([message], random.Random(1))) < 150


def test_only_the_last_message_asks_for_a_story() -> None:
    assert len(compose(["Tell me a story", "Thanks"], random.Random(1))) < 150


async def test_word_has_the_white_space_before_it() -> None:
    first, *rest = await collect(Simulated((0, 0)), asks("tell a story"))
    assert not first[0].isspace()
    assert all(word[0].isspace() and len(word.split()) == 1 for word in rest)
    assert len(rest) >= 149


async def test_length_is_known_beforehand() -> None:
    reply = Simulated((0, 0))(asks("Hi"))
    words = [word async for word in reply]
    assert reply.total_tokens == len(words)
    assert reply.text_length == len("".join(words))


async def test_seed_gives_the_same_text_and_the_same_delays() -> None:
    async def run(seed: str) -> tuple[list[str], list[float]]:
        delays: list[float] = []
        reply = Simulated((1, 2), seed)(asks("Hi"))
        tokens = []
        due_s = reply._due_s
        async for token in reply:
            tokens.append(token)
            delays.append(round(reply._due_s - due_s, 6))
            due_s = reply._due_s
        return tokens, delays

    first, second, other = await run("1"), await run("1"), await run("2")
    assert first == second
    assert first[1] != other[1]
    assert all(0.001 <= delay <= 0.002 for delay in first[1])


async def test_five_words_take_50_to_150_ms() -> None:
    reply = Simulated()(asks("Hi"))
    began_s = time.perf_counter()
    for _ in range(5):
        await anext(reply)
    took_s = time.perf_counter() - began_s
    # Above by what a busy machine adds.
    assert 0.05 <= took_s < 0.15 + 0.1


async def test_reply_nobody_reads_along_is_not_paced() -> None:
    began_s = time.perf_counter()
    await collect(Simulated((1000, 1000)), asks("tell a story", stream=False))
    assert time.perf_counter() - began_s < 0.5


async def test_closed_reply_says_nothing_more() -> None:
    reply = Simulated((0, 0))(asks("Hi"))
    await anext(reply)
    await reply.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(reply)


def test_two_event_loops_one_after_the_other_are_both_answered() -> None:
    model = Simulated((1, 1), "1")
    first, second = (asyncio.run(collect(model, asks("Hi"))) for _ in range(2))
    assert first == second
