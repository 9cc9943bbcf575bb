"""A model that a provider runs: asked over HTTP, tried again, read as it streams, and let go at once."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any, Protocol

import aiohttp

from app.models import Conversation, ModelError, Piece, Reasoning, Stop, Usage
from app.models.events import Event, Events
from app.models.failures import describe, error_in, failure, redact, retry_after_s
from app.settings import Settings

log = logging.getLogger(__name__)

CONNECT_S = 10.0

# Before a request is sent again, a quarter more or less: not all that failed together come back together.
BACKOFF_S = (0.5, 1.0, 2.0)

# A provider that asks for more patience than this is busy.
RETRY_AFTER_S = 20.0

# For what follows the provider's own end, pings or none: counts, and then the end of the body, with which the
# connection may be used again.
LAST_S = 5.0
END_OF_BODY_S = 0.05

# Of the text of an error.
ERROR_BYTES = 65_536
ERROR_S = 5.0

# How often a server may refuse a body for what it does not take.
LESSONS = 2
LESSON_CHARS = 2_000


class Decoder(Protocol):
    stop: Stop | None
    is_over: bool

    def decode(self, event: Event) -> Iterator[Piece]: ...


class Wire(Protocol):
    url: str
    headers: dict[str, str]

    def body(self, conversation: Conversation) -> dict[str, Any]: ...
    def learn(self, refused: dict[str, Any], why: str) -> bool: ...
    def decoder(self) -> Decoder: ...


class Remote:
    def __init__(self, session: aiohttp.ClientSession, wire: Wire, settings: Settings) -> None:
        self._session = session
        self._wire = wire
        self._secrets = [secret for secret in (settings.model_key, settings.model_system) if secret]
        self._first_s = settings.model_first_s
        self._silence_s = settings.model_silence_s

    async def __call__(self, conversation: Conversation) -> AsyncGenerator[Piece, None]:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._first_s
        secrets = [*self._secrets, *(message.content for message in conversation.messages)]
        for backoff_s in (*BACKOFF_S, None):
            answer: Answer | None = None
            try:
                response = await self._ask(conversation, secrets, deadline_s)
                answer = Answer(response, self._wire.decoder(), secrets)
                while not answer.is_over:
                    chunk = await answer.chunk(self._silence_s if answer.has_begun else self._first_s)
                    for piece in answer.read(chunk):
                        yield piece
                await answer.finish()
                return
            except ModelError as exc:
                if backoff_s is None or not exc.passing or (answer is not None and answer.has_begun):
                    raise
                wait_s = backoff_s * random.uniform(0.75, 1.25) + (exc.retry_after_s or 0)  # noqa: S311
                if (exc.retry_after_s or 0) > RETRY_AFTER_S or loop.time() + wait_s > deadline_s:
                    raise
                log.info("Model is asked again", extra={"cause": str(exc), "afterMs": round(wait_s * 1000)})
            finally:
                if answer is not None:
                    answer.close()
            await asyncio.sleep(wait_s)

    async def _ask(
        self, conversation: Conversation, secrets: Sequence[str], deadline_s: float
    ) -> aiohttp.ClientResponse:
        """Return the response that a stream comes with.

        Raises:
            ModelError: there is none.
        """
        for lessons_left in range(LESSONS, -1, -1):
            body = self._wire.body(conversation)
            try:
                async with asyncio.timeout_at(deadline_s):
                    response = await self._session.post(
                        self._wire.url,
                        # As a file it is sent in parts, so that a long one does not hold up the event loop.
                        data=BytesIO(json.dumps(body).encode()),
                        headers={"Content-Type": "application/json", **self._wire.headers},
                        # Elsewhere the key would go, too.
                        allow_redirects=False,
                    )
            except (aiohttp.ClientError, OSError) as exc:
                # Of what is no HTTP, aiohttp quotes a line: it may be of a reply.
                cause = "what came is no HTTP" if isinstance(exc, aiohttp.ClientResponseError) else exc
                # It holds but host and path: MODEL_URL may have no more.
                why = f"no answer from {self._wire.url}: {type(exc).__name__} {cause}".rstrip()
                raise ModelError(why, passing=True) from None
            if response.status == 200 and response.content_type not in ("application/json", "text/html"):
                return response
            said = await read_error(response)
            # What the user wrote teaches nothing.
            why = redact(describe(said)[1][:LESSON_CHARS], secrets)
            if not lessons_left or response.status not in (400, 422) or not self._wire.learn(body, why):
                break
        after_s = retry_after_s(response.headers.get("Retry-After"), response.headers.get("Date"))
        # So answers what is no model's server, and one that is asked under another path than its own.
        is_elsewhere = response.status < 400 or response.status in (404, 405)
        raise failure(response.status, said, secrets, after_s, self._wire.url if is_elsewhere else None)


class Answer:
    """A response whose body is a stream of events."""

    def __init__(self, response: aiohttp.ClientResponse, decoder: Decoder, secrets: Sequence[str]) -> None:
        # Whether anything was said, and so nothing may be asked again; and whether that is part of the reply.
        self.has_begun = False
        self.has_text = False
        self.is_over = False
        # By when, once the provider has ended it, no more is waited for (by the event loop's clock).
        self._last_s: float | None = None
        self._response = response
        self._decoder = decoder
        self._secrets = secrets
        self._events = Events()

    async def chunk(self, silence_s: float) -> bytes:
        """Return what comes next of the body; nothing at its end.

        Raises:
            ModelError: nothing came for so long, or the connection broke.
        """
        has_stopped, now_s = self._decoder.stop is not None, asyncio.get_running_loop().time()
        if has_stopped and self._last_s is None:
            self._last_s = now_s + min(LAST_S, silence_s)
        try:
            async with asyncio.timeout_at(self._last_s or now_s + silence_s):
                return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as exc:
            if has_stopped:
                return b""
            silence = f" in {silence_s:g} s" if isinstance(exc, TimeoutError) else ""
            raise ModelError(f"no more{silence}: {type(exc).__name__} {exc}".rstrip(), passing=True) from None

    def read(self, chunk: bytes) -> Iterator[Piece]:
        """Yield what was said; last, how the provider ended it.

        Raises:
            ModelError: the provider did not end it, or sent something else.
        """
        decoder = self._decoder
        try:
            for event in self._events.feed(chunk) if chunk else self._events.end():
                if (error := error_in(event)) is not None:
                    raise failure(None, error, self._secrets)
                for piece in decoder.decode(event):
                    self.has_text = self.has_text or isinstance(piece, str)
                    self.has_begun = self.has_text or isinstance(piece, Reasoning) or self.has_begun
                    if not isinstance(piece, Usage):
                        # That was not its end.
                        self._last_s = None
                    yield piece
                if decoder.is_over:
                    break
        except ModelError:
            # What the provider has ended stays as it is, whatever follows.
            if decoder.stop is None:
                raise
            decoder.is_over = True
        if decoder.is_over or not chunk:
            self.is_over = True
            yield self._stop()

    def _stop(self) -> Stop:
        stop = self._decoder.stop
        if stop is None:
            kind = self._response.content_type
            raise ModelError(f"the stream ({kind}) ended before the model did", passing=True)
        if stop.reason == "refusal" and not self.has_text:
            raise ModelError("the model stopped with a refusal", "refused")
        return stop

    async def finish(self) -> None:
        """Wait a moment for the end of the body: the connection may then be used again."""
        with suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(END_OF_BODY_S):
                await self._response.content.readany()

    def close(self) -> None:
        """Close the connection, unless the body has ended."""
        self._response.close()


async def read_error(response: aiohttp.ClientResponse) -> Any:
    """Return what an error says, from JSON or as text, and close its response."""
    body = b""
    try:
        with suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(ERROR_S):
                while len(body) < ERROR_BYTES and (chunk := await response.content.readany()):
                    body += chunk
    finally:
        response.close()
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")
    return (error_in(said) or said) if isinstance(said, dict) else said


def connections() -> aiohttp.ClientSession:
    """Return what keeps connections to a provider, as many as there are replies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Compressed, pieces would wait for each other.
        headers={"Accept-Encoding": "identity"},
    )
