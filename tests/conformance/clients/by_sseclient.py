"""sseclient-py (PyPI), with requests."""

import json
import os
import sys
import time
from contextlib import suppress

import requests
from sseclient import SSEClient

env = os.environ
url, stop_after = f"{env['CHAT_URL']}/chat/stream", float(env.get("CHAT_STOP_AFTER", "inf"))
headers = {"x-org-id": env["CHAT_ORG"], "x-user-id": env["CHAT_USER"], "idempotency-key": env["CHAT_KEY"]}
question = {"message": env["CHAT_MESSAGE"], "sim": env["CHAT_SIM"]}
how = {"headers": headers, "stream": True, "timeout": float(env.get("CHAT_SILENCE_S", 30))}
reply_id, text, last, tries, stopped = None, "", None, 0, False
while last is None and tries < 8:
    wait_s, tries = 0.1 * 2**tries, tries + 1
    with suppress(requests.RequestException):  # the connection broke: come back
        rest = f"{url}/{reply_id}?offset={len(text)}"
        response = requests.get(rest, **how) if reply_id else requests.post(url, json=question, **how)
        if response.status_code in (429, 502, 503, 504):
            wait_s = int(response.headers.get("retry-after", 0))
        elif response.status_code != 200:
            last = {"error": response.status_code}
        else:
            reply_id = response.headers["x-message-id"]
            if stop_after == 0:
                stopped = requests.delete(f"{url}/{reply_id}", headers=headers)
            for sse in SSEClient(response).events():
                event = json.loads(sse.data)
                ends = event.get("done") or event.get("error", "Cut short") != "Cut short"
                last, text = event if ends else None, text + event.get("token", "")
                if len(text) >= stop_after and not stopped:
                    stopped = requests.delete(f"{url}/{reply_id}", headers=headers)
    time.sleep(0 if last else wait_s)
sys.stdout.buffer.write(text.encode())
sys.exit(0 if last and last.get("chars") == len(text) else 3)
