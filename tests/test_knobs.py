"""The simulator's knobs: what is taken, what is refused and how; what the model says by them, and when."""

from __future__ import annotations

import asyncio
import random
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_push import Listener
from virtual import now_ms, virtually

from app.models import Conversation, Message, ModelError
from app.models.knobs import (
    EXPECTED,
    FORMS,
    PROFILES,
    TEXTS,
    WIRE,
    BadKnobs,
    Fault,
    Knobs,
    Lognormal,
    Refusal,
    Stall,
    Uniform,
    parse,
)
from app.models.simulated import Simulated, TunedConversation, TunedReply
from app.models.texts import STORY, WORD, compose, seeded
from app.models.texts import TEXTS as TOLD

ASKED = Conversation([Message("user", "Hi")], stream=True)
WHOLE = Conversation([Message("user", "Hi")], stream=False)
HI = list(compose(["Hi"], random.Random("1\0Hi")))

# ---- The grammar


@pytest.mark.parametrize(
    ("sim", "knobs"),
    [
        ("", Knobs()),
        ("ttft=2s", Knobs(ttft=2)),
        ("ttft=1.5s", Knobs(ttft=1.5)),
        ("gap=20ms", Knobs(gap=Uniform(0.02, 0.02))),
        ("gap=10-30ms", Knobs(gap=Uniform(0.01, 0.03))),
        ("gap=0-2s", Knobs(gap=Uniform(0, 2))),
        ("gap=lognormal:40ms:0.8", Knobs(gap=Lognormal(0.04, 0.8))),
        ("as=claude", Knobs(gap=Uniform(0.015, 0.05))),
        ("as=gpt4", Knobs(gap=Uniform(0.02, 0.06))),
        ("as=local", Knobs(gap=Uniform(0.005, 0.02))),
        ("words=500  seed=7\ttext=markdown", Knobs(words=500, seed="7", text="markdown")),
        ("stall@20=10s fail@30", Knobs(stall=Stall(20, 10), fail=30)),
        ("endless", Knobs(endless=True)),
        ("status=429:2s", Knobs(status=Refusal(429, 2, None))),
        ("status=529*3", Knobs(status=Refusal(529, None, 3))),
        ("fin@30", Knobs(fin=Fault(30, 1))),
        ("rst@0*2 hang@1", Knobs(rst=Fault(0, 2), hang=Fault(1, 1))),
        ("cut@done*2 dup@9", Knobs(cut=Fault(0, 2), dup=Fault(9, 1))),
        ("big=64k", Knobs(big=Fault(65_536, 1))),
        ("chop=1 burst=3s", Knobs(chop=1, burst=3)),
        ("utf8 crlf bom noise", Knobs(utf8=True, crlf=True, bom=True, noise=True)),
    ],
)
def test_knobs_are_taken(sim: str, knobs: Knobs) -> None:
    assert parse(sim) == knobs
    assert parse(sim).spelled == " ".join(sim.split())


@pytest.mark.parametrize(
    "word",
    [
        *(
            "foo",
            "TTFT=2s",
            "ttft",
            "ttft=2",
            "ttft=1e9s",
            "ttft=-1s",
            "ttft=2m",
            "ttft==2s",
            "ttft=2s*2",
            "ttft=\u0662s",
        ),
        *("gap=30", "gap=1-2-3ms", "gap=10ms-20ms", "gap=lognormal:40ms", "gap=lognormal:40:1", "as=gpt", "as"),
        *(
            "words=1.5",
            "words=+1",
            "words=500*2",
            "seed=a=b",
            "seed=",
            "text=html",
            "stall=10s",
            "stall@5",
            "fail=3",
        ),
        *("endless=1", "status=200", "status=429:2", "status=4290", "fin", "fin@-1", "fin@done", "cut@3", "cut"),
        *("dup=9", "big=64m", "big=k", "chop=1k", "burst=3", "utf8=1", "crlf*2", "bom@1", "on_the_wire", "_knob"),
    ],
)
def test_word_that_is_no_knob_is_refused_with_all_that_are(word: str) -> None:
    with pytest.raises(BadKnobs) as refused:
        parse(f"seed=1 {word}")
    assert str(refused.value) == f"sim has {word!r}, expected some of: {EXPECTED}."


