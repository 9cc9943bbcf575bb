"""launchdarkly-eventsource (PyPI): it comes back by itself, with its last id, as its error strategy says."""

import json
import os
import sys
import time
from urllib.parse import urlencode

import urllib3
from ld_eventsource import SSEClient
from ld_eventsource.actions import Event, Fault, Start
from ld_eventsource.config import ConnectStrategy, ErrorStrategy
from ld_eventsource.errors import HTTPStatusError

env = os.environ
ids = {"orgId": env["CHAT_ORG"], "userId": env["CHAT_USER"]}
query = urlencode({"message": env["CHAT_MESSAGE"], "sim": env["CHAT_SIM"], **ids})
url, stop_after = f"{env['CHAT_URL']}/chat/stream", float(env.get("CHAT_STOP_AFTER", "inf"))
headers = {"x-org-id": env["CHAT_ORG"], "x-user-id": env["CHAT_USER"], "idempotency-key": env["CHAT_KEY"]}
timeout = {"timeout": urllib3.Timeout(read=float(env.get("CHAT_SILENCE_S", 30)))}
connect = ConnectStrategy.http(f"{url}?{query}", headers=headers, urllib3_request_options=timeout)
text, last, reply_id, stopped = "", None, None, False
for action in SSEClient(connect, 0.1, error_strategy=ErrorStrategy.continue_with_max_attempts(8)).all:
    if isinstance(action, Start):
        reply_id = action.headers["x-message-id"]
    elif isinstance(action, Fault) and isinstance(action.error, HTTPStatusError):
        if action.error.status not in (429, 502, 503, 504):
            break
        time.sleep(int(action.error.headers.get("retry-after", 0)))
    elif isinstance(action, Event):
        event = json.loads(action.data)
        text += event.get("token", "")
        if event.get("done") or event.get("error", "Cut short") != "Cut short":
            last = event
            break
    if len(text) >= stop_after and reply_id and not stopped:
        stopped = urllib3.request("DELETE", f"{url}/{reply_id}", headers=headers)
sys.stdout.buffer.write(text.encode())
sys.exit(0 if last and last.get("chars") == len(text) else 3)
