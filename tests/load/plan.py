"""What is to be asked, where, by whom and for how long. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

# Nothing has come for so long, not even a ping: the stream has failed.
SILENCE_S = 60.0

# How long until a question is asked again that has failed, unless the server says more.
AGAIN_S = 1.0


class LoadError(Exception):
    """Why no load can be put on a server."""


@dataclass(frozen=True)
class Target:
    """A server, or what stands before one."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Target:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise LoadError(f"{url}: {exc}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoadError(f"{url} is no URL, expected one like http://127.0.0.1:3000")
        if parts.username or parts.query or parts.fragment:
            raise LoadError("the URL has a user, a query or a fragment, expected none: say who asks by --header")
        path = parts.path.rstrip("/").removesuffix("/chat/stream")
        return cls(parts.scheme, parts.hostname, port or {"http": 80, "https": 443}[parts.scheme], path)

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def stream_path(self) -> str:
        # By far the longest line of a stream is left out, of which nothing is asked here.
        return f"{self.path}/chat/stream?fullText=0"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.stream_path}"


@dataclass(frozen=True)
class Plan:
    streams: int
    seconds: float
    # The first begin spread over it.
    ramp_s: float
    # One, or two that get every other stream.
    targets: Sequence[Target]
    # The headers of each.
    users: Sequence[Mapping[str, str]]
    question: Mapping[str, str]
    silence_s: float = SILENCE_S

    @property
    def body(self) -> bytes:
        return json.dumps(self.question).encode()

    def user_of(self, stream: int) -> int:
        return stream // len(self.targets) % len(self.users)

    def request(self, target: Target, user: Mapping[str, str]) -> bytes:
        """Return a question as it goes over the wire."""
        head = [
            f"POST {target.stream_path} HTTP/1.1",
            f"Host: {target.netloc}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            f"Content-Length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in user.items()),
        ]
        return "\r\n".join([*head, "", ""]).encode() + self.body