def test_what_is_expected_names_every_knob_in_a_form_that_is_taken() -> None:
    assert {form.split("=")[0].split("@")[0] for form in EXPECTED.replace(" or ", ", ").split(", ")} == {
        "as",
        *FORMS,
    }
    for shown in EXPECTED.replace(" or ", ", ").split(", "):
        for sim in (
            [shown.split("=")[0] + "=" + value for value in shown.split("=")[-1].split("|")]
            if "|" in shown
            else [shown]
        ):
            assert parse(sim) != Knobs()


@pytest.mark.parametrize(
    ("word", "limits"),
    [
        ("ttft=600.001s", "0 to 600 seconds"),
        ("gap=61s", "0 to 60 seconds"),
        ("gap=30-10ms", "0.03 to 60 seconds"),
        ("gap=1-61s", "0 to 60 seconds"),
        ("gap=lognormal:61s:1", "0 to 60 seconds"),
        ("gap=lognormal:1s:3.1", "0 to 3"),
        ("words=0", "1 to 100000"),
        ("words=100001", "1 to 100000"),
        ("stall@1000001=1s", "0 to 1000000"),
        ("stall@1=601s", "0 to 600 seconds"),
        ("fail@1000001", "0 to 1000000"),
        ("status=503:601s", "0 to 600 seconds"),
        ("status=503*1001", "1 to 1000"),
        ("fin@1000001", "0 to 1000000"),
        ("rst@1*0", "1 to 1000"),
        ("cut@done*1001", "1 to 1000"),
        ("dup@0", "1 to 1000000"),
        ("big=0", "1 to 1048576"),
        ("big=1025k", "1 to 1048576"),
        ("chop=0", "1 to 65536"),
        ("burst=61s", "0 to 60 seconds"),
    ],
)
def test_number_out_of_its_limits_is_refused_with_these(word: str, limits: str) -> None:
    with pytest.raises(BadKnobs) as refused:
        parse(word)
    assert str(refused.value) == f"sim has {word!r}, expected in its place a number from {limits}."


@pytest.mark.parametrize(
    "sim", ["fin@1 fin@2", "utf8 utf8", "gap=1ms as=local", "words=3 endless", "endless words=3"]
)
def test_two_of_a_kind_are_refused(sim: str) -> None:
    with pytest.raises(BadKnobs, match="beside another of its kind"):
        parse(sim)


def test_string_is_limited() -> None:
    assert parse("utf8" + " " * 496) == Knobs(utf8=True)
    with pytest.raises(BadKnobs, match="sim has 501 characters, expected at most 500"):
        parse("utf8" + " " * 497)


@pytest.mark.parametrize("name", FORMS)
def test_knob_is_of_the_model_or_on_the_wire_but_for_the_refusal(name: str) -> None:
    knobs = Knobs(**{name: True})  # type: ignore[arg-type]
    assert [*knobs.of_the_model, *knobs.on_the_wire] == ([] if name == "status" else [name])
    assert bool(knobs.on_the_wire) is (name in WIRE)


def test_every_text_is_told() -> None:
    assert set(TOLD) == set(TEXTS)


@given(st.text(st.sampled_from("=@*:.-sm 0129akfindupgbrst8"), max_size=40) | st.text(max_size=40))
def test_any_text_is_parsed_or_refused_and_what_is_parsed_is_kept_as_it_was_spelled(sim: str) -> None:
    try:
        knobs = parse(sim)
    except BadKnobs:
        return
    assert knobs.spelled.isascii()
    assert parse(knobs.spelled) == knobs


# ---- The model


