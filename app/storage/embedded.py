"""The embedded PostgreSQL: a real server of our own, shared by those who start on one folder."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from app.errors import StartError
from app.storage.programs import WHOLE, Server, account_for

log = logging.getLogger(__name__)

# Each process that uses the database holds a shared lock on it, which the kernel takes from those that are killed.
USERS = ".users"


@contextmanager
def postgres(
    data_dir: Path,
    parameters: Mapping[str, object] | None = None,
    *,
    uncut: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[str]:
    """Run PostgreSQL on `data_dir` and give the URL of its database; stop it if nobody else uses it. Blocks.

    It listens on a Unix socket alone. Several processes may use it at once; `parameters` are the first one's.
    Starting and stopping it, but not waiting for another process to do so, is done within `uncut()`.

    Raises:
        StartError: it does not start.
    """
    data_dir = data_dir.resolve()
    make_folder(data_dir)
    with ExitStack() as stack:
        with alone(data_dir), uncut():
            check_folder(data_dir)
            server = Server(data_dir, account_for(data_dir))
            server.make()
            users = stack.enter_context((data_dir / USERS).open("w"))
            fcntl.flock(users, fcntl.LOCK_SH)
            stack.callback(leave, server, users, uncut)
            url = server.start(parameters or {})
        yield url


def leave(server: Server, users: TextIO, uncut: Callable[[], AbstractContextManager[None]]) -> None:
    """Stop it if nobody else uses it; meanwhile nobody can begin to."""
    with uncut(), alone(server.data_dir), suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Where the folder was removed meanwhile and made anew, its database is another's.
        if os.path.samestat(os.fstat(users.fileno()), (server.data_dir / USERS).stat()):
            server.stop()


def make_folder(data_dir: Path) -> None:
    if re.search(r"[\"$`\\\n]", str(data_dir)):
        # pg_ctl puts its path into a shell's line.
        raise StartError(f'DATA_DIR is {str(data_dir)!r}, expected a path without " $ ` \\ and line breaks')
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StartError(f"DATA_DIR is '{data_dir}', which cannot be a folder: {exc.strerror}") from None


@contextmanager
def alone(data_dir: Path) -> Iterator[None]:
    """Keep others from starting and stopping it meanwhile. Waits for those who do.

    Raises:
        StartError: it cannot be used, or what is done within raises an OSError.
    """
    try:
        folder = os.open(data_dir, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                extra = {"dataDir": str(data_dir)}
                log.info("Waiting for another process to start or stop PostgreSQL", extra=extra)
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
    except OSError as exc:
        raise StartError(f"DATA_DIR is '{data_dir}', which cannot be used: {exc}") from None


def check_folder(data_dir: Path) -> None:
    """Raise StartError if it cannot hold the database. Nobody else is filling it."""
    names = {path.name for path in data_dir.iterdir()}
    if "PG_VERSION" in names and WHOLE not in names:
        remedy = f"rm -rf {shlex.quote(str(data_dir))}"
        raise StartError(f"the first start of the database in {data_dir} was cut short: {remedy}")
    if names and "PG_VERSION" not in names:
        # Before it is taken over: as root, its owner is changed.
        raise StartError(f"DATA_DIR is '{data_dir}', which holds other files, expected an empty folder")
