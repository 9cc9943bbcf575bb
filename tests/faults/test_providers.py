"""Real models against aimock (Node), and beside the providers' own libraries: `make faults` alone."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.test_utils import unused_port
from ledger import FULL, NODE
from upstream import QUESTION, model, said, text

from app.models import (
    Conversation,
    Message,
    ModelError,
    Reasoning,
    Stop,
    Usage,
)
from app.models.choice import chosen
from app.settings import Settings

pytestmark = pytest.mark.skipif(not FULL, reason="make faults alone: it installs aimock and large libraries")

TEXT = "One two three four five"
REPLY = {"content": TEXT, "usage": {"prompt_tokens": 11, "completion_tokens": 7}}
FIXTURES: dict[str, dict[str, Any]] = {
    "whole": {"response": REPLY},
    "thinks": {"response": {**REPLY, "reasoning": "Hm, a question."}},
    "length": {"response": {**REPLY, "finishReason": "length"}},
    "filter": {"response": {**REPLY, "finishReason": "content_filter"}},
    "truncated": {"response": REPLY, "latency": 20, "truncateAfterChunks": 5},
    "cut": {"response": REPLY, "latency": 100, "disconnectAfterMs": 550},
    "slow": {"response": REPLY, "streamingProfile": {"ttft": 200, "tps": 40, "jitter": 0.5}},
    "429": {"response": {"error": {"message": "slow down", "type": "rate_limit_error"}, "status": 429}},
    "529": {"response": {"error": {"message": "Overloaded", "type": "overloaded_error"}, "status": 529}},
    "500": {"response": {"error": {"message": "boom", "type": "server_error"}, "status": 500}},
    "401": {"response": {"error": {"message": "no such key", "type": "authentication_error"}, "status": 401}},
    "long": {"response": {"error": {"message": "prompt is too long: 9 tokens > 8 maximum"}, "status": 400}},
    "policy": {"response": {"error": {"message": "blocked by the content policy"}, "status": 400}},
    "drop": {"response": REPLY, "chaos": {"dropRate": 1}},
    "malformed": {"response": REPLY, "chaos": {"malformedRate": 1}},
    "disconnect": {"response": REPLY, "chaos": {"disconnectRate": 1}},
    "ratelimit": {"response": REPLY, "chaos": {"rateLimitRate": 1}},
}


@pytest.fixture(scope="module")
def aimock(node: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an aimock that says what the fixtures say."""
    fixtures = [{"match": {"userMessage": name}, **fixture} for name, fixture in FIXTURES.items()]
    path = tmp_path_factory.mktemp("aimock") / "fixtures.json"
    path.write_text(json.dumps({"fixtures": fixtures}))
    port = unused_port()
    options = f"-p {port} -f {path} -c 4 --log-level warn"
    process = subprocess.Popen([node, NODE / "node_modules/.bin/llmock", *options.split()])
    try:
        asyncio.run(listening(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


async def listening(port: int, timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            except OSError:
                await asyncio.sleep(0.05)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.remote.BACKOFF_S", (0.02, 0.04, 0.08))


@pytest.fixture(params=["openai", "anthropic"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def asked(url: str, wire: str, name: str) -> tuple[list[Any], ModelError | None]:
    base = f"{url}/v1" if wire == "openai" else url
    async with model(wire, base, model="openai:o3" if wire == "openai" else "anthropic:claude-opus-4-6") as remote:
        return await said(remote, Conversation([Message("user", name)], stream=True))


@pytest.mark.parametrize(
    ("name", "stop"), [("whole", "end"), ("thinks", "end"), ("slow", "end"), ("length", "length")]
)
async def test_whole_replies(aimock: str, wire: str, name: str, stop: Any) -> None:
    pieces, failure = await asked(aimock, wire, name)
    assert (text(pieces), pieces[-1], failure) == (TEXT, Stop(stop), None)
    assert [piece for piece in pieces if isinstance(piece, Usage)][-1] == Usage(11, 7)
    thought = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    assert thought == ("Hm, a question." if name == "thinks" else "")


@pytest.mark.parametrize("name", ["truncated", "cut"])
async def test_replies_that_break_off(aimock: str, wire: str, name: str) -> None:
    pieces, failure = await asked(aimock, wire, name)
    assert failure.reason is None
    assert TEXT.startswith(text(pieces))
    assert 0 < len(text(pieces)) < len(TEXT)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("429", "busy"),
        ("529", "busy"),
        ("500", None),
        ("401", None),
        ("long", "too_long"),
        ("policy", "refused"),
        ("drop", None),
        ("malformed", None),
        ("disconnect", None),
        ("ratelimit", "busy"),
    ],
)
async def test_failures(aimock: str, wire: str, name: str, reason: str | None) -> None:
    pieces, failure = await asked(aimock, wire, name)
    assert (text(pieces), failure.reason) == ("", reason)


def library(name: str) -> Any:
    assert importlib.util.find_spec(name), f"there is no {name}: .venv/bin/pip install -e '.[judges]'"
    return importlib.import_module(name)


async def test_openai_library_reads_the_same(llmock: Any) -> None:
    async with library("openai").AsyncOpenAI() as client:
        stream = await client.chat.completions.create(
            model="model-1",
            stream=True,
            stream_options={"include_usage": True},
            messages=[{"role": "user", "content": QUESTION}],
        )
        read, usage = "", None
        async for chunk in stream:
            read += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            usage = chunk.usage or usage
    assert (read, Usage(usage.prompt_tokens, usage.completion_tokens)) == await ours("openai")


async def test_anthropic_library_reads_the_same(llmock: Any) -> None:
    async with library("anthropic").AsyncAnthropic() as client:
        messages = [{"role": "user", "content": QUESTION}]
        async with client.messages.stream(model="model-1", max_tokens=4096, messages=messages) as stream:
            read = "".join([text async for text in stream.text_stream])
            usage = (await stream.get_final_message()).usage
    assert (read, Usage(usage.input_tokens, usage.output_tokens)) == await ours("anthropic")


async def ours(wire: str) -> tuple[str, Usage]:
    """Return what our model reads of llmock, which always gives the same question the same reply."""
    async with chosen(Settings.from_environ(os.environ | {"MODEL": f"{wire}:model-1"})) as remote:
        pieces, _ = await said(remote)
    return text(pieces), [piece for piece in pieces if isinstance(piece, Usage)][-1]