def tuned(sim: str, *, delay_ms: tuple[float, float] = (125, 125), asked: Conversation = ASKED) -> TunedReply:
    reply = Simulated(delay_ms, "1")(TunedConversation(asked.messages, asked.stream, knobs=parse(sim)))
    assert isinstance(reply, TunedReply)
    return reply


@virtually
async def test_question_without_a_knob_of_the_model_is_answered_as_without_any() -> None:
    one, other = Listener(), Listener()
    assert await tuned("").push(one) is False
    assert await Simulated((125, 125), "1")(ASKED).push(other) is False
    assert one.words == other.words == HI
    assert one.at_ms == [125 * nth for nth in range(1, 40)]


@virtually
async def test_first_word_comes_when_it_is_asked_for_and_the_others_as_ever() -> None:
    listener = Listener()
    await tuned("ttft=2s").push(listener)
    assert listener.at_ms == [2000 + 125 * nth for nth in range(39)]


@virtually
async def test_stall_comes_once_after_its_words() -> None:
    listener = Listener()
    await tuned("gap=125ms stall@3=10s").push(listener)
    assert listener.at_ms == [125 * nth + (10_000 if nth > 3 else 0) for nth in range(1, 40)]


@virtually
async def test_stall_before_the_first_word() -> None:
    listener = Listener()
    await tuned("ttft=1s stall@0=10s").push(listener)
    assert listener.at_ms[0] == 11_000


@pytest.mark.parametrize("profile", PROFILES)
@virtually
async def test_gaps_of_a_profile_are_within_it_and_not_all_the_same(profile: str) -> None:
    listener = Listener()
    await tuned(f"as={profile} words=500").push(listener)
    least_s, most_s = parse(f"as={profile}").gap
    gaps = [(later - sooner) / 1000 for sooner, later in zip(listener.at_ms, listener.at_ms[1:], strict=False)]
    # Words of the same millisecond are said together.
    assert least_s - 0.0011 <= min(gaps) < max(gaps) <= most_s + 0.0011
    assert abs(sum(gaps) / len(gaps) - (least_s + most_s) / 2) < 0.05 * most_s


@virtually
async def test_gaps_of_a_lognormal_have_its_median_and_its_spread() -> None:
    listener = Listener()
    await tuned("gap=lognormal:40ms:0.8 words=2000").push(listener)
    gaps = sorted((later - sooner) / 40 for sooner, later in zip(listener.at_ms, listener.at_ms[1:], strict=False))
    assert abs(gaps[1000] - 1) < 0.1
    # A standard deviation above.
    assert abs(gaps[1682] - exp(0.8)) < 0.25


@pytest.mark.parametrize("text", [None, *TEXTS])
@pytest.mark.parametrize("count", [1, 20, 500])
@virtually
async def test_reply_has_exactly_so_many_words(text: str | None, count: int) -> None:
    listener = Listener()
    reply = tuned(f"gap=0ms words={count}" + (f" text={text}" if text else ""))
    assert (reply.total_pieces, now_ms()) == (count, 0)
    await reply.push(listener)
    said = "".join(listener.words)
    assert len(said.split()) == len(listener.words) == count
    assert reply.text_length == len(said)


@pytest.mark.parametrize("text", TEXTS)
@virtually
async def test_text_is_told_to_the_letter(text: str) -> None:
    listener = Listener()
    await tuned(f"gap=0ms text={text}").push(listener)
    assert "".join(listener.words) == TOLD[text]
    assert listener.words == WORD.findall(TOLD[text])


def test_texts_are_what_their_names_say() -> None:
    for part in (
        "# ",
        "1. ",
        "- ",
        "- [x] ",
        "| ",
        "> ",
        "```",
        "`gale`",
        "**",
        "](https://",
        "<img ",
        "](javascript:",
    ):
        assert part in TOLD["markdown"]
    for part in (
        "\u200d",
        "\u0301",
        "\u05e9",
        "\u0645",
        "\u706f",
        "\ub4f1",
        "\U00020bb7",
        "\u2028",
        "\ufeff",
        "\ufe0f\u20e3",
    ):
        assert part in TOLD["unicode"]
    assert TOLD["code"].count("```") == 6
    assert "\t" in TOLD["code"]
    assert "\n" not in TOLD["long-line"]
    assert max(map(len, TOLD["long-line"].split())) == 2000


