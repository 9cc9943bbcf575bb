"""Those who read, on a connection that keeps what is written to it, and is slow when told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_writer import StreamWriter
from aiohttp.test_utils import make_mocked_request
from support import events, logged

from app.errors import ApiError
from app.replies.reader import Client, EventReader, Readers, WholeReader
from app.replies.reply import Ended, Reply
from app.settings import Settings
from app.statuses import AWAY, Cut, FinalStatus
from app.storage.store import Caller

CALLER = Caller("org", "user")


class FakeTransport(asyncio.Transport):
    """Keeps what is written to it. `backlog`: the bytes that its peer has not read yet."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.backlog = 0
        self.closing = False
        self.aborted = False

    def write(self, data: Any) -> None:
        assert not self.closing
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.backlog

    def abort(self) -> None:
        self.closing = self.aborted = True


class FakeProtocol(BaseProtocol):
    peername = sockname = ssl_context = None


class Connection:
    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.protocol = FakeProtocol(asyncio.get_running_loop())
        self.request: web.Request = make_mocked_request(
            "GET",
            "/",
            protocol=self.protocol,
            transport=self.transport,
            writer=StreamWriter(self.protocol, asyncio.get_running_loop()),
        )

    def take(self) -> bytes:
        """Return what was written since the last call, the headers left out."""
        written, self.transport.written = bytes(self.transport.written), bytearray()
        head, blank, rest = written.partition(b"\r\n\r\n")
        return rest if blank and head.startswith(b"HTTP/1.1 ") else written

    def reset(self) -> None:
        self.transport.closing = True
        self.protocol.connection_lost(ConnectionResetError())


def body(written: bytes) -> list[bytes]:
    """Return the chunks."""
    chunks = []
    while written:
        size, _, rest = written.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        written = rest[int(size, 16) + 2 :]
    return chunks


def text(chunks: list[bytes]) -> str:
    return "".join(event.get("token", "") for event in events(b"".join(chunks)))


def new_reply(said: str = "") -> Reply:
    reply = Reply("reply-id", "chat-id", datetime.now(UTC))
    reply.say(said)
    return reply


def finish(reply: Reply, status: FinalStatus = "complete") -> None:
    reply.close(status)
    reply.end(Ended(status))


async def step() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Reading:
    """A reader at work: of `reply` from `offset`, on a connection of its own."""

    def __init__(
        self, reply: Reply, offset: int = 0, numbered: bool = False, reasoning: bool = False, **settings: Any
    ) -> None:
        self.connection = Connection()
        self.take, self.protocol = self.connection.take, self.connection.protocol
        self.reader = EventReader(
            self.connection.request, Settings(**settings), numbered=numbered, reasoning=reasoning
        )
        self.reader.attach(reply)
        self.task = asyncio.create_task(self.reader.read(reply, offset))


async def test_word_is_written_in_the_step_in_which_it_is_said() -> None:
    reply = new_reply()
    reading = Reading(reply)
    await step()
    assert reading.take() == b""
    reply.say("One")
    assert reading.take() == b'24\r\ndata: {"token":"One","done":false}\n\n\r\n'
    reply.say(" two")
    assert text(body(reading.take())) == " two"
    finish(reply)
    await reading.task
    last, end = body(reading.take())
    assert (events(last)[0]["fullText"], end) == ("One two", b"")
    assert reading.reader.over is None


async def test_reader_who_comes_late_catches_up_and_follows() -> None:
    reply = new_reply("One two")
    reading = Reading(reply, 3, numbered=True)
    await step()
    start, rest = body(reading.take())
    assert start == b'id: reply-id:3\ndata: {"token":"","done":false}\n\n'
    assert rest == (
        b'id: reply-id:4\ndata: {"token":" ","done":false}\n\n'
        b'id: reply-id:7\ndata: {"token":"two","done":false}\n\n'
    )
    reply.say(" three")
    assert body(reading.take())[0].endswith(b'id: reply-id:13\ndata: {"token":"three","done":false}\n\n')
    finish(reply, "stopped")
    await reading.task
    assert body(reading.take())[0].startswith(b'id: reply-id:13:end\ndata: {"error":"Stopped"')


async def test_reader_who_is_behind_is_sent_the_rest_once_they_have_read() -> None:
    reply = new_reply()
    slow, quick = Reading(reply), Reading(reply)
    await step()
    slow.protocol.pause_writing()
    for word in ("One", " two", " three"):
        reply.say(word)
        await step()
    # The word with which they fell behind is on its way; what follows waits where it takes no room.
    assert text(body(slow.take())) == "One"
    assert text(body(quick.take())) == "One two three"
    slow.protocol.resume_writing()
    await step()
    assert len(chunks := body(slow.take())) == 1
    assert text(chunks) == " two three"
    reply.say(" four")
    assert text(body(slow.take())) == text(body(quick.take())) == " four"
    finish(reply)
    await asyncio.gather(slow.task, quick.task)
    assert body(slow.take()) == body(quick.take())


