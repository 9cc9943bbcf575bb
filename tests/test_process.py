"""The real process: start, signals, kill -9, a taken port, bad settings."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from processes import Processes, ask, has_ended, status_of, workers_of
from support import Rows, Tenant

from app.__main__ import greet
from app.settings import Settings
from app.storage.migrate import MIGRATION_LOCK
from app.storage.store import DEMO_ORG_ID, DEMO_USER_ID


def test_embedded_database_is_made_seeded_kept_and_stopped(start: Processes, tmp_path: Path) -> None:
    demo = Tenant(str(DEMO_ORG_ID), str(DEMO_USER_ID))
    data = tmp_path / "data"
    process = start(DATA_DIR=str(data))
    base = process.listening()
    with ask(base, demo, "Hi") as stream:
        assert b'"done":true' in stream.read()
    postmaster = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    process.popen.send_signal(signal.SIGTERM)
    code, terminal = process.end()
    assert code == 0
    assert has_ended(postmaster)

    # What the terminal says is what a developer pastes.
    assert f"Test page  {base}/" in terminal
    assert f"curl -N {base}/chat/stream" in terminal
    assert str(DEMO_ORG_ID) in terminal

    # The same data at the next start.
    process = start(DATA_DIR=str(data))
    base = process.listening()
    request = urllib.request.Request(f"{base}/chats", headers=demo.headers)
    with urllib.request.urlopen(request) as response:
        assert [chat["title"] for chat in json.load(response)["chats"]] == ["Hi"]
    process.popen.send_signal(signal.SIGINT)
    assert process.end()[0] == 0


def test_embedded_database_left_by_a_kill_is_taken_over_and_stopped(start: Processes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    process = start(DATA_DIR=str(data))
    process.listening()
    process.popen.kill()
    process.end()
    postmaster = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    assert postmaster.is_running()
    process = start(DATA_DIR=str(data))
    process.listening()
    process.popen.send_signal(signal.SIGTERM)
    assert process.end()[0] == 0
    assert has_ended(postmaster)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_streams_after_their_grace_saves_them_and_tells_the_client(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant, number: signal.Signals
) -> None:
    # Long enough to be asked meanwhile, and shorter than the story.
    process = start(DATABASE_URL=postgres_url, SHUTDOWN_GRACE_S="2", SIM_DELAY_MS="50-50")
    base = process.listening()
    with ask(base, tenant) as stream:
        first = stream.readline()
        process.popen.send_signal(number)
        stopping = process.wait_for("Stopping")
        assert (stopping["replies"], stopping["graceS"]) == (1, 2)
        assert status_of(f"{base}/ready") == 503
        assert status_of(f"{base}/health") == 200
        assert status_of(f"{base}/chats", tenant) == 503
        began_s = time.monotonic()
        body = first + stream.read()
    assert process.end()[0] == 0
    assert time.monotonic() - began_s < 5

    assert body.endswith(
        b'data: {"error":"Stream failed","message":"The server is stopping; what it said so far is saved."}\n\n'
    )
    seen = "".join(
        json.loads(line[6:])["token"] for line in body.split(b"\n") if line.startswith(b'data: {"token"')
    )
    assert rows.messages(tenant.org_id)[1] == ("assistant", seen, "interrupted")
    assert [line for line in process.lines if line["level"] == "error"] == []


def test_stream_that_ends_within_the_grace_is_whole(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    process = start(DATABASE_URL=postgres_url)
    with ask(process.listening(), tenant, "Hi") as stream:
        stream.readline()
        process.popen.send_signal(signal.SIGTERM)
        assert b'"done":true' in stream.read()
    assert process.end()[0] == 0
    assert rows.messages(tenant.org_id)[1][2] == "complete"


def test_three_signals_in_a_row_change_nothing(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    process = start(DATABASE_URL=postgres_url, SHUTDOWN_GRACE_S="0.5", SIM_DELAY_MS="50-50")
    with ask(process.listening(), tenant) as stream:
        stream.readline()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            process.popen.send_signal(number)
        body = stream.read()
    assert process.end()[0] == 0
    assert b"The server is stopping" in body
    assert rows.messages(tenant.org_id)[1][2] == "interrupted"


def test_kill_9_loses_no_question_and_the_next_start_closes_its_reply(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    process = start(DATABASE_URL=postgres_url)
    with ask(process.listening(), tenant) as stream:
        stream.readline()
        process.popen.kill()
        process.end()
    assert rows.messages(tenant.org_id)[1:] == [("assistant", "", "streaming")]
    process = start(DATABASE_URL=postgres_url)
    process.listening()
    process.wait_for("Closed replies that a dead server left open")
    assert rows.messages(tenant.org_id) == [
        ("user", "tell a story", "complete"),
        ("assistant", "", "interrupted"),
    ]


def test_half_sent_body_does_not_hold_up_the_stop(start: Processes, postgres_url: str, tenant: Tenant) -> None:
    process = start(DATABASE_URL=postgres_url)
    host, port = process.listening().removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
            f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n\r\n{{".encode()
        )
        assert status_of(f"http://{host}:{port}/health") == 200
        began_s = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert process.end()[0] == 0
    assert time.monotonic() - began_s < 4


def test_reader_that_stops_in_the_middle_of_a_page_is_closed_after_the_write_timeout(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    process = start(DATABASE_URL=postgres_url, WRITE_TIMEOUT_S="1")
    base = process.listening()
    with ask(base, tenant, "Hi") as stream:
        chat_id = stream.headers["x-chat-id"]
        stream.read()
    # 12 bytes each in JSON: more than the kernel takes off the server's hands.
    rows("update messages set content = repeat('😀', 1000000) where org_id = %s", tenant.org_id)
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as reader:
        reader.sendall(
            f"GET /chats/{chat_id}/messages HTTP/1.1\r\nHost: localhost\r\n"
            f"x-org-id: {tenant.org_id}\r\nx-user-id: {tenant.user_id}\r\n\r\n".encode()
        )
        assert reader.recv(1000).startswith(b"HTTP/1.1 200")
        give_up = time.monotonic() + 1 + 5
        while any(
            connection.raddr == reader.getsockname()
            for connection in psutil.Process(process.popen.pid).net_connections("tcp")
        ):
            assert time.monotonic() < give_up, "the server holds the page"
            time.sleep(0.05)
    process.popen.send_signal(signal.SIGTERM)
    assert process.end()[0] == 0
    assert [line for line in process.lines if line["level"] == "error"] == []


def test_demo_data_is_seeded_only_where_it_is_asked_for(start: Processes, postgres_url: str, rows: Rows) -> None:
    rows.forget_demo()
    process = start(DATABASE_URL=postgres_url)
    base = process.listening()
    assert rows("select 1 from users where email = 'demo@example.com'") == []
    assert status_of(f"{base}/chats", Tenant(str(DEMO_ORG_ID), str(DEMO_USER_ID))) == 403
    process.popen.terminate()
    assert "curl" not in process.end()[1]

    start(DATABASE_URL=postgres_url, SEED_DEMO="1").listening()
    assert rows("select org_id::text, id::text from users where email = 'demo@example.com'") == [
        (str(DEMO_ORG_ID), str(DEMO_USER_ID))
    ]
    rows.forget_demo()


def test_taken_port_is_one_line_before_a_database_is_made(start: Processes, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(PORT=str(port), DATA_DIR=str(tmp_path / "data"))
        assert process.end() == (
            1,
            f"llm-app: PORT is {port}, which is taken: try another, or PORT=0 make run for a free one\n",
        )
    assert not (tmp_path / "data").exists()


def test_terminal_says_which_model_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("app.logs.say", said.append)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        greet(Settings(), listener)
        greet(Settings(model="openai:gpt"), listener)
        monkeypatch.setattr("app.__main__.OWN_MODEL", object())
        greet(Settings(), listener)
    assert re.findall("  Model      (.*)", "".join(said)) == ["simulated", "openai:gpt", "your own"]


def test_unreachable_database_is_one_line(start: Processes) -> None:
    code, terminal = start(DATABASE_URL="postgresql://u:secret@127.0.0.1:1/none").end()
    assert code == 1
    assert re.fullmatch(r"llm-app: the database of DATABASE_URL cannot be reached: .*127\.0\.0\.1.*\n", terminal)
    assert "secret" not in terminal


def test_headers_that_anybody_could_send_are_not_believed_beyond_this_machine(start: Processes) -> None:
    code, stderr = start(HOST="0.0.0.0", DATABASE_URL="postgresql://127.0.0.1:1/x").end()
    assert code == 1
    [line] = stderr.splitlines()
    assert line.startswith("llm-app: HOST is 0.0.0.0, which other machines reach")
    for allowed in ({"TRUST_IDENTITY_HEADERS": "1"}, {"JWT_SECRET": "x" * 32}):
        code, stderr = start(HOST="0.0.0.0", DATABASE_URL="postgresql://127.0.0.1:1/x", **allowed).end()
        assert "the database of DATABASE_URL cannot be reached" in stderr


def test_bad_setting_is_one_line(start: Processes) -> None:
    code, terminal = start(HEARTBEAT_S="soon").end()
    assert (code, terminal) == (
        1,
        "llm-app: HEARTBEAT_S is 'soon', expected a number of seconds from 0.1 to 86400\n",
    )


def test_log_lines_are_json_with_these_keys_and_no_text(
    start: Processes, postgres_url: str, tenant: Tenant
) -> None:
    process = start(DATABASE_URL=postgres_url, SIM_DELAY_MS="0-0")
    base = process.listening()
    with ask(base, tenant, "Marmalade") as stream:
        stream.read()
        request_id = stream.headers["x-request-id"]
    query = f"message=Marmalade&orgId={tenant.org_id}&userId={tenant.user_id}"
    with urllib.request.urlopen(f"{base}/chat/stream?{query}") as stream:
        stream.read()
    process.popen.terminate()
    process.end()
    assert [list(line)[:5] for line in process.lines] == [
        ["timestamp", "level", "message", "requestId", "pid"]
    ] * len(process.lines)
    first = [line for line in process.lines if line["requestId"] == request_id]
    assert [(line["level"], line["message"]) for line in first] == [
        ("info", "Starting stream"),
        ("info", "Stream completed"),
        ("info", "Request completed"),
    ]
    assert list(first[0])[5:] == ["messageId", "textLength"]
    assert list(first[1])[5:] == ["messageId", "piecesStreamed", "totalLength", "usage"]
    assert list(first[2])[5:] == ["method", "path", "status", "durationMs", "outcome"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first[0]["timestamp"])
    assert "Marmalade" not in str(process.lines)


def test_replies_of_a_killed_server_are_closed_by_a_living_one_within_seconds(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    start(DATABASE_URL=postgres_url).listening()
    process = start(DATABASE_URL=postgres_url)
    with ask(process.listening(), tenant) as stream:
        stream.readline()
        process.popen.kill()
        process.end()
    deadline_s = time.monotonic() + 8
    while rows.messages(tenant.org_id)[1][2] == "streaming":
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert rows.messages(tenant.org_id)[1] == ("assistant", "", "interrupted")


# Python drops what is raised in a finalizer, as in the callbacks by which its imports let go of their locks.
UNHEARD = """
import os, signal

