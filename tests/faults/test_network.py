"""When the network breaks, behind a real nginx, and under a real attack: short here, long with `make faults`."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
import pytest
from aiohttp.test_utils import unused_port
from ledger import (
    FULL,
    LONG,
    ROOT,
    SEED,
    Entry,
    Ledger,
    Server,
    all_ended,
    broken_invariants,
    expected_text,
    ledger,
    scale,
)
from support import Rows, eventually, leave_out, post, tool


def node_with(folder: Path) -> str:
    """Return Node, with the packages that the scripts of a folder take."""
    program = tool("node", "nodejs")
    subprocess.run(
        [tool("npm", "npm"), "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"],
        cwd=folder,
        check=True,
    )
    return program


def words_of(entry: Entry) -> list[float]:
    """Return when each word came, in seconds from the request on."""
    assert entry.words_at_s
    assert entry.first_word_s
    return [at_s - entry.words_at_s[0] + entry.first_word_s for at_s in entry.words_at_s]


def p99_gap_ms(entries: Sequence[Entry], begin_s: float = 0, end_s: float = float("inf")) -> float:
    """Return how long the next word took, of those that came between two moments."""
    gaps_s = [
        after_s - before_s
        for entry in entries
        for before_s, after_s in zip(entry.words_at_s or [], (entry.words_at_s or [])[1:], strict=False)
        if begin_s <= after_s < end_s
    ]
    return quantiles(gaps_s, n=100)[-1] * 1000


@asynccontextmanager
async def talking(clients: Ledger, readers: int) -> AsyncIterator[list[Entry]]:
    """Let so many honest clients ask, one short turn after the other; give their turns."""
    entries: list[Entry] = []
    over = False

    async def talk() -> None:
        while not over:
            entry = clients.entry("Hi")
            entry.words_at_s = []
            entries.append(entry)
            await clients.ask(entry)

    load = [asyncio.create_task(talk()) for _ in range(readers)]
    try:
        yield entries
    finally:
        over = True
        await asyncio.gather(*load)


def peers(server: Server) -> list[str]:
    """Return the addresses of the clients that a server has."""
    connections = psutil.Process(server.popen.pid).net_connections("tcp")
    return [each.raddr[0] for each in connections if each.raddr and each.laddr[1] == server.port]


@asynccontextmanager
async def running(*command: str | Path, folder: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


# Asks in as many threads as it is told, each with its number in place of ??; says so on stdout for each that has a
# first token, and reads on.
READERS = """
import os, socket, sys, threading
request = sys.stdin.buffer.read()
def read(number):
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    connection.sendall(request.replace(b"??", b"%02d" % number))
    while b'"token"' not in connection.recv(65536):
        pass
    os.write(1, b".")
    while connection.recv(65536):
        pass
for number in range(int(sys.argv[3])):
    threading.Thread(target=read, args=[number]).start()