async def test_reader_who_is_behind_misses_what_is_thought_and_no_word() -> None:
    reply = new_reply()
    slow, quick = Reading(reply, reasoning=True), Reading(reply)
    await step()
    slow.protocol.pause_writing()
    for thought in ("One", "Two", "Three"):
        reply.think(thought)
        await step()
    reply.say("Hello")
    # Nor does what is thought take any room.
    assert events(b"".join(body(slow.take()))) == [{"reasoning": "One", "done": False}]
    assert text(body(quick.take())) == "Hello"
    slow.protocol.resume_writing()
    await step()
    assert text(body(slow.take())) == "Hello"
    reply.think("Four")
    assert events(b"".join(body(slow.take()))) == [{"reasoning": "Four", "done": False}]
    assert quick.take() == b""
    slow.protocol.connection_lost(None)
    slow.connection.transport.closing = True
    reply.think("Five")
    assert slow.reader.over == "gone"
    finish(reply)
    await asyncio.gather(slow.task, quick.task)


async def test_so_much_waits_for_a_reader_who_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.replies.reader.CATCH_UP_CHARS", 4)
    reply = new_reply("0123456789")
    reading = Reading(reply)
    reading.protocol.pause_writing()
    sent = []
    for _ in range(3):
        # aiohttp waits for nobody with the headers.
        await step()
        reading.protocol.resume_writing()
        reading.protocol.pause_writing()
        await step()
        sent.append(text(body(reading.take())))
    assert sent == ["0123", "4567", "89"]
    reading.task.cancel()


async def test_reader_who_is_behind_at_the_end_has_all_before_the_last_event() -> None:
    reply = new_reply()
    reading = Reading(reply)
    await step()
    reading.protocol.pause_writing()
    for word in ("One", " two"):
        reply.say(word)
    finish(reply)
    await step()
    assert not reading.task.done()
    reading.protocol.resume_writing()
    await reading.task
    *said, last, end = body(reading.take())
    assert (text(said), events(last)[0]["done"], end) == ("One two", True, b"")


@pytest.mark.parametrize("behind", [False, True])
async def test_reader_who_is_cut_is_told_why(behind: bool) -> None:
    reply = new_reply()
    reading = Reading(reply)
    await step()
    if behind:
        reading.protocol.pause_writing()
        reply.say("One")
        reply.say(" two")
        await step()
    reply.cut(AWAY)
    await step()
    if behind:
        assert not reading.task.done()
        reading.protocol.resume_writing()
    await reading.task
    *said, last, end = body(reading.take())
    assert text(said) == ("One two" if behind else "")
    assert (events(last), end) == (
        [
            {
                "error": "Cut short",
                "message": "The database did not answer. The reply may go on: come back for the rest.",
            }
        ],
        b"",
    )
    assert reading.reader.over == AWAY


async def test_nothing_follows_the_end_of_a_stream_that_is_cut_while_the_reply_goes_on() -> None:
    reply = new_reply()
    reading = Reading(reply, reasoning=True)
    await step()
    reply.cut(AWAY)
    reading.protocol.pause_writing()
    await step()
    assert not reading.task.done()
    reply.think("Hm")
    reply.say("One")
    reading.protocol.resume_writing()
    await reading.task
    last, end = body(reading.take())
    assert (events(last)[0]["error"], end) == ("Cut short", b"")


async def test_client_who_leaves_while_nothing_is_said_is_seen_to_have_left() -> None:
    reply = new_reply("One")
    reading = Reading(reply)
    await step()
    reading.take()
    reading.connection.reset()
    assert not reading.reader.look(0)
    reading.reader.leave()
    await reading.task
    assert (reading.reader.over, reading.take()) == ("gone", b"")


async def test_client_who_leaves_is_seen_to_have_left_by_the_next_word() -> None:
    reply = new_reply()
    reading = Reading(reply)
    await step()
    reading.connection.reset()
    reply.say("One")
    reply.say(" two")
    await reading.task
    assert (reading.reader.over, reading.take()) == ("gone", b"")


async def test_client_who_leaves_while_they_are_behind_is_seen_to_have_left() -> None:
    reply = new_reply()
    reading = Reading(reply)
    await step()
    reading.protocol.pause_writing()
    reply.say("One")
    await step()
    reading.connection.reset()
    await reading.task
    assert reading.reader.over == "gone"


async def test_client_who_left_before_they_were_answered_is_written_nothing() -> None:
    reply, connection = new_reply("One"), Connection()
    reader = EventReader(connection.request, Settings(), numbered=False)
    connection.reset()
    reader.attach(reply)
    await reader.read(reply, 0)
    assert (reader.over, connection.take()) == ("gone", b"")


async def test_first_reason_to_read_no_more_is_the_one() -> None:
    reply = new_reply()
    reading = Reading(reply)
    await step()
    reply.cut(Cut("First", "First."))
    reading.reader.leave()
    reply.cut(Cut("Second", "Second."))
    await reading.task
    assert reading.reader.over == Cut("First", "First.")


async def test_reader_who_has_more_is_sent_only_what_they_have_not() -> None:
    reply = new_reply("One")
    reading = Reading(reply, 5)
    await step()
    for word in (" t", "wo"):
        # A row is looked at.
        reply.say(word)
        reading.reader.wake()
        await step()
    assert text(body(reading.take())) == "wo"
    reply.say(" three")
    assert text(body(reading.take())) == " three"
    finish(reply)
    await reading.task


