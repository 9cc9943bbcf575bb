"""Which host of `DATABASE_URL` is connected to, when some are dead, hang, or are standbys."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, suppress
from typing import Any
from urllib.parse import quote

import psutil
import psycopg2
import pytest
from aiohttp.test_utils import unused_port
from psycopg2.extensions import parse_dsn
from serving import OwnPostgres, StartServer, new_postgres
from support import Rows, eventually

from app.server import BELLS, GUARD
from app.storage import connect
from app.storage.migrate import migrate

# `make` installs uvloop where it can be had.
LOOPS = [asyncio.new_event_loop]
with suppress(ImportError):
    import uvloop

    LOOPS.append(uvloop.new_event_loop)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPostgres]:
    folder = tmp_path_factory.mktemp("hosts") / "data"
    with new_postgres(folder) as url:
        yield OwnPostgres(folder, url)


@pytest.fixture(scope="module")
def place(postgres: OwnPostgres) -> Iterator[str]:
    """Where it listens."""
    with postgres.on_tcp() as url:
        yield "{host}:{port}".format(**parse_dsn(url))


@pytest.fixture
def hanging(place: str) -> Iterator[str]:
    """Another address, with the same port, that takes connections and never answers."""
    with socket.create_server(("127.0.0.9", int(place.rpartition(":")[2]))) as listener:
        yield "{}:{}".format(*listener.getsockname())


def dead() -> str:
    return f"127.0.0.1:{unused_port()}"


class Connection:
    closed = False

    def close(self) -> None:
        self.closed = True


class Attempt:
    """To connect to one host: what the test says that comes of it."""

    def __init__(self) -> None:
        self.made: list[asyncio.Future[Connection]] = []

    async def __call__(self) -> Any:
        self.made.append(asyncio.get_running_loop().create_future())
        return await self.made[-1]

    def succeed(self) -> Connection:
        connection = Connection()
        self.made[-1].set_result(connection)
        return connection

    def fail(self, why: str) -> None:
        self.made[-1].set_exception(psycopg2.OperationalError(why))


@pytest.fixture
async def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Attempt]:
    monkeypatch.setattr(connect, "NEXT_S", 0.01)
    return [Attempt(), Attempt()]


def begin(attempts: list[Attempt]) -> asyncio.Task[Any]:
    first: Coroutine[Any, Any, Any] = connect.first(attempts)
    return asyncio.create_task(first)


async def test_second_host_is_tried_when_the_first_has_failed_and_not_before(
    attempts: list[Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "NEXT_S", 3600)
    task = begin(attempts)
    await eventually(lambda: attempts[0].made)
    assert attempts[1].made == []
    attempts[0].fail("refused")
    await eventually(lambda: attempts[1].made)
    connection = attempts[1].succeed()
    assert await task is connection


async def test_host_that_hangs_holds_up_no_other_and_those_that_failed_are_tried_again_meanwhile(
    attempts: list[Attempt],
) -> None:
    hanging, standby = attempts
    task = begin(attempts)
    for times in (1, 2, 3):
        await eventually(lambda times=times: len(standby.made) == times)  # type: ignore[misc]
        standby.fail("session is read-only")
    await eventually(lambda: len(standby.made) == 4)
    connection = standby.succeed()
    assert await task is connection
    assert [attempt.cancelled() for attempt in hanging.made] == [True]


async def test_when_all_have_failed_each_cause_is_told_once(
    attempts: list[Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    # None of them hangs, however busy this machine is.
    monkeypatch.setattr("app.storage.connect.NEXT_S", 30.0)
    task = begin([*attempts, third := Attempt()])
    for attempt, why in zip([*attempts, third], ("refused\n\tby h1", "read-only", "read-only"), strict=True):
        await eventually(lambda attempt=attempt: attempt.made)  # type: ignore[misc]
        attempt.fail(why)
    with pytest.raises(psycopg2.OperationalError) as caught:
        await task
    assert str(caught.value) == "refused by h1; read-only"


async def test_of_two_that_succeed_at_once_one_is_closed(attempts: list[Attempt]) -> None:
    task = begin(attempts)
    await eventually(lambda: attempts[1].made)
    connections = {attempt.succeed() for attempt in attempts}
    [other] = connections - {await task}
    assert (task.result().closed, other.closed) == (False, True)


async def test_nothing_goes_on_when_nobody_waits_any_longer(attempts: list[Attempt]) -> None:
    task = begin(attempts)
    await eventually(lambda: attempts[1].made)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [attempt.made[0].cancelled() for attempt in attempts] == [True, True]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql:///name", [{}]),
        ("postgresql://h/name", [{"host": "h"}]),
        ("postgresql:///name?host=/a,/b", [{"host": "/a"}, {"host": "/b"}]),
        ("postgresql://h1:1,h2/name", [{"host": "h1", "port": "1"}, {"host": "h2", "port": ""}]),
        ("postgresql://[::1]:1,h2:2/name", [{"host": "::1", "port": "1"}, {"host": "h2", "port": "2"}]),
        ("postgresql:///name?host=h1,h2&port=1", [{"host": "h1", "port": "1"}, {"host": "h2", "port": "1"}]),
        (
            "postgresql:///name?host=h1,h2&hostaddr=::1,::2",
            [{"host": "h1", "hostaddr": "::1"}, {"host": "h2", "hostaddr": "::2"}],
        ),
    ],
)
def test_hosts_and_ports_are_read_as_libpq_reads_them(url: str, expected: list[dict[str, str]]) -> None:
    assert connect.places(connect.parameters(url)) == expected


async def test_start_migration_pool_bells_and_lock_find_the_host_that_lives(
    place: str, start_server: StartServer
) -> None:
    url = f"postgresql://postgres@{dead()},{place}/llm_app"
    await asyncio.to_thread(migrate, url, timeout_s=5)
    server = await start_server(database_url=url)
    assert server.app
    await server.app[BELLS].listening.wait()
    await server.app[GUARD].beat()
    with closing(Rows(f"postgresql://postgres@{place}/llm_app")) as rows:
        names = rows("select application_name from pg_stat_activity where application_name like 'llm-app%%'")
    assert sorted(names) == [("llm-app",), ("llm-app",), ("llm-app bell",)]
    await server.close()


async def test_host_in_a_black_hole_costs_a_quarter_of_a_second(hanging: str, place: str) -> None:
    began_s = asyncio.get_running_loop().time()
    connection = await connect.connect(f"postgresql://postgres@{hanging},{place}/llm_app", "test", 5)
    assert 0.25 <= asyncio.get_running_loop().time() - began_s < 2
    connection.close()


async def test_name_with_several_addresses_is_reached_where_the_first_one_hangs_or_is_dead(
    hanging: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        return [(0, 0, 0, "", (address, 0)) for address in ("127.0.0.8", "127.0.0.9", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    url = f"postgresql://postgres@database.test:{place.rpartition(':')[2]}/llm_app"
    (await connect.connect(url, "test", 5)).close()


@pytest.fixture
def unreachable() -> Iterator[socket.socket]:
    """A listener whose queue is full: connections to it hang until it is closed, and are refused then."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as first:
        first.connect(listener.getsockname())
        yield listener