"""


class Namespace:
    """A network of its own, and a wire to it."""

    def __init__(self) -> None:
        self.ip = tool("ip", "iproute2")
        self.name = f"llm{os.getpid()}"
        # Two addresses for each process of those that are set apart for tests (RFC 2544).
        network = ipaddress.ip_address("198.18.0.0") + 4 * (os.getpid() % 2**15)
        self.here, self.there = str(network + 1), str(network + 2)

    def start(self) -> None:
        made = subprocess.run([self.ip, "netns", "add", self.name], capture_output=True, text=True)
        if made.returncode:
            leave_out(f"a network namespace needs root: {made.stderr.strip()}")
        self._run("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        for where, address, device in ((), self.here, self.name), (("-n", self.name), self.there, "eth0"):
            self._run(*where, "address", "add", f"{address}/30", "dev", device)
            self._run(*where, "link", "set", device, "up")

    def _run(self, *arguments: str) -> None:
        subprocess.run([self.ip, *arguments], check=True)

    @asynccontextmanager
    async def reading(self, server: Server, request: bytes, count: int) -> AsyncIterator[None]:
        """So many clients in the namespace, each with its first token."""
        command = (self.ip, "netns", "exec", self.name, sys.executable, "-c", READERS)
        async with running(*command, server.host, str(server.port), str(count)) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write(request)
            process.stdin.write_eof()
            await process.stdout.readexactly(count)
            yield

    def swallow(self) -> None:
        """From now on lose every packet, both ways: it goes out to a hardware address that nobody has."""
        nobody = ("lladdr", "02:00:00:00:00:00", "nud", "permanent")
        self._run("neighbour", "replace", self.there, *nobody, "dev", self.name)
        self._run("-n", self.name, "neighbour", "replace", self.here, *nobody, "dev", "eth0")

    def close(self) -> None:
        subprocess.run([self.ip, "link", "delete", self.name], stderr=subprocess.DEVNULL)
        subprocess.run([self.ip, "netns", "delete", self.name], stderr=subprocess.DEVNULL)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    namespace = Namespace()
    try:
        namespace.start()
        yield namespace
    finally:
        namespace.close()


@pytest.mark.timeout(120)
async def test_black_hole_frees_its_replies_and_no_other_client_notices(
    namespace: Namespace,
    serve: Callable[..., Server],
    own_rows: Rows,
    database: str,
    say: Callable[..., None],
) -> None:
    count, write_timeout_s, window_s = scale(10, 50), 2, 0.5
    server = serve(
        HOST=namespace.here,
        TRUST_IDENTITY_HEADERS="1",
        WRITE_TIMEOUT_S=str(write_timeout_s),
        RESUME_WINDOW_S=str(window_s),
        SIM_DELAY_MS="20-20",
    )
    lost = own_rows.tenant()
    request = post("/chat/stream", b'{"message": "tell a story ??"}', lost)

    def left(*, window_s: float) -> list[tuple[Any, ...]]:
        """Return the questions, ids and texts of the replies whose clients are known to be gone for so long."""
        return own_rows(
            "select question.content, reply.id, reply.content from messages as question join messages as reply"
            " on reply.chat_id = question.chat_id and reply.position = 2"
            " where question.org_id = %s and question.position = 1 and reply.status = 'disconnected'"
            " and reply.finished_at < clock_timestamp() - make_interval(secs => %s)",
            lost.org_id,
            window_s,
        )

    async with ledger([server], own_rows.tenant(), SEED) as clients:
        async with talking(clients, 10) as entries:
            # What is measured before and beside.
            await asyncio.sleep(scale(1, 5))
            async with namespace.reading(server, request, count):
                assert peers(server).count(namespace.there) == count
                hole_s = time.monotonic()
                namespace.swallow()
                await eventually(lambda: len(left(window_s=0)) == count, write_timeout_s + scale(5, 1))
                closed_s = time.monotonic() - hole_s
                assert namespace.there not in peers(server)
                await eventually(lambda: len(left(window_s=window_s)) == count, window_s + 1)
                freed_s = time.monotonic() - hole_s
        before, beside = p99_gap_ms(entries, end_s=hole_s), p99_gap_ms(entries, hole_s, hole_s + closed_s)
        assert all(entry.is_done for entry in entries)
        assert clients.compare(own_rows) == {"complete": len(entries)}
        for question, reply_id, content in left(window_s=window_s):
            assert expected_text(question).startswith(content)
            # Nothing is left to resume.
            url = f"{server.base}/chat/stream/{reply_id}?offset={len(content)}"
            async with clients.session.get(url, headers=lost.headers) as response:
                assert response.status == 204
    say(
        replies=count,
        closed=f"{closed_s:.2f}s",
        freed=f"{freed_s:.2f}s",
        p99_gap_before=f"{before:.1f}ms",
        p99_gap_beside=f"{beside:.1f}ms",
    )
    # Two cores, shared with whatever else runs; in the short form with other tests, and with few gaps to measure.
    assert beside < scale(max(3 * before, 500), max(2 * before, 100))
    assert server.errors() == []
    assert broken_invariants(database) == {}


CONFIG = """
daemon off;
user root;
pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
    log_format reply '$request_method $upstream_addr';
    access_log access.log reply;
    {temporary}
    {more}
    upstream app.localhost {{ {servers} }}
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"""

HARSH = """
    gzip on;
    gzip_types text/event-stream;
    gzip_http_version 1.0;
    gzip_min_length 0;
    gzip_proxied any;
    location / {
        proxy_pass http://127.0.0.1:3000;
        proxy_http_version 1.0;
    }