class Unheard:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signal_in_a_finalizer_while_modules_are_imported_is_taken(start: Processes, postgres_url: str) -> None:
    imports = "import sys, runpy; sys.addaudithook(lambda event, args: args[0] == 'app.server' and Unheard())"
    code = f"{UNHEARD}\n{imports}\nrunpy.run_module('app', run_name='__main__')"
    assert start("-c", code, DATABASE_URL=postgres_url).end() == (0, "")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_signal_in_a_finalizer_during_the_start_is_taken_when_it_serves(
    start: Processes, postgres_url: str, workers: str
) -> None:
    migrates = "from app import __main__ as app; app.migrate = lambda *args, **named: Unheard()"
    process = start("-c", f"{UNHEARD}\n{migrates}\napp.main()", DATABASE_URL=postgres_url, WORKERS=workers)
    exit_code, terminal = process.end()
    assert exit_code == 0
    assert "SystemExit: 0" in terminal


@pytest.mark.parametrize("delay_s", [0.3, 0.6, 0.9, 1.2, 1.5])
def test_first_start_that_is_stopped_can_be_started_again(
    start: Processes, tmp_path: Path, delay_s: float
) -> None:
    process = start(DATA_DIR=str(tmp_path / "data"))
    # Anywhere in the start: that is the point, and there is no event to wait for.
    with suppress(subprocess.TimeoutExpired):
        process.popen.wait(delay_s)
    process.popen.terminate()
    code, terminal = process.end()
    assert code in (0, -signal.SIGTERM), terminal
    assert [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])] == []
    process = start(DATA_DIR=str(tmp_path / "data"))
    process.listening()
    process.popen.terminate()
    assert process.end()[0] == 0


