"""What the machine does to a server: stalled pipes, closed terminals, users without names, few descriptors."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psutil
import psycopg2
import pytest
from processes import ROOT, Process, Processes, ask, has_ended, status_of, workers_of
from serving import OwnPostgres, new_postgres
from support import Rows, Tenant

from app import logs
from app.errors import StartError
from app.replies.turns import LAST_WORDS_S
from app.server import CLEANUP_S
from app.settings import Settings
from app.storage import embedded
from app.storage.room import fit
from app.storage.store import DEMO_ORG_ID, DEMO_USER_ID
from app.workers import Workers

DEMO = Tenant(str(DEMO_ORG_ID), str(DEMO_USER_ID))

# The smallest pipe that Linux makes, and about how many log lines fit into it.
PIPE_BYTES, PIPE_LINES = 4096, 20


class Unread:
    """A server whose standard output and terminal nobody reads."""

    def __init__(self, **environ: str) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.out, out = os.pipe()
        self.err, err = os.pipe()
        for pipe in (out, err):
            fcntl.fcntl(pipe, 1031, PIPE_BYTES)  # F_SETPIPE_SZ
        os.write(err, b"x" * PIPE_BYTES)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "app"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PORT": str(self.port)} | environ,
            stdout=out,
            stderr=err,
        )
        os.close(out)
        os.close(err)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listening(self) -> None:
        give_up = time.monotonic() + 20
        while True:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert time.monotonic() < give_up
            time.sleep(0.02)

    def health(self, times: int) -> None:
        for _ in range(times):
            assert status_of(f"{self.base}/health") == 200

    def stop(self) -> int:
        self.popen.terminate()
        return self.popen.wait(5)

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.out, self.err):
            with suppress(OSError):
                os.close(pipe)


@pytest.fixture
def unread(postgres_url: str) -> Iterator[Unread]:
    server = Unread(DATABASE_URL=postgres_url)
    yield server
    server.close()


def test_reader_of_the_logs_that_stalls_holds_up_neither_requests_nor_the_stop(unread: Unread) -> None:
    unread.listening()
    unread.health(5 * PIPE_LINES)
    assert unread.stop() == 0
    # What the pipe holds are whole lines.
    with os.fdopen(os.dup(unread.out)) as out:
        assert json.loads(out.readline())["message"] == "Listening"
        assert {json.loads(line)["message"] for line in out} == {"Request completed"}


def test_reader_of_the_logs_that_has_gone_changes_nothing(unread: Unread) -> None:
    os.close(unread.out)
    os.close(unread.err)
    unread.listening()
    unread.health(3)
    assert unread.stop() == 0


def test_standard_files_that_are_closed_are_no_place_for_connections(start: Processes, postgres_url: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    shell = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    process = start(under=shell, DATABASE_URL=postgres_url, PORT=str(port))
    give_up = time.monotonic() + 20
    while True:
        with suppress(OSError):
            assert status_of(f"http://127.0.0.1:{port}/health") == 200
            break
        assert time.monotonic() < give_up
        time.sleep(0.02)
    files = [Path(f"/proc/{process.popen.pid}/fd/{number}").resolve() for number in range(3)]
    assert files == [Path("/dev/null")] * 3
    process.popen.terminate()
    assert process.end()[0] == 0


def test_lines_beyond_the_queue_are_dropped_counted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, 1031, PIPE_BYTES)  # F_SETPIPE_SZ
    os.set_blocking(write, False)
    monkeypatch.setattr(logs, "STDOUT", write)
    monkeypatch.setattr(logs, "WAITING_LINES", 10)
    lines = logs.Lines()
    record = {"name": "x", "levelname": "INFO", "msg": "m" * 1000}
    for number in range(100):
        lines.handle(logs.logging.makeLogRecord(record | {"number": number}))
    finish = threading.Thread(target=lines.finish)
    finish.start()
    written, dropped = [], 0
    with os.fdopen(read) as out:
        while len(written) + dropped < 100:
            line = json.loads(out.readline())
            if line["message"] == "Log lines dropped":
                assert line["level"] == "warn"
                dropped += line["lines"]
            else:
                written.append(line["number"])
        finish.join()
    os.close(write)
    # What the thread had taken, and what the queue held then.
    assert 10 <= len(written) <= 1 + 10 + 10
    assert written == sorted(written)


NAMELESS = """
import pwd
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
from app.__main__ import main
main()
"""


def test_user_without_a_name_migrates(start: Processes, postgres_url: str, rows: Rows) -> None:
    rows("create database nameless")
    process = start("-c", NAMELESS, DATABASE_URL=postgres_url.replace("/llm_app?", "/nameless?"))
    process.listening()
    process.popen.terminate()
    assert process.end()[0] == 0


# A locale that is not installed, and what is meant for another PostgreSQL.
FOREIGN = {
    "LANG": "xx_YY.UTF-8",
    "LC_ALL": "xx_YY.UTF-8",
    "PGPORT": "5433",
    "PGUSER": "nobody",
    "PGDATA": "/nowhere",
}


@pytest.mark.parametrize("folder", ["it's a folder", "a" * 100], ids=["blank and quote", "long path"])
def test_embedded_database_starts_whatever_its_path_and_the_environment(
    start: Processes, tmp_path: Path, folder: str
) -> None:
    data = tmp_path / folder
    process = start(DATA_DIR=str(data), **FOREIGN)
    base = process.listening()
    assert status_of(f"{base}/chats", DEMO) == 200
    pid, *_, socket_folder = (data / "postmaster.pid").read_text().splitlines()[:5]
    postmaster = psutil.Process(int(pid))
    process.popen.terminate()
    assert process.end()[0] == 0
    assert has_ended(postmaster)
    assert socket_folder == str(data) or not Path(socket_folder).exists()


@contextmanager
def made(clone: Path, command: str, **environ: str) -> Iterator[str]:
    """Run a command that ends in `make run` in a clone that has all installed; give the server's address."""
    clone.mkdir()
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "app", "sql", "web"):
        (clone / name).symlink_to(ROOT / name)
    (clone / ".venv").mkdir()
    (clone / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for installed in (".venv/lib", ".venv/pyvenv.cfg"):
        (clone / installed).symlink_to(Path(sys.prefix) / Path(installed).name)
    (clone / ".venv" / "run.done").touch()
    environ = {"PATH": f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}", "PORT": "0", **environ}
    with subprocess.Popen(
        ["sh", "-c", command],
        cwd=clone,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        try:
            for line in iter(process.stdout.readline, ""):
                said = json.loads(line) if line.startswith("{") else {}
                if said.get("message") == "Listening":
                    yield f"http://{said['address']}"
                    return
            raise AssertionError("it ended without listening")
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def test_make_run_works_where_the_path_has_a_blank(tmp_path: Path) -> None:
    clone = tmp_path / "my clone"
    with made(clone, "make run"):
        pass
    assert (clone / ".data" / "PG_VERSION").exists()


def test_recipe_for_a_provider_on_this_machine(tmp_path: Path) -> None:
    [recipe] = re.findall(
        r"^```sh\n(llmock serve .*?)^```$", (ROOT / "app" / "README.md").read_text(), re.M | re.S
    )
    with made(tmp_path / "clone", recipe) as base, ask(base, DEMO, "Hi") as response:
        events = [json.loads(line[6:]) for line in response if line.startswith(b"data: ")]
    done = events[-1]
    assert (done["done"], done["stop"], done["usage"]["estimated"]) == (True, "end", False)
    assert done["fullText"] == "".join(event["token"] for event in events) != ""


def test_number_of_a_crashed_database_that_another_process_has_by_now_is_not_waited_for_or_killed(
    start: Processes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    with embedded.postgres(data):
        noted = (data / "postmaster.pid").read_text().partition("\n")[2]
    # Of the same user: PostgreSQL itself would take it for another PostgreSQL.
    with subprocess.Popen(["sleep", "600"], user=data.stat().st_uid) as other:
        try:
            for lock in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                (data / lock).write_text(f"{other.pid}\n{noted}")
            process = start(DATA_DIR=str(data))
            process.listening()
            process.popen.terminate()
            assert process.end()[0] == 0
            assert other.poll() is None
        finally:
            other.kill()


def test_folder_that_a_crashed_database_still_writes_to_is_left_to_it(start: Processes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with embedded.postgres(data) as url, closing(psycopg2.connect(url)) as connection:
        postmaster = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
        backend, processes = psutil.Process(connection.info.backend_pid), postmaster.children()
        # It does not see that the others end.
        backend.suspend()
        postmaster.kill()
        code, terminal = start(DATA_DIR=str(data)).end()
        assert code == 1
        assert re.match("llm-app: PostgreSQL's pg_ctl failed: .* pre-existing shared memory block .*", terminal)
        backend.kill()
        while not all(map(has_ended, processes)):
            time.sleep(0.02)
        process = start(DATA_DIR=str(data))
        process.listening()
        process.popen.terminate()
        assert process.end()[0] == 0


def test_database_of_a_folder_that_was_made_anew_is_not_stopped_by_whoever_had_the_one_before(
    start: Processes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    first = start(DATA_DIR=str(data))
    first.listening()
    postmaster = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    try:
        data.rename(tmp_path / "before")
        second = start(DATA_DIR=str(data))
        base = second.listening()
        first.popen.terminate()
        assert first.end()[0] == 0
        assert status_of(f"{base}/ready") == 200
    finally:
        postmaster.kill()
    second.popen.terminate()
    assert second.end()[0] == 0


def test_folder_that_cannot_be_written_is_one_line(start: Processes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / ".users").mkdir(parents=True)
    (data / "PG_VERSION").write_text("18\n")
    (data / ".whole").touch()
    assert start(DATA_DIR=str(data)).end() == (
        1,
        f"llm-app: DATA_DIR is '{data}', which cannot be used: [Errno 21] Is a directory: '{data}/.users'\n",
    )


def test_failed_start_of_the_embedded_database_says_the_cause(start: Processes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with embedded.postgres(data):
        pass
    with (data / "postgresql.conf").open("a") as conf:
        conf.write("no_such_parameter = 1\n")
    code, terminal = start(DATA_DIR=str(data)).end()
    assert code == 1
    [line] = terminal.splitlines()
    assert line.startswith("llm-app: PostgreSQL's pg_ctl failed: ")
    assert line.endswith(f'FATAL:  configuration file "{data}/postgresql.conf" contains errors')


def test_two_first_starts_at_once_share_the_database_and_the_last_one_stops_it(
    start: Processes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    processes = [start(DATA_DIR=str(data)) for _ in range(2)]
    bases = [process.listening() for process in processes]
    postmaster = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    processes[0].popen.terminate()
    assert processes[0].end()[0] == 0
    assert status_of(f"{bases[1]}/ready") == 200
    processes[1].popen.terminate()
    assert processes[1].end()[0] == 0
    assert has_ended(postmaster)


@pytest.mark.skipif(os.geteuid() != 0, reason="LEFT OUT: only root has PostgreSQL run by another user")
def test_root_opens_folders_above_the_data_to_pass_through_alone_and_says_so(
    start: Processes, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    process = start(DATA_DIR=str(home / "project" / "data"))
    warning = process.wait_for("Other users may now pass through these folders, but not list them")
    assert str(home) in warning["folders"]
    assert stat.S_IMODE(home.stat().st_mode) == 0o701
    process.listening()
    process.popen.terminate()
    assert process.end()[0] == 0


def test_soft_limit_of_descriptors_is_raised_to_the_hard_one(start: Processes, postgres_url: str) -> None:
    shell = ("sh", "-c", 'ulimit -Sn 256; ulimit -Hn 2000; exec "$@"', "sh")
    process = start(under=shell, DATABASE_URL=postgres_url, WORKERS="2")
    process.listening()
    for server in [psutil.Process(process.popen.pid), *workers_of(process)]:
        assert server.rlimit(psutil.RLIMIT_NOFILE) == (2000, 2000)


WITHOUT_UVLOOP = """
import sys
sys.modules["uvloop"] = None
from app.__main__ import main
main()
"""


@pytest.mark.parametrize("args", [(), ("-c", WITHOUT_UVLOOP)], ids=["uvloop", "asyncio"])
def test_clients_beyond_the_descriptors_get_503_and_those_before_are_served(
    start: Processes, postgres_url: str, rows: Rows, tenant: Tenant, args: tuple[str, ...]
) -> None:
    process = start(*args, under=("sh", "-c", 'ulimit -n 200; exec "$@"', "sh"), DATABASE_URL=postgres_url)
    base = process.listening()
    address = base.removeprefix("http://").split(":")
    with ask(base, tenant) as stream, ExitStack() as stack:
        stream.readline()
        # More than there are descriptors: some are not even accepted.
        for _ in range(300):
            idle = stack.enter_context(socket.create_connection((address[0], int(address[1]))))
        refused = process.wait_for("No descriptors left for clients")
        assert refused["limit"] == 200 - 64 - 12
        idle.close()
        give_up = time.monotonic() + 5
        while True:
            # Those that were refused are gone within a second.
            with suppress(OSError), socket.create_connection((address[0], int(address[1]))) as request:
                request.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = b""
                while part := request.recv(4096):
                    answer += part
                if answer:
                    break
            assert time.monotonic() < give_up
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert json.loads(body)["error"] == "Busy"
        # The stream that runs is saved, for which there is a descriptor.
        assert stream.read().count(b'"done":true') == 1
    assert rows.messages(tenant.org_id)[1][2] == "complete"
    give_up = time.monotonic() + 5
    while status_of(f"{base}/ready") != 200:
        assert time.monotonic() < give_up
    process.popen.terminate()
    assert process.end()[0] == 0
    said = [line for line in process.lines if line["level"] == "error"]
    assert [line["message"] for line in said] == ["No descriptors left for clients"], said


def test_default_pool_fits_the_workers_and_a_pool_that_does_not_is_one_line(postgres_url: str) -> None:
    def pool(workers: int, **more: int) -> int:
        return fit(Settings(database_url=postgres_url, workers=workers, **more)).db_pool_size

    # The database allows 97, of which they take half.
    assert [pool(workers) for workers in (1, 4, 8, 16, 32)] == [10, 10, 4, 1, 1]
    assert pool(4, db_pool_size=22) == 22
    with pytest.raises(StartError) as caught:
        pool(4, db_pool_size=23)
    assert str(caught.value) == (
        "WORKERS x (DB_POOL_SIZE + 2) is 4 x 25 = 100 connections, expected at most 97;"
        " the database allows: max_connections less reserved ones 97"
    )
    with pytest.raises(StartError, match="is 33 x 3 = 99 connections, expected at most 97;"):
        pool(33)


def test_limit_of_the_databases_user_counts(postgres_url: str, rows: Rows) -> None:
    rows("create role narrow login connection limit 7")
    try:
        settings = Settings(database_url=postgres_url.replace("postgres:@", "narrow:@"), db_pool_size=10)
        with pytest.raises(StartError, match=r"= 12 connections, expected at most 7; .*, its user 7$"):
            fit(settings)
    finally:
        rows("drop role narrow")


def test_closed_terminal_is_a_stop_that_leaves_no_database_behind(start: Processes, tmp_path: Path) -> None:
    # More connections than PostgreSQL has room for by default: the embedded one is given more.
    # Nor is it told to go on, as one is that was started under nohup, by whatever has started the tests.
    heeding = ("env", "--default-signal=HUP")
    process = start(under=heeding, DATA_DIR=str(tmp_path / "data"), WORKERS="2", DB_POOL_SIZE="60")
    for _ in range(2):
        process.listening()
    postmaster = psutil.Process(int((tmp_path / "data" / "postmaster.pid").read_text().split()[0]))
    os.killpg(process.popen.pid, signal.SIGHUP)
    assert process.end()[0] == 0
    assert has_ended(postmaster)


def test_nohup_is_heeded(start: Processes, postgres_url: str) -> None:
    process = start(under=("sh", "-c", 'trap "" HUP; exec "$@"', "sh"), DATABASE_URL=postgres_url)
    base = process.listening()
    process.popen.send_signal(signal.SIGHUP)
    assert status_of(f"{base}/ready") == 200
    process.popen.terminate()
    assert process.end()[0] == 0


def hit(process: Process) -> None:
    """Press Ctrl-C until the process has ended."""
    while process.popen.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.popen.pid, signal.SIGINT)
        time.sleep(0.001)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_again_and_again_is_one_stop(start: Processes, postgres_url: str, workers: str) -> None:
    process = start(DATABASE_URL=postgres_url, WORKERS=workers)
    for _ in range(int(workers)):
        process.listening()
    hit(process)
    code, terminal = process.end()
    assert (code, "Traceback" in terminal) == (0, False)


def test_ctrl_c_while_modules_are_imported_is_no_traceback(start: Processes, postgres_url: str) -> None:
    process = start(DATABASE_URL=postgres_url)
    status = Path(f"/proc/{process.popen.pid}/status")
    # Until SIGTERM is caught. SIGINT is by Python itself, from when on it can be.
    while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) & 1 << signal.SIGTERM - 1:
        assert process.popen.poll() is None
    hit(process)
    code, terminal = process.end()
    assert (code, "Traceback" in terminal) == (0, False)


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[OwnPostgres]:
    with new_postgres(tmp_path / "own") as url:
        yield OwnPostgres(tmp_path / "own", url)


SHORT_CLEANUP = """
from app import server
server.CLEANUP_S = 0.5
from app.__main__ import main
main()
"""


def test_stop_is_bounded_however_long_the_database_does_not_answer(
    start: Processes, own_postgres: OwnPostgres
) -> None:
    # What is promised beside the grace; the rest is for the process to end.
    assert LAST_WORDS_S + CLEANUP_S + logs.FLUSH_S <= 10 - 0.5
    rows = Rows(own_postgres.url)
    tenant = rows.tenant()
    settings = {"SHUTDOWN_GRACE_S": "0.2", "SIM_DELAY_MS": "50-50", "DB_TIMEOUT_S": "30"}
    process = start("-c", SHORT_CLEANUP, DATABASE_URL=own_postgres.url, **settings)
    with ask(process.listening(), tenant) as stream:
        stream.readline()
        own_postgres.freeze()
        try:
            began_s = time.monotonic()
            process.popen.terminate()
            assert process.end()[0] == 0
            assert time.monotonic() - began_s < 0.2 + LAST_WORDS_S + 0.5 + 2
            assert process.lines[-2]["message"] == "Stopped before all was stored"
        finally:
            own_postgres.thaw()
    rows.close()


def test_server_that_waits_to_stop_is_not_ready_and_serves(
    start: Processes, postgres_url: str, tenant: Tenant
) -> None:
    process = start(DATABASE_URL=postgres_url, STOP_DELAY_S="3")
    base = process.listening()
    process.popen.terminate()
    process.wait_for("Stopping")
    assert status_of(f"{base}/ready") == 503
    with ask(base, tenant, "Hi") as stream:
        assert b'"done":true' in stream.read()
    assert process.end()[0] == 0


def test_workers_that_cannot_start_end_with_their_cause(capfd: pytest.CaptureFixture[str]) -> None:
    environ = {"PATH": os.environ["PATH"], "PORT": "0", "DATABASE_URL": "postgresql://127.0.0.1:1/none"}
    with pytest.raises(StartError, match="a worker cannot start"):
        Workers([environ] * 2, stop_s=10).run()
    assert "llm-app: the database of DATABASE_URL: " in capfd.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_signal_that_the_thread_of_the_logs_takes_is_a_stop(
    start: Processes, postgres_url: str, workers: str
) -> None:
    process = start(DATABASE_URL=postgres_url, WORKERS=workers)
    for _ in range(int(workers)):
        process.listening()
    [thread] = {thread.id for thread in psutil.Process(process.popen.pid).threads()} - {process.popen.pid}
    # To this one first, as the kernel may where the process was stopped.
    os.kill(thread, signal.SIGTERM)
    assert process.end()[0] == 0


IMPATIENT = """
from app import __main__ as app
app.STOP_S = 0.2
app.main()
"""


def test_worker_that_is_frozen_does_not_hold_up_the_stop(start: Processes, postgres_url: str) -> None:
    process = start("-c", IMPATIENT, DATABASE_URL=postgres_url, WORKERS="2", SHUTDOWN_GRACE_S="0.5")
    for _ in range(2):
        process.listening()
    frozen, _ = workers_of(process)
    frozen.suspend()
    process.popen.terminate()
    assert process.end()[0] == 0
    assert has_ended(frozen)
    [killed] = [line for line in process.lines if line["message"] == "Worker killed"]
    assert killed["workerPid"] == frozen.pid


CROWDED = """
import subprocess
from app.__main__ import main

tries = 0

class Popen(subprocess.Popen):
    def __init__(self, *args, **named):
        global tries
        tries += 1
        if tries in (3, 4):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        super().__init__(*args, **named)

subprocess.Popen = Popen
main()
"""


def test_worker_that_the_machine_has_no_room_for_is_tried_again_and_the_others_go_on(
    start: Processes, postgres_url: str
) -> None:
    process = start("-c", CROWDED, DATABASE_URL=postgres_url, WORKERS="2")
    for _ in range(2):
        process.listening()
    killed, other = workers_of(process)
    killed.kill()
    for _ in range(2):
        cause = process.wait_for("Worker not started")["cause"]
        assert cause == "[Errno 11] Resource temporarily unavailable"
    assert process.wait_for("Listening")["pid"] not in (killed.pid, other.pid)
    assert other.is_running()
    process.popen.terminate()
    assert process.end()[0] == 0


def test_worker_that_dies_is_seen_also_where_whoever_started_the_server_ignores_children(
    start: Processes, postgres_url: str
) -> None:
    process = start(under=("env", "--ignore-signal=CHLD"), DATABASE_URL=postgres_url, WORKERS="2")
    for _ in range(2):
        process.listening()
    victim, _ = workers_of(process)
    victim.kill()
    assert process.wait_for("Worker died", 10)["workerPid"] == victim.pid
    process.popen.terminate()
    assert process.end()[0] == 0


# By a shell for which Python waits in C: it finds both signals afterwards.
TWICE = """
import os
from app import __main__ as app
app.migrate = lambda *args, **named: os.system("kill -HUP $PPID; kill -TERM $PPID")
app.main()
"""

BUSY = """
import os, signal, threading, time
from app import __main__ as app

def migrate(*args, **named):
    threading.Thread(target=time.sleep, args=[60]).start()
    os.kill(os.getpid(), signal.SIGTERM)

app.migrate = migrate
app.main()
"""


@pytest.mark.parametrize("code", [TWICE, BUSY], ids=["two at once", "a thread is busy"])
def test_signal_during_the_start_is_its_end(start: Processes, postgres_url: str, code: str) -> None:
    process = start("-c", code, under=("env", "--default-signal=HUP"), DATABASE_URL=postgres_url)
    assert process.end() == (0, "")