"""


def recommended() -> str:
    """Return what app/README.md says to nginx."""
    [location] = re.findall(
        r"^ +location / \{.*?\}", (ROOT / "app/README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    return str(location)


def under(path: str, location: str) -> str:
    return location.replace("location / ", f"location {path} ").replace(":3000;", ":3000/;")


class Nginx:
    """A real one, round robin before some servers, or before others of its kind."""

    def __init__(self, folder: Path, servers: Sequence[Server | Nginx], location: str, more: str = "") -> None:
        program, port = tool("nginx", "nginx"), unused_port()
        folder.mkdir()
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        (folder / "nginx.conf").write_text(
            CONFIG.format(
                temporary="".join(f"{name}_temp_path {folder};" for name in names),
                more=more,
                servers="".join(f"server {server.host}:{server.port};" for server in servers),
                port=port,
                location=location.replace("127.0.0.1:3000", "app.localhost"),
            )
        )
        [path] = re.findall(r"location (\S*)/ ", location)
        self.host, self.port, self.base = "127.0.0.1", port, f"http://127.0.0.1:{port}{path}"
        self.folder = folder
        self.popen = subprocess.Popen([program, "-p", folder, "-c", "nginx.conf", "-e", "error.log"])

    def is_listening(self) -> bool:
        assert self.popen.poll() is None, (self.folder / "error.log").read_text()
        return (self.folder / "nginx.pid").exists()

    def asked(self) -> list[tuple[str, ...]]:
        """Return the method of each request that has ended, and the server that had it."""
        return [tuple(line.split()) for line in (self.folder / "access.log").read_text().splitlines()]

    def close(self) -> None:
        self.popen.terminate()
        self.popen.wait(10)


StartNginx = Callable[[Sequence[Server | Nginx], str], Awaitable[Nginx]]


@pytest.fixture
async def nginx(tmp_path: Path) -> AsyncIterator[StartNginx]:
    """Give a function that puts an nginx before servers: `await nginx([server, …], location)`."""
    proxies: list[Nginx] = []

    async def start(servers: Sequence[Server | Nginx], location: str) -> Nginx:
        proxies.append(Nginx(tmp_path / f"nginx{len(proxies)}", servers, location))
        await eventually(proxies[-1].is_listening)
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.mark.parametrize(
    "locations",
    # The last one: a stranger, who hears of no buffering only if the one as in the README passes it on.
    [[HARSH], [recommended()], [recommended(), under("/llm/", HARSH)]],
    ids=["HTTP/1.0 and gzip", "as the README says", "both, under a path"],
)
@pytest.mark.timeout(120)
async def test_words_come_through_nginx_in_their_time_and_readers_come_back(
    nginx: StartNginx,
    serve: Callable[..., Server],
    own_rows: Rows,
    database: str,
    say: Callable[..., None],
    locations: Sequence[str],
) -> None:
    server = serve(SIM_DELAY_MS=scale("10-10", "20-20"))
    behind: Server | Nginx = server
    for location in locations:
        behind = proxy = await nginx([behind], location)
    tenant = own_rows.tenant()
    async with ledger([proxy], tenant, SEED) as clients:
        direct, proxied = ([clients.entry(LONG) for _ in range(scale(5, 20))] for _ in range(2))
        for entry in direct + proxied:
            entry.words_at_s = []
        await asyncio.gather(
            *(clients.ask(entry, base=server.base) for entry in direct), *(clients.ask(entry) for entry in proxied)
        )
        assert all(entry.is_done for entry in direct + proxied)
        # The words' delays are all the same: what a word is later by is what nginx kept it for.
        first_s, *later_s = (
            median(words_of(entry)[i] for entry in proxied) - median(words_of(entry)[i] for entry in direct)
            for i in range(len(words_of(direct[0])))
        )

        say(first_word_later=f"{first_s * 1000:.1f}ms", any_word_later=f"{max(later_s) * 1000:.1f}ms")
        # A buffer of nginx would keep 4 KiB of words, in the short form for 0.4 s.
        assert max(first_s, *later_s) < scale(0.3, 0.1)

        async def left() -> None:
            """Wait until nginx has told the server that the client is gone: it stores what it has."""
            row = "select status, content from messages where id = %s"
            text = expected_text(cut.question)
            stored = 0
            while stored < len(cut.seen):
                [(status, content)] = await eventually(lambda: own_rows(row, cut.reply_id))
                assert (status, text.startswith(content)) == ("streaming", True)
                stored = len(content)
                await asyncio.sleep(0.01)

        cut = clients.entry(LONG)
        await clients.ask(cut, cut_after=40)
        await left()
        await clients.resume(cut, cut_after=40)
        await left()
        url = f"{proxy.base}/chat/stream"
        headers = {"Last-Event-ID": f"{cut.reply_id}:{len(cut.seen)}"}
        await clients.read(cut, clients.session.get(url, params=tenant.query, headers=headers), None)
        assert cut.is_done
        assert clients.compare(own_rows) == {"complete": len(clients.entries)}
        async with clients.session.get(f"{url}/{cut.reply_id}", headers=tenant.headers) as response:
            assert response.headers.get("Content-Encoding") == ("gzip" if "gzip on" in locations[-1] else None)
        # The page's address without its slash.
        async with clients.session.get(proxy.base) as response:
            assert response.url.path.endswith("/")
            assert "Streaming chat" in await response.text()
    assert server.errors() == []
    assert broken_invariants(database) == {}


@pytest.mark.timeout(300)
async def test_streams_cut_and_resumed_through_a_proxy_before_two_servers_are_exact(
    nginx: StartNginx, serve: Callable[..., Server], own_rows: Rows, database: str, say: Callable[..., None]
) -> None:
    count = scale(20, 200)
    servers = [serve(), serve()]
    proxy = await nginx(servers, recommended())
    async with ledger([proxy], own_rows.tenant(), SEED) as clients:
        entries = [clients.entry(LONG) for _ in range(count)]
        await asyncio.gather(*(clients.until_done(entry, cuts=clients.rng.randint(1, 5)) for entry in entries))
        assert [entry for entry in entries if entry.seen != expected_text(entry.question)] == []
        assert clients.compare(own_rows) == {"complete": count}
    await eventually(lambda: len(proxy.asked()) > count)
    counts = Counter(proxy.asked())
    say(streams=count, **{f"{method}_{address}": times for (method, address), times in counts.items()})
    # Each server was asked, and asked to go on.
    assert len(counts) == 4
    assert [server.errors() for server in servers] == [[], []]
    assert broken_invariants(database) == {}


@pytest.mark.timeout(120)
async def test_stop_second_reader_and_key_find_a_reply_from_behind_a_proxy(
    nginx: StartNginx, serve: Callable[..., Server], own_rows: Rows, database: str
) -> None:
    count = scale(8, 20)
    # Slow enough that none is over before it is stopped.
    servers = [serve(SIM_DELAY_MS="8-16") for _ in range(2)]
    proxy = await nginx(servers, recommended())
    tenant = own_rows.tenant()
    async with ledger([proxy], tenant, SEED) as clients:
        entries = [clients.entry(LONG) for _ in range(3 * count)]
        running = [asyncio.create_task(clients.ask(entry)) for entry in entries]
        await eventually(lambda: all(entry.seen for entry in entries))
        # Shuffled, so that nginx's turns bring them to the server that has the reply, and to the other.
        clients.rng.shuffle(entries)
        stopped, read_again, asked_again = entries[:count], entries[count : 2 * count], entries[2 * count :]

        async def stop(entry: Entry) -> None:
            for _ in range(2):
                await clients.stop(entry)
                assert (entry.status, entry.told) == (200, "stopped")

        again = [Entry(entry.question, reply_id=entry.reply_id) for entry in read_again]
        twice = [Entry(entry.question) for entry in asked_again]
        await asyncio.gather(*map(stop, stopped), *map(clients.resume, again), *map(clients.ask, twice), *running)
        assert [entry.last and entry.last["error"] for entry in stopped] == count * ["Stopped"]
        # However many read it, each is told all.
        readers = read_again + asked_again + again + twice
        assert all(entry.is_done and entry.seen == expected_text(entry.question) for entry in readers)
        assert [entry.reply_id for entry in twice] == [entry.reply_id for entry in asked_again]
        assert clients.compare(own_rows) == {"stopped": count, "complete": 2 * count}
    assert [server.errors() for server in servers] == [[], []]
    assert broken_invariants(database) == {}


# In make test the quickest of them.
@pytest.mark.parametrize("mode", ["-H", "-B", "-X"] if FULL else ["-B"])
@pytest.mark.timeout(180)
async def test_slowhttptest_slows_nobody_and_is_closed(
    serve: Callable[..., Server],
    own_rows: Rows,
    database: str,
    tmp_path: Path,
    say: Callable[..., None],
    mode: str,
) -> None:
    """Slow headers, slow bodies, slow readers."""
    program = tool("slowhttptest", "slowhttptest")
    count, seconds, timeout_s = scale((100, 3, "2"), (1000, 40, "10"))
    server = serve(
        KEEPALIVE_TIMEOUT_S=timeout_s,
        BODY_TIMEOUT_S=timeout_s,
        WRITE_TIMEOUT_S=timeout_s,
        SIM_DELAY_MS=scale("50-50", "100-100"),
    )
    attacker = own_rows.tenant()
    url = f"{server.base}/chat/stream"
    options = {
        "-H": ["-u", url],
        # It has no option for headers; but what it is told of one it sends as it is.
        "-B": ["-u", url, "-f", "\r\n".join(["application/json", *map(": ".join, attacker.headers.items())])],
        "-X": ["-u", f"{url}?message=tell+a+story&orgId={attacker.org_id}&userId={attacker.user_id}"],
    }[mode]
    async with AsyncExitStack() as attack:
        async with ledger([server], own_rows.tenant(), SEED) as clients:
            async with talking(clients, 10) as entries:
                # What is measured before and beside.
                await asyncio.sleep(scale(1, 10))
                _, descriptors = server.usage()
                begin_s = time.monotonic()
                load = ("-c", str(count), "-r", str(count), "-i", "1", "-l", str(seconds))
                await attack.enter_async_context(running(program, mode, *load, *options, folder=tmp_path))
                await eventually(lambda: server.usage()[1] > descriptors + 0.9 * count, 20)
                await asyncio.sleep(scale(1, 8))
                end_s = time.monotonic()
            assert all(entry.is_done for entry in entries)
            assert clients.compare(own_rows) == {"complete": len(entries)}
        # The long attack would go on: it is the server that ends it.
        await eventually(lambda: peers(server) == [], 30)
        closed_s = time.monotonic() - begin_s
    await all_ended(own_rows)
    before, beside = p99_gap_ms(entries, end_s=begin_s), p99_gap_ms(entries, begin_s, end_s)
    say(
        mode=mode,
        connections=count,
        p99_gap_before=f"{before:.1f}ms",
        p99_gap_beside=f"{beside:.1f}ms",
        closed=f"{closed_s:.1f}s",
    )
    # Two cores, shared with the attack; in the short form also with other tests, and with few gaps to measure.
    assert beside < scale(max(3 * before, 500), max(2 * before, 200))
    assert server.errors() == []
    # Slow readers all send the same URL.
    assert broken_invariants(database).keys() <= {"questions_asked_twice"}