async def test_reader_who_has_more_than_was_kept_is_told_so() -> None:
    reply = new_reply("One")
    reading = Reading(reply, 5)
    finish(reply, "interrupted")
    await reading.task
    last, _ = body(reading.take())
    assert events(last) == [
        {"error": "Bad offset", "message": "offset is 5, expected at most 3, what the reply has."}
    ]


async def test_silent_stream_is_pinged_and_a_stuck_one_aborted() -> None:
    reply = new_reply()
    reading = Reading(reply, heartbeat_s=15.0, write_timeout_s=30.0)
    look, transport = reading.reader.look, reading.connection.transport
    assert look(0)
    await step()
    reading.take()
    assert look(100)
    assert look(114.9)
    assert reading.take() == b""
    assert look(115)
    assert reading.take() == b"7\r\n: ping\n\r\n"
    reading.protocol.pause_writing()
    transport.backlog = 1000
    reply.say("One")
    await step()
    reading.take()
    assert look(200)
    assert look(229.9)
    # As long as they read at all, there is time.
    transport.backlog = 999
    assert look(230)
    assert look(259.9)
    assert reading.take() == b""
    assert not look(260)
    assert transport.aborted
    reading.task.cancel()


class TestWholeReader:
    async def read(self, reply: Reply) -> tuple[WholeReader, asyncio.Task[Any]]:
        reader = WholeReader(Connection().request)
        reader.attach(reply)
        reading = asyncio.create_task(reader.read(reply))
        reply.say("One")
        await step()
        assert not reading.done()
        return reader, reading

    async def test_end_is_waited_for(self) -> None:
        reply = new_reply()
        _, reading = await self.read(reply)
        reply.close("complete")
        await step()
        assert not reading.done()
        reply.end(Ended("interrupted"))
        assert await reading == Ended("interrupted")

    async def test_who_is_cut_waits_no_more(self) -> None:
        reply = new_reply()
        _, reading = await self.read(reply)
        reply.cut(Cut("Why", "Why."))
        assert await reading == Cut("Why", "Why.")

    async def test_who_leaves_waits_no_more(self) -> None:
        reply = new_reply()
        reader, reading = await self.read(reply)
        reader.leave()
        assert await reading == "gone"

    async def test_look_that_says_nothing_new_is_waited_through(self) -> None:
        reply = new_reply()
        reader, reading = await self.read(reply)
        reader.wake()
        await step()
        assert not reading.done()
        finish(reply)
        assert await reading == Ended("complete")


class TestReaders:
    async def test_reader_is_detached_whatever_ends_the_reading(self) -> None:
        readers, reply, client = Readers(Settings()), new_reply(), Client(Connection().request)

        def fail() -> None:
            with readers.reading(CALLER, client):
                client.attach(reply)
                assert reply.readers == [client]
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert reply.readers == []
        with readers.reading(CALLER, Client(Connection().request)):
            # Attached to nothing.
            pass

    async def test_user_reads_as_much_as_they_may(self) -> None:
        readers = Readers(Settings(user_reader_limit=2))
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(readers.reading(CALLER, Client(Connection().request)))
            with (
                pytest.raises(ApiError, match="You have 2 streams open") as refused,
                readers.reading(CALLER, Client(Connection().request)),
            ):
                pass
            assert refused.value.status == 429
            with readers.reading(Caller("org", "other"), Client(Connection().request)):
                pass
        with readers.reading(CALLER, Client(Connection().request)):
            pass

    async def test_time_in_which_the_process_stood_still_counts_against_nobody(self) -> None:
        looks: list[float] = []

        class Noting(Client):
            def look(self, now_s: float) -> bool:
                looks.append(now_s)
                return True

        readers = Readers(Settings(heartbeat_s=0.1))
        with readers.reading(CALLER, Noting(Connection().request)):
            watching = asyncio.create_task(readers.watch())
            while len(looks) < 4:
                if len(looks) == 2:
                    # Nothing of this process runs meanwhile.
                    time.sleep(0.3)
                await asyncio.sleep(0)
            watching.cancel()
        assert max(after - before for before, after in itertools.pairwise(looks)) < 0.03

    async def test_those_who_are_gone_leave(self, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(Client):
            def look(self, now_s: float) -> bool:
                raise ZeroDivisionError

        readers = Readers(Settings(heartbeat_s=0.1))
        connections = [Connection() for _ in range(3)]
        there, gone = Client(connections[0].request), Client(connections[1].request)
        broken = Broken(connections[2].request)
        with contextlib.ExitStack() as stack:
            for client in (there, gone, broken):
                stack.enter_context(readers.reading(CALLER, client))
            watching = asyncio.create_task(readers.watch())
            connections[1].reset()
            async with asyncio.timeout(1):
                while broken.over is None:
                    await asyncio.sleep(0.005)
            watching.cancel()
        assert (there.over, gone.over, broken.over) == (None, "gone", "gone")
        assert logged(caplog, "Watch failed")
