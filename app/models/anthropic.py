"""Anthropic's messages: requests and streams, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.models import Conversation, Piece, Reasoning, Stop, Usage
from app.models.events import Event, count
from app.settings import Settings

BASE_URL = "https://api.anthropic.com"


class Messages:
    def __init__(self, settings: Settings) -> None:
        base = settings.model_url or BASE_URL
        self.url = base.removesuffix("/v1") + "/v1/messages"
        self.headers = {"anthropic-version": "2023-06-01"}
        if settings.model_key:
            self.headers["x-api-key"] = settings.model_key
        self._settings = settings

    def body(self, conversation: Conversation) -> dict[str, Any]:
        settings = self._settings
        body = {
            "model": settings.model_name,
            "messages": [{"role": said.role, "content": said.content} for said in conversation.messages],
            "stream": True,
            "max_tokens": conversation.limit(settings.model_max_tokens),
        }
        if settings.model_system:
            body["system"] = settings.model_system
        return body | (settings.model_extra or {})

    def learn(self, refused: dict[str, Any], why: str) -> bool:
        return False

    def decoder(self) -> Decoder:
        return Decoder()


STOPS = {
    "max_tokens": Stop("length"),
    "model_context_window_exceeded": Stop("length"),
    "refusal": Stop("refusal"),
}


class Decoder:
    """One reply. `stop` is set once the provider has ended it, `is_over` once nothing more is to come."""

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self.is_over = False
        self._last = Stop("end")
        self._usage = Usage(None, None)

    def decode(self, event: Event) -> Iterator[Piece]:
        match event:
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": str(text)}} if text:
                yield text
            case {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": str(text)}} if (
                text
            ):
                yield Reasoning(text)
            case {"type": "content_block_start", "content_block": {"type": "text", "text": str(text)}} if text:
                yield text
            case {"type": "message_start", "message": dict(message)}:
                yield self._count(message.get("usage"))
            case {"type": "message_delta", "delta": dict(delta), **rest}:
                self._last = STOPS.get(str(delta.get("stop_reason")), self._last)
                yield self._count(rest.get("usage"))
            case {"type": "message_stop"}:
                self.stop, self.is_over = self._last, True

    def _count(self, usage: Any) -> Usage:
        """Counts are cumulative, and not all of them come each time; what was cached is input, too."""
        usage = usage if isinstance(usage, dict) else {}
        input_tokens, output_tokens = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
        if input_tokens is not None:
            cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
            input_tokens += sum(count(usage.get(key)) or 0 for key in cached)
        before = self._usage
        self._usage = Usage(
            before.input if input_tokens is None else input_tokens,
            before.output if output_tokens is None else output_tokens,
        )
        return self._usage
