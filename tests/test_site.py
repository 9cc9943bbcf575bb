"""The page's files and the probes."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import TestClient


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/chat.js", "text/javascript"),
        ("/sse.js", "text/javascript"),
        ("/chat.css", "text/css"),
    ],
)
async def test_page_file_is_served_under_a_strict_policy(client: TestClient, path: str, content_type: str) -> None:
    response = await client.get(path)
    assert response.status == 200
    assert response.content_type == content_type
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/index.html", "/../setup.cfg", "/%2e%2e/setup.cfg", "/web/chat.js", "/chat.js/"]
)
async def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert (await client.get(path)).status == 404


async def test_probes_answer_without_a_caller(client: TestClient) -> None:
    assert await (await client.get("/health")).json() == {"status": "ok"}
    assert await (await client.get("/ready")).json() == {"status": "ready"}