def test_first_start_that_was_killed_is_one_line_that_says_what_to_do(start: Processes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "PG_VERSION").write_text("18\n")
    code, terminal = start(DATA_DIR=str(data)).end()
    assert code == 1
    assert terminal == f"llm-app: the first start of the database in {data} was cut short: rm -rf {data}\n"


def test_signal_is_taken_while_another_server_migrates(start: Processes, postgres_url: str, rows: Rows) -> None:
    rows("select pg_advisory_lock(%s)", MIGRATION_LOCK)
    try:
        process = start(DATABASE_URL=postgres_url)
        waiting = "select 1 from pg_stat_activity where query like %s and state like 'idle%%'"
        deadline_s = time.monotonic() + 10
        while not rows(waiting, "select pg_try_advisory_xact_lock%"):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        process.popen.terminate()
        assert process.end()[0] == 0
    finally:
        rows("select pg_advisory_unlock(%s)", MIGRATION_LOCK)


def test_killed_database_does_not_hold_up_the_stop(start: Processes, tmp_path: Path) -> None:
    process = start(DATA_DIR=str(tmp_path / "data"))
    process.listening()
    postmaster = psutil.Process(int((tmp_path / "data" / "postmaster.pid").read_text().split()[0]))
    postmaster.kill()
    process.popen.terminate()
    code, terminal = process.end(15)
    assert code == 0
    assert "Traceback" not in terminal


