"""aiosseclient (PyPI): GET alone; coming back is up to its user, who has the last id."""

import asyncio
import json
import os
import sys
from urllib.parse import urlencode

import aiohttp
from aiosseclient import aiosseclient

env = os.environ
ids = {"orgId": env["CHAT_ORG"], "userId": env["CHAT_USER"]}
query = urlencode(ids | {"message": env["CHAT_MESSAGE"], "sim": env["CHAT_SIM"]})
url, stop_after = f"{env['CHAT_URL']}/chat/stream", float(env.get("CHAT_STOP_AFTER", "inf"))
headers = {"x-org-id": env["CHAT_ORG"], "x-user-id": env["CHAT_USER"], "idempotency-key": env["CHAT_KEY"]}


async def main() -> None:
    last_id, text, last, tries = None, "", None, 0
    while last is None and tries < 8:
        wait_s, tries = 0.1 * 2**tries, tries + 1
        try:
            stream = aiosseclient(f"{url}?{query}", last_id, headers=dict(headers), raise_for_status=True)
            while sse := await asyncio.wait_for(anext(stream, None), float(env.get("CHAT_SILENCE_S", 30))):
                event, last_id = json.loads(sse.data), sse.id or last_id
                ends = event.get("done") or event.get("error", "Cut short") != "Cut short"
                last, text = event if ends else None, text + event.get("token", "")
                if len(text) >= stop_after and not ends:  # more than once does no harm
                    async with aiohttp.request("DELETE", f"{url}/{last_id[:36]}", headers=headers):
                        pass
        except (aiohttp.ClientError, TimeoutError) as error:  # refused, or the connection broke: come back
            last = None if getattr(error, "status", 503) in (429, 502, 503, 504) else {"error": str(error)}
            wait_s = float((getattr(error, "headers", None) or {}).get("retry-after", wait_s))
        await asyncio.sleep(0 if last else wait_s)
    sys.stdout.buffer.write(text.encode())
    sys.exit(0 if last and last.get("chars") == len(text) else 3)


asyncio.run(main())
