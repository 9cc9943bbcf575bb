"""The client of web/README.md, to the letter, but for how long it takes a silence for a pause. It has no Stop."""

import os
import re
import sys
from pathlib import Path

env = os.environ
readme = (Path(__file__).parents[3] / "web/README.md").read_text("utf-8")
code = re.search(r"^```python\n(import http.*?)^```$", readme, re.DOTALL | re.MULTILINE)[1]
exec(code.replace("timeout=40", f"timeout={float(env.get('CHAT_SILENCE_S', 30))}"))

ids = {"x-org-id": env["CHAT_ORG"], "x-user-id": env["CHAT_USER"], "idempotency-key": env["CHAT_KEY"]}
headers = ids | {"content-type": "application/json"}
text, exit_code = "", 0
try:
    for token in chat(env["CHAT_URL"], headers, env["CHAT_MESSAGE"], sim=env["CHAT_SIM"]):  # noqa: F821
        text += token
except (OSError, RuntimeError) as error:
    print(error, file=sys.stderr)
    exit_code = 3
sys.stdout.buffer.write(text.encode())
sys.exit(exit_code)