STUBBORN = """
import asyncio, os, sys
from app import __main__ as main
from app.errors import StartError

async def model(conversation):
    yield "word "
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

main.OWN_MODEL = model
main.main()
"""


def test_model_that_ignores_its_end_holds_up_neither_the_stop_nor_the_save(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    process = start("-c", STUBBORN, DATABASE_URL=postgres_url, SHUTDOWN_GRACE_S="0.2")
    with ask(process.listening(), tenant) as stream:
        stream.readline()
        process.popen.terminate()
        assert process.end()[0] == 0
    assert rows.messages(tenant.org_id)[1] == ("assistant", "word ", "interrupted")


def drip(listener: socket.socket, asked: threading.Event) -> None:
    """Answer one request a byte at a time, for ever."""
    with suppress(OSError):
        connection, _ = listener.accept()
        asked.set()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.1)


def test_keys_that_drip_in_do_not_hold_up_the_stop(start: Processes, postgres_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked = threading.Event()
        threading.Thread(target=drip, args=[listener, asked], daemon=True).start()
        url = "http://{}:{}/".format(*listener.getsockname())
        process = start(DATABASE_URL=postgres_url, JWT_JWKS_URL=url)
        host, port = process.listening().removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            token = jwt.encode({}, rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256")
            client.sendall(f"GET /chats HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            assert asked.wait(10)
            process.popen.terminate()
            # As they come they would take hours.
            assert process.end()[0] == 0


def test_workers_share_the_port_and_stop_together(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    process = start(DATABASE_URL=postgres_url, WORKERS="3", SHUTDOWN_GRACE_S="0.5", SIM_DELAY_MS="50-50")
    lines = [process.wait_for("Listening") for _ in range(3)]
    assert len({line["address"] for line in lines}) == 1
    base = f"http://{lines[0]['address']}"
    assert {line["pid"] for line in lines} == {worker.pid for worker in workers_of(process)}

    streams = [ask(base, tenant) for _ in range(24)]
    for stream in streams:
        stream.readline()
    # 1 of 3 ** 23 that all connections go to one worker by chance.
    assert len({process.wait_for("Starting stream")["pid"] for _ in range(24)}) > 1
    process.popen.terminate()
    for stream in streams:
        with stream:
            assert b"The server is stopping" in stream.read()
    assert process.end()[0] == 0
    assert {status for _, _, status in rows.messages(tenant.org_id)[1::2]} == {"interrupted"}


def test_worker_that_is_killed_is_replaced_and_its_replies_are_closed_by_the_others(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant
) -> None:
    process = start(DATABASE_URL=postgres_url, WORKERS="2", SIM_DELAY_MS="100-100")
    lines = [process.wait_for("Listening") for _ in range(2)]
    base = f"http://{lines[0]['address']}"
    streams = [ask(base, tenant) for _ in range(8)]
    for stream in streams:
        stream.readline()
    victim = process.wait_for("Starting stream")["pid"]
    psutil.Process(victim).kill()
    assert process.wait_for("Worker died")["workerPid"] == victim
    assert process.wait_for("Listening")["pid"] != victim
    deadline_s = time.monotonic() + 8
    while not any(status == "interrupted" for _, _, status in rows.messages(tenant.org_id)):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    for stream in streams:
        stream.close()
    assert status_of(f"{base}/ready") == 200
    process.popen.terminate()
    assert process.end()[0] == 0


def test_folder_that_cannot_hold_the_database_is_one_line_and_left_alone(start: Processes, tmp_path: Path) -> None:
    quoted, used, a_file = tmp_path / "$HOME", tmp_path / "used", tmp_path / "file"
    used.mkdir()
    (used / "mine").touch()
    a_file.touch()
    for data, reason in (
        (quoted, 'expected a path without " $ ` \\ and line breaks'),
        (used, "which holds other files, expected an empty folder"),
        (a_file, "which cannot be a folder: File exists"),
    ):
        code, terminal = start(DATA_DIR=str(data)).end()
        assert (code, terminal) == (1, f"llm-app: DATA_DIR is '{data}', {reason}\n")
    assert not quoted.exists()
    assert [path.name for path in used.iterdir()] == ["mine"]


ORPHAN = """
import os
if os.fork() == 0:
    os._exit(0)
from app.__main__ import main
main()
"""


def test_child_that_is_no_worker_is_waited_for_and_forgotten(start: Processes, postgres_url: str) -> None:
    process = start("-c", ORPHAN, DATABASE_URL=postgres_url, WORKERS="2")
    for _ in range(2):
        process.wait_for("Listening")
    assert len(workers_of(process)) == 2
    process.popen.terminate()
    code, terminal = process.end()
    assert (code, "Traceback" in terminal) == (0, False)
