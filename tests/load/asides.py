"""What is asked beside the streams: whether anybody listens, why all is refused, and the end of what is left."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from urllib.parse import quote

import aiohttp

from .figures import hints
from .plan import LoadError, Plan, Target

# Each takes no longer.
TIMEOUT_S = 5.0
AT_ONCE = 50

REFUSALS = (400, 401, 403)


async def check_reachable(targets: Iterable[Target]) -> None:
    for target in targets:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                _, writer = await asyncio.open_connection(target.host, target.port)
        except TimeoutError:
            raise LoadError(f"{target}: no connection within {TIMEOUT_S:g} s") from None
        except OSError as exc:
            number = exc.errno or 0
            # Those of names are below 0.
            raise LoadError(f"{target}: {os.strerror(number) if number > 0 else exc.strerror or exc}") from None
        writer.close()


async def refusal_of_all(plan: Plan, target: Target) -> str | None:
    """Return what the server says to each user's question there, or nothing if it takes one, or is late."""
    why = None
    with suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(TIMEOUT_S), aiohttp.ClientSession() as session:
            for user in plan.users:
                headers = {"Content-Type": "application/json", **user}
                request = session.post(target.url, data=plan.body, headers=headers, allow_redirects=False)
                async with request as response:
                    if response.status not in REFUSALS:
                        reply_id = response.headers.get("x-message-id")
                        if reply_id:
                            await stop(session, target, user, reply_id)
                        return None
                    why = why or f"{target}: {await told(response)}"
            return why
    return None


async def told(response: aiohttp.ClientResponse) -> str:
    """Return a refusal in the server's own words, and what to do."""
    said = {}
    with suppress(ValueError):
        said = json.loads(await response.content.read(4096))
    words = [said.get(name) for name in ("error", "message")] if isinstance(said, dict) else []
    line = f"{response.status} {': '.join(word for word in words if isinstance(word, str))}".rstrip()
    lines = ["".join(char if char.isprintable() else "." for char in line), *hints([f"{response.status} "])]
    if "Bad sim" in words and "x-sim-faults" not in response.headers:
        lines.append("-> Bad sim: start the server with SIM_FAULTS=1")
    return "\n".join(lines)


async def stop_replies(plan: Plan, left: Mapping[int, str]) -> None:
    """Stop the replies of these streams, as far as there is time: nobody reads them any more."""
    if not left:
        return

    async def stop_one(number: int, reply_id: str) -> None:
        target, user = plan.targets[number % len(plan.targets)], plan.users[plan.user_of(number)]
        with suppress(aiohttp.ClientError, OSError):
            await stop(session, target, user, reply_id)

    with suppress(TimeoutError):
        async with (
            asyncio.timeout(TIMEOUT_S),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session,
        ):
            await asyncio.gather(*(stop_one(number, reply_id) for number, reply_id in left.items()))


async def stop(session: aiohttp.ClientSession, target: Target, user: Mapping[str, str], reply_id: str) -> None:
    path, _, _ = target.url.partition("?")
    url = f"{path}/{quote(reply_id, safe='')}"
    async with session.delete(url, headers=user, allow_redirects=False):
        pass
