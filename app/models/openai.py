"""OpenAI's chat completions, which most other servers speak too: requests and streams, no I/O."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from app.models import Conversation, Piece, Reasoning, Stop, Usage
from app.models.events import DONE, Event, count
from app.settings import Settings

log = logging.getLogger(__name__)

BASE_URL = "https://api.openai.com/v1"

LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}

# How servers say that they do not know a field, in so many words.
NOT_TAKEN = re.compile(
    r"support|permitted|forbidden|allowed|unknown|unrecogni[sz]ed|unexpected|instead", re.IGNORECASE
)


class ChatCompletions:
    def __init__(self, settings: Settings) -> None:
        self.url = (settings.model_url or BASE_URL) + "/chat/completions"
        self.headers = {"Authorization": f"Bearer {settings.model_key}"} if settings.model_key else {}
        self._settings = settings
        # OpenAI's newer models take but the one name, most other servers but the other.
        self._limit = "max_tokens" if settings.model_url else "max_completion_tokens"
        self._asks_for_usage = True

    def body(self, conversation: Conversation) -> dict[str, Any]:
        settings = self._settings
        system = [{"role": "system", "content": settings.model_system}] if settings.model_system else []
        said = [{"role": message.role, "content": message.content} for message in conversation.messages]
        body = {
            "model": settings.model_name,
            "messages": system + said,
            "stream": True,
            self._limit: conversation.limit(settings.model_max_tokens),
        }
        if self._asks_for_usage:
            body["stream_options"] = {"include_usage": True}
        return body | (settings.model_extra or {})

    def learn(self, refused: dict[str, Any], why: str) -> bool:
        """Learn what this server does not take; return whether what it refused so may be sent in another form."""
        if "stream_options" in refused and re.search("stream_options|include_usage", why):
            self._asks_for_usage = False
            log.info("Model gives no usage")
            return "stream_options" not in (self._settings.model_extra or {})
        for limit, other in LIMITS.items():
            if limit in refused and re.search(rf"\b{limit}\b", why) and NOT_TAKEN.search(why):
                self._limit = other
                return True
        return False

    def decoder(self) -> Decoder:
        return Decoder()


STOPS = {"length": Stop("length"), "content_filter": Stop("refusal")}


class Decoder:
    """One reply. `stop` is set once the provider has ended it, `is_over` once nothing more is to come."""

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self.is_over = False
        self._is_refusal = False

    def decode(self, event: Event) -> Iterator[Piece]:
        if event is DONE:
            self.is_over = True
            return
        match event:
            # Counts come in a chunk without choices, or with every chunk.
            case {"usage": {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}}:
                yield Usage(count(input_tokens), count(output_tokens))
        match event:
            case {"choices": [{"delta": dict(delta), **choice}, *_]}:
                yield from self._delta(delta)
                self._end(choice.get("finish_reason"))
            case {"choices": [{"finish_reason": str(reason)}, *_]}:
                self._end(reason)

    def _delta(self, delta: dict[str, Any]) -> Iterator[Piece]:
        # Some servers send it under both names.
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning and isinstance(reasoning, str):
            yield Reasoning(reasoning)
        match delta:
            case {"content": str(text)} if text:
                yield text
            case {"refusal": str(text)} if text:
                self._is_refusal = True
                yield text

    def _end(self, reason: Any) -> None:
        # Some send an empty one with each chunk; "error" comes with the error, or in its place.
        if reason and isinstance(reason, str) and reason != "error":
            self.stop = Stop("refusal") if self._is_refusal else STOPS.get(reason, Stop("end"))
