"""Servers for tests: PostgreSQL on a folder of its own, and the application on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from support import RawClient

from app.models import Model
from app.server import create_app
from app.settings import Settings
from app.storage import embedded, programs
from app.storage.migrate import migrate


class Server(TestServer):
    """aiohttp's, but run as `app.server.serve` runs it: a client that leaves cancels no handler."""

    async def _make_runner(self, **kwargs: Any) -> web.BaseRunner:
        return web.AppRunner(self.app, **kwargs | {"handler_cancellation": False, "access_log": None})


StartServer = Callable[..., Awaitable[TestServer]]


@contextmanager
def new_postgres(folder: Path) -> Iterator[str]:
    """Run an embedded PostgreSQL on a new folder, migrated."""
    with embedded.postgres(folder) as url:
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            # Nothing here outlives the test run, so nothing need reach the disk.
            connection.cursor().execute("alter system set fsync = off")
            connection.cursor().execute("select pg_reload_conf()")
        migrate(url, timeout_s=10)
        yield url


class OwnPostgres:
    """A PostgreSQL of a test's own, to be mistreated."""

    def __init__(self, folder: Path, url: str) -> None:
        self._server = programs.Server(folder, programs.account_for(folder))
        self.url = url

    def processes(self) -> list[psutil.Process]:
        pid = self._server.pid()
        if pid is None:
            raise psutil.NoSuchProcess(0)
        postmaster = psutil.Process(pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def kill(self) -> None:
        processes = self.processes()
        processes[0].kill()
        psutil.wait_procs(processes, timeout=10)

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._server.pid() is None:
            self._server.launch({})

    @contextmanager
    def on_tcp(self) -> Iterator[str]:
        """Let it listen on 127.0.0.1 meanwhile, and give its URL there."""
        port = unused_port()
        self._server.stop()
        self._server.launch({"listen_addresses": "127.0.0.1", "port": port})
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/llm_app"
        finally:
            # Unless the test has.
            with suppress(psutil.NoSuchProcess):
                self.kill()
            self.start()

    def freeze(self) -> None:
        for process in self.processes():
            # A connection's may be over by now.
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()


@asynccontextmanager
async def serving(postgres_url: str) -> AsyncIterator[StartServer]:
    """Give a function that starts a server on a free port: `start(model=…, heartbeat_s=…, …)`.

    A model that is a `str` is chosen by the setting.
    """
    servers: list[TestServer] = []

    async def start(*, model: Model | str | None = None, **settings: Any) -> TestServer:
        no_limits = {"user_stream_limit": 0, "user_reader_limit": 0, "user_turns_per_minute": 0}
        settings = {"database_url": postgres_url, "sim_delay_ms": (0.0, 0.0)} | no_limits | settings
        if isinstance(model, str):
            settings, model = settings | {"model": model}, None
        server = Server(create_app(Settings(**settings), model=model))
        await server.start_server(shutdown_timeout=1)
        servers.append(server)
        return server

    yield start
    while RawClient.opened:
        await RawClient.opened.pop().close()
    for server in servers:
        await server.close()
