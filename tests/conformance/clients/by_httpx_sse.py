"""httpx-sse (PyPI), with httpx."""

import json
import os
import sys
import time
from contextlib import suppress

import httpx
from httpx_sse import connect_sse

env = os.environ
url, stop_after = f"{env['CHAT_URL']}/chat/stream", float(env.get("CHAT_STOP_AFTER", "inf"))
headers = {"x-org-id": env["CHAT_ORG"], "x-user-id": env["CHAT_USER"], "idempotency-key": env["CHAT_KEY"]}
question = {"message": env["CHAT_MESSAGE"], "sim": env["CHAT_SIM"]}
client = httpx.Client(headers=headers, timeout=float(env.get("CHAT_SILENCE_S", 30)))
reply_id, text, last, tries, stopped = None, "", None, 0, False
while last is None and tries < 8:
    asked = ("GET", f"{url}/{reply_id}?offset={len(text)}") if reply_id else ("POST", url)
    wait_s, tries = 0.1 * 2**tries, tries + 1
    broken = suppress(httpx.TransportError)  # come back
    with broken, connect_sse(client, *asked, **({} if reply_id else {"json": question})) as source:
        if source.response.status_code in (429, 502, 503, 504):
            wait_s = int(source.response.headers.get("retry-after", 0))
        elif source.response.status_code != 200:
            last = {"error": source.response.status_code}
        else:
            reply_id = source.response.headers["x-message-id"]
            if stop_after == 0:
                stopped = client.delete(f"{url}/{reply_id}")
            for sse in source.iter_sse():
                event = json.loads(sse.data)
                ends = event.get("done") or event.get("error", "Cut short") != "Cut short"
                last, text = event if ends else None, text + event.get("token", "")
                if len(text) >= stop_after and not stopped:
                    stopped = client.delete(f"{url}/{reply_id}")
    time.sleep(0 if last else wait_s)
sys.stdout.buffer.write(text.encode())
sys.exit(0 if last and last.get("chars") == len(text) else 3)