@virtually
async def test_story_is_told_again_for_more_words() -> None:
    listener = Listener()
    story = Conversation([Message("user", "A story")], stream=True)
    await tuned("gap=0ms words=400", asked=story).push(listener)
    once = list(STORY.fill(quote="A story", turn=1))
    assert listener.words == [*once, "\n\n" + once[0], *once[1:]][:400]


@virtually
async def test_seed_is_that_of_the_question() -> None:
    async def said(sim: str) -> tuple[list[str], list[float]]:
        listener, began_ms = Listener(), now_ms()
        await tuned(f"gap=10-30ms {sim}").push(listener)
        return listener.words, [at_ms - began_ms for at_ms in listener.at_ms]

    assert (await said("seed=1"))[0] == (await said(""))[0] == HI
    assert (await said("seed=7"))[0] == list(compose(["Hi"], seeded("7", ["Hi"])))


@virtually
async def test_failure_comes_when_the_next_word_is_due() -> None:
    listener = Listener()
    with pytest.raises(ModelError, match="the simulator was to fail after 3 words"):
        await tuned("fail@3").push(listener)
    assert listener.words == HI[:3]
    assert now_ms() == 500


@pytest.mark.parametrize(("sim", "said"), [("fail@0", 0), ("fail@39", 39)])
@virtually
async def test_failure_at_either_end(sim: str, said: int) -> None:
    listener = Listener()
    with pytest.raises(ModelError):
        await tuned(f"gap=0ms {sim}").push(listener)
    assert listener.words == HI[:said]


@virtually
async def test_failure_after_the_end_does_not_come() -> None:
    listener = Listener()
    assert await tuned("gap=0ms fail@40").push(listener) is False
    assert listener.words == HI


@pytest.mark.parametrize("gap_s", [0, 0.001])
@virtually
async def test_endless_reply_goes_on_until_it_is_closed(gap_s: float) -> None:
    listener, reply = Listener(), tuned(f"endless gap={gap_s}s")
    assert (reply.total_pieces, reply.text_length) == (None, None)
    pushed = asyncio.ensure_future(reply.push(listener))
    while len(listener.words) < 500:
        await asyncio.sleep(gap_s)
    await reply.aclose()
    assert await pushed is False
    assert listener.words[:39] == HI
    assert listener.words[39:41] == ["\n\n" + HI[0], HI[1]]


@virtually
async def test_words_that_are_tuned_are_said_32_in_a_step_without_a_delay() -> None:
    listener, counts = Listener(), set()
    pushed = asyncio.ensure_future(tuned("gap=0ms words=100").push(listener))
    while not pushed.done():
        counts.add(len(listener.words))
        await asyncio.sleep(0)
    assert sorted(counts) == [0, 32, 64, 96, 100]


@virtually
async def test_tuned_reply_that_is_held_goes_on_where_it_was() -> None:
    reply, listener = tuned("ttft=1s stall@2=5s fail@4"), Listener(wants=2)
    assert await reply.push(listener) is True
    await asyncio.sleep(10)
    assert listener.at_ms == [1000, 1125]
    assert await reply.push(listener) is True
    # It was due at 6250, and so comes at once; the next as if it had been due 100 ms ago.
    assert listener.at_ms[2:] == [11_125, 11_150]
    with pytest.raises(ModelError):
        await reply.push(listener)
    assert listener.words == HI[:4]


@pytest.mark.parametrize(("sim", "at_ms"), [("words=30", 0), ("ttft=1s", 1000), ("gap=125ms", 39 * 125)])
@virtually
async def test_whole_reply_takes_the_time_that_was_asked_for(sim: str, at_ms: float) -> None:
    listener = Listener()
    await tuned(sim, asked=WHOLE).push(listener)
    assert listener.at_ms[-1] == at_ms