def is_connecting(port: int) -> bool:
    """Return whether this process waits for a connection to a port of this machine."""
    connections = psutil.Process().net_connections("tcp")
    return any(each.raddr[1:] == (port,) and each.status == psutil.CONN_SYN_SENT for each in connections)


@pytest.mark.parametrize("new_event_loop", LOOPS)
def test_socket_that_was_refused_late_keeps_no_later_one_from_being_watched(
    unreachable: socket.socket, place: str, new_event_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    port = unreachable.getsockname()[1]

    async def connect_three_times() -> None:
        attempt = asyncio.create_task(
            connect.connect(f"postgresql://postgres@127.0.0.1:{port}/llm_app", "test", 5)
        )
        await eventually(lambda: is_connecting(port))
        unreachable.close()
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            await attempt
        # One of these has its number.
        later = [await connect.connect(f"postgresql://postgres@{place}/llm_app", "test", 5) for _ in range(3)]
        for connection in later:
            connection.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(connect_three_times())


async def test_socket_whose_number_is_another_file_s_is_not_watched_any_longer(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when a thread has opened a file meanwhile.
    monkeypatch.setattr("aiopg.connection._is_bad_descriptor_error", lambda error: False)
    url = f"postgresql://postgres@{place}/llm_app"
    connection = await connect.connect(url, "test", 5)
    number = connection.raw.fileno()
    with closing(Rows(url)) as rows:
        rows("select pg_terminate_backend(%s)", connection.raw.info.backend_pid)
        await eventually(lambda: connection.closed)
        later = await connect.connect(url, "test", 5)
        assert later.raw.fileno() == number
        later.close()


async def test_standby_is_refused_also_where_the_url_does_not_say_so(place: str) -> None:
    url = f"postgresql://postgres@{place}/llm_app"
    with closing(Rows(url)) as rows:
        rows("alter database llm_app set default_transaction_read_only = on")
        try:
            with pytest.raises(psycopg2.OperationalError, match="session is read-only"):
                await connect.connect(url, "test", 5)
            (await connect.connect(f"{url}?target_session_attrs=any", "test", 5)).close()
        finally:
            rows("set default_transaction_read_only = off")
            rows("alter database llm_app reset default_transaction_read_only")


async def test_text_is_sent_as_utf_8_whatever_the_role_and_the_url_say(place: str) -> None:
    connection = await connect.connect(f"postgresql://postgres@{place}/llm_app?client_encoding=LATIN1", "test", 5)
    async with connection, connection.cursor() as cursor:
        await cursor.execute("select %s, octet_length(%s)", ("é🙂", "é🙂"))
        assert await cursor.fetchall() == [("é🙂", 6)]


def test_refusal_in_another_encoding_is_legible() -> None:
    said = b"SFATAL\0C28000\0MPasswort f\xfcr u falsch\0\0"

    def refuse(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(1000)
            client.sendall(b"E" + (4 + len(said)).to_bytes(4, "big") + said)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, args=[listener], daemon=True).start()
        url = "postgresql://u@{}:{}/x?sslmode=disable&gssencmode=disable".format(*listener.getsockname())
        with pytest.raises(psycopg2.OperationalError, match="FATAL:  Passwort f\N{REPLACEMENT CHARACTER}r u"):
            connect.connect_blocking(url, 5)


def test_migration_finds_the_folder_of_a_unix_socket(postgres: OwnPostgres, place: str) -> None:
    folder, port = parse_dsn(postgres.url)["host"], place.rpartition(":")[2]
    migrate(f"postgresql://postgres@/llm_app?host={folder}&port={port}", timeout_s=5)
    migrate(f"postgresql://postgres@{quote(folder, safe='')}:{port}/llm_app", timeout_s=5)
