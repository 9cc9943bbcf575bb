"""The state machine of test_reply.py on two servers: any events, over sockets and in rows."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeVar

import pytest
from aiohttp.test_utils import TestServer
from house import answer, come_back, first_event, hears, held, lost, stop, stored
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test
from ledger import FULL, STATUSES, scale
from serving import serving
from state_machine import PAUSE_S, RAW, WINDOWS, ReplyMachine
from support import RawClient, Rows, Tenant, eventually, post

from app.models import Conversation, Message
from app.replies.turns import TURNS
from app.statuses import STOPPING, FinalStatus, failure

# Skipped at once by a rule, and by no other step.
WINDOW_S = 60.0

# For what happens at one server to be known everywhere: hundreds of times what it takes.
SETTLED_S = 5.0

T = TypeVar("T")


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time can be made to pass."""

    skipped_s = 0.0

    def time(self) -> float:
        return super().time() + self.skipped_s


class Speech:
    """What a model says to one question: what it is given here, piece by piece, as it is asked for it."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.is_asked = False
        self.is_over = False
        self.given: deque[str | Exception | None] = deque()
        self._news = asyncio.Event()

    def give(self, *pieces: str | Exception | None) -> None:
        """An exception is raised; None is the end."""
        self.given.extend(pieces)
        self._news.set()

    async def pieces(self) -> AsyncIterator[str]:
        try:
            while True:
                self.is_asked = True
                while not self.given:
                    self._news.clear()
                    await self._news.wait()
                self.is_asked = False
                piece = self.given.popleft()
                if piece is None:
                    return
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.is_asked, self.is_over = False, True


class Reader:
    """A client who reads events, and checks the form of each."""

    follows = True

    def __init__(
        self, client: RawClient, server: TestServer, *, question: str = "", seen: str | None = None
    ) -> None:
        self.client, self.server = client, server
        # "": they come back.
        self.question = question
        # With what they had before they came.
        self.seen = seen or ""
        self.last: dict[str, Any] | None = None
        # Of the answer, and what its headers say.
        self.status = 0
        self.reply_id = self.chat_id = ""
        self.reading: asyncio.Task[None] | None = None
        self._numbered = seen is not None

    async def begin(self) -> Reader:
        line, head = await self.client.read_head()
        self.status = int(line.split()[1])
        if self.status == 200:
            self.reply_id, self.chat_id = head[b"x-message-id"].decode(), head[b"x-chat-id"].decode()
            self.reading = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        if self._numbered:
            assert await self.client.read_chunk() == first_event(self.reply_id, len(self.seen))
        while chunk := await self.client.read_chunk():
            if chunk != b": ping\n":
                *blocks, rest = chunk.decode("ascii").split("\n\n")
                assert rest == ""
                for block in blocks:
                    self._take(*block.split("\n"))
        assert self.last is not None

    def _take(self, *lines: str) -> None:
        assert self.last is None, "no event comes after the last"
        event = json.loads(lines[-1].removeprefix("data: "))
        end = ""
        if event.get("done") is False:
            self.seen += event["token"]
        else:
            self.last, end = event, ":end"
        has_id = self._numbered and event.get("error") not in ("Cut short", "Bad offset")
        assert list(lines[:-1]) == ([f"id: {self.reply_id}:{len(self.seen)}{end}"] if has_id else [])

    def leave(self, abruptly: bool) -> None:
        if self.reading is not None:
            self.reading.cancel()
        if self.client.writer.is_closing():
            # More than once.
            return
        if abruptly:
            self.client.reset()
        else:
            self.client.writer.close()


class Servers:
    """Two servers on one database, and what one user asks of them."""

    def __init__(self, start: Callable[..., Any], tenant: Tenant, options: dict[str, Any]) -> None:
        self._start, self.tenant, self._options = start, tenant, options
        self.servers: list[TestServer] = []
        self.speeches: list[Speech] = []
        self.readers: list[Reader] = []

    def model(self, conversation: Conversation) -> AsyncIterator[str]:
        self.speeches.append(Speech(list(conversation.messages)))
        return self.speeches[-1].pieces()

    async def start(self) -> TestServer:
        server: TestServer = await hears(await self._start(model=self.model, **self._options))
        return server

    async def start_both(self) -> None:
        self.servers = [await self.start(), await self.start()]

    async def restart(self, at: int) -> None:
        await self.servers[at].close()
        self.servers[at] = await self.start()

    async def ask(self, at: int, question: str, chat_id: str | None) -> Reader:
        """Ask it with a key that it has for itself."""
        client = await RawClient.connect(self.servers[at])
        body = {"message": question} | ({} if chat_id is None else {"chat_id": chat_id})
        key = f"Idempotency-Key: {question.replace(' ', '-')}\r\n"
        client.send(post("/chat/stream", json.dumps(body).encode(), self.tenant, headers=key))
        return await self._read(Reader(client, self.servers[at], question=question))

    async def come(self, at: int, reply_id: str, seen: str) -> Reader:
        client = await come_back(self.servers[at], self.tenant, reply_id, len(seen))
        return await self._read(Reader(client, self.servers[at], seen=seen))

    async def _read(self, reader: Reader) -> Reader:
        self.readers.append(reader)
        return await reader.begin()

    async def stop(self, at: int, reply_id: str) -> tuple[int, dict[str, Any]]:
        return await answer(await stop(self.servers[at], self.tenant, reply_id))


@dataclass
class Turn:
    """A question and its reply, as they must be for ever."""

    question: str
    reply: str
    status: FinalStatus


MAX_STEPS = 200

# What is done; whether elsewhere or at home (who leaves: by RST or FIN); how many steps of the event loop later.
Act = tuple[str, bool, int]
ACTS: st.SearchStrategy[list[Act]] = st.lists(
    st.tuples(
        st.sampled_from(["ask", "come", "complete", "failed", "leave", "say", "stop"]),
        st.booleans(),
        st.integers(0, MAX_STEPS),
    ),
    min_size=2,
    max_size=5,
)


async def pass_by(steps: int) -> None:
    """Let the event loop do so many steps."""
    for _ in range(steps):
        await asyncio.sleep(0)


class Rush:
    """What is done at once, and how it is answered."""

    def __init__(self, chat: ChatAtTwoServers, acts: list[Act], pieces: list[str]) -> None:
        self.come: list[Reader] = []
        self.asked: list[Reader] = []
        self.stopped: list[tuple[int, dict[str, Any]]] = []
        self._chat, self._acts, self._pieces = chat, acts, pieces

    async def run(self, closes_slowly: bool) -> None:
        chat = self._chat
        done = asyncio.gather(*(self._do(number, *act) for number, act in enumerate(self._acts)))
        if closes_slowly:
            # Others come while its end is being stored.
            with held(chat.rows, "messages", chat.reply_id):
                await pass_by(2 * MAX_STEPS)
        await done
        self.stopped.append(await chat.at_both.stop(chat.home ^ True, chat.reply_id))

    async def _do(self, number: int, kind: str, elsewhere: bool, steps: int) -> None:
        await pass_by(steps)
        chat, at = self._chat, self._chat.home ^ elsewhere
        if kind == "ask":
            question = f"Question {len(chat.turns) + 1}, one of those at once: {number}"
            self.asked.append(await chat.at_both.ask(at, question, chat.chat_id))
        elif kind == "come":
            self.come.append(await chat.at_both.come(at, chat.reply_id, chat.text))
        elif kind == "leave":
            for reader in chat.readers:
                reader.leave(abruptly=elsewhere)
        elif kind == "stop":
            self.stopped.append(await chat.at_both.stop(at, chat.reply_id))
        elif kind == "say":
            chat.speech.give(*self._pieces)
        else:
            chat.speech.give(None if kind == "complete" else RuntimeError("it fails"))


class ChatAtTwoServers(ReplyMachine):
    """The replies of one chat, one after the other."""

    chars_before_close = 1

    def __init__(self, postgres_url: str, rows: Rows) -> None:
        super().__init__()
        self.url, self.rows = postgres_url, rows
        self.runner: asyncio.Runner | None = None

    @initialize(
        target=ReplyMachine.attached,
        window_s=WINDOWS | st.just(PAUSE_S),
        limit_chars=st.sampled_from([None, None, 8]),
    )
    def begin(self, window_s: float | None, limit_chars: int | None) -> Reader:
        self.expect(window_s, limit_chars)
        options: dict[str, Any] = {
            # Who leaves is seen within a tenth of it.
            "heartbeat_s": 0.1,
            "shutdown_grace_s": 0,
            "history_limit_messages": 1000,
            "db_pool_size": 3,
            # More than is skipped.
            "db_timeout_s": 2 * WINDOW_S,
        }
        if window_s is None:
            options["unread"] = "finish"
        else:
            options["resume_window_s"] = WINDOW_S if window_s else 0.0
        if limit_chars is not None:
            options["reply_limit_chars"] = limit_chars
        self.runner = asyncio.Runner(loop_factory=SkippingLoop)
        self.stack = AsyncExitStack()
        start = self.run(self.stack.enter_async_context(serving(self.url)))
        self.at_both = Servers(start, self.rows.tenant(), options)
        self.run(self.at_both.start_both())
        self.chat_id: str | None = None
        # Those before.
        self.turns: list[Turn] = []
        reader = self.open(0)
        self.settle()
        return reader

    def teardown(self) -> None:
        if self.runner is not None:
            self.run(self.close_all())
            self.runner.close()

    async def close_all(self) -> None:
        for reader in self.at_both.readers:
            reader.leave(abruptly=False)
        await self.stack.aclose()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        assert self.runner is not None
        return self.runner.run(work)

    def open(self, at: int) -> Reader:
        """Ask a question that is to be answered."""
        question = f"Question {len(self.turns)}"
        reader = self.run(self.at_both.ask(at, question, self.chat_id))
        self.opened(reader)
        return reader

    def opened(self, reader: Reader) -> None:
        assert reader.status == 200
        self.home = self.at_both.servers.index(reader.server)
        self.question, self.asked_in = reader.question, self.chat_id
        self.reply_id, self.chat_id = reader.reply_id, reader.chat_id
        self.run(eventually(lambda: len(self.at_both.speeches) > len(self.turns)))
        self.speech = self.at_both.speeches[-1]
        self.readers.append(reader)
        # The model was given it, and has not been asked for it.
        self.unsaid: deque[str | Exception | None] = deque()
        self.is_asked = True
        # What its row has at least.
        self.kept = ""

    def go_on(self) -> None:
        """The reply has ended; expect the next one."""
        assert self.status is not None
        self.turns.append(Turn(self.question, self.text, self.status))
        self.expect(self.window_s, self.limit_chars)

    # What the machine does.

    def speak(self, piece: str | Exception | None) -> None:
        self.unsaid.append(piece)
        self.speech.give(piece)

    def come(self, seen: str, elsewhere: bool) -> Reader:
        reader = self.run(self.at_both.come(self.home ^ elsewhere, self.reply_id, seen))
        assert reader.status == (204 if self.status not in (None, "complete") and seen == self.text else 200)
        self.is_asked = True
        return reader

    def leave(self, reader: Reader, abruptly: bool) -> None:
        reader.leave(abruptly)

    def left(self, reader: Any) -> None:
        super().left(reader)
        if not self.readers:
            self.kept = self.text

    def bring_about(self, status: FinalStatus, elsewhere: bool) -> FinalStatus | None:
        if status == "stopped":
            self.stop(elsewhere, status)
            return status
        if status == "interrupted":
            return self.restart_server(elsewhere)
        if status == "disconnected":
            return self.skip_window()
        self.speak(None if status == "complete" else RuntimeError("it fails"))
        return None

    def stop(self, elsewhere: bool, status: FinalStatus | None) -> None:
        answered = self.run(self.at_both.stop(self.home ^ elsewhere, self.reply_id))
        assert answered == (200, {"message_id": self.reply_id, "status": status})

    def restart_server(self, elsewhere: bool) -> FinalStatus | None:
        """Return how that ends the reply."""
        at, running = self.home ^ elsewhere, self.status is None
        ends_as: FinalStatus = "disconnected" if super().is_held else "interrupted"
        cut = [reader for reader in self.readers if reader.server is self.at_both.servers[at]]
        self.run(self.at_both.restart(at))
        if running and not elsewhere:
            return ends_as
        for reader in cut if running else []:
            self.run(eventually(lambda reader=reader: reader.last))
            assert reader.last == STOPPING._asdict()
            self.left(reader)
        return None

    def skip_window(self) -> FinalStatus | None:
        """Return how that ends the reply."""
        # With none, a server that reads it would be taken for gone for a moment, and that would end it.
        if self.window_s != 0:
            assert self.runner is not None
            self.runner.get_loop().skipped_s += WINDOW_S + 1  # type: ignore[attr-defined]
            # What is due by now begins.
            self.run(asyncio.sleep(0))
        return "disconnected" if super().is_held else None

    # What else may happen.

    @precondition(lambda self: self.status is None and self.readers)
    @rule()
    def let_all_leave(self) -> None:
        for reader in list(self.readers):
            self.leave(reader, abruptly=True)
            self.left(reader)
        self.settle()

    # Unread as well, and read again: by itself that is rare.
    @precondition(lambda self: self.status is None)
    @rule(unread=st.booleans(), elsewhere=st.none() | st.booleans())
    def let_time_pass(self, unread: bool, elsewhere: bool | None) -> None:
        if unread:
            self.let_all_leave()
        if elsewhere is not None:
            self.attach(0, elsewhere)
        if ends_as := self.skip_window():
            self.closed(ends_as)
        self.settle()

    @rule(elsewhere=st.booleans(), unread=st.booleans())
    def restart(self, elsewhere: bool, unread: bool) -> None:
        if unread:
            self.let_all_leave()
        if ends_as := self.restart_server(elsewhere):
            self.closed(ends_as)
        self.settle()

    @precondition(lambda self: self.status is not None or not self.readers)
    @rule(target=ReplyMachine.attached, elsewhere=st.booleans())
    def ask(self, elsewhere: bool) -> Reader:
        """Ask a new question in the chat."""
        if self.status is None:
            self.closed("disconnected")
        self.go_on()
        reader = self.open(self.home ^ elsewhere)
        self.settle()
        return reader

    @precondition(lambda self: self.status is None and self.readers)
    @rule(elsewhere=st.booleans())
    def ask_meanwhile(self, elsewhere: bool) -> None:
        reader = self.run(self.at_both.ask(self.home ^ elsewhere, "Refused", self.chat_id))
        assert reader.status == 409
        self.settle()

    @rule(target=ReplyMachine.attached, elsewhere=st.booleans())
    def ask_again(self, elsewhere: bool) -> Reader:
        """Ask the same question, with its key."""
        reader = self.run(self.at_both.ask(self.home ^ elsewhere, self.question, self.asked_in))
        assert (reader.status, reader.reply_id) == (200, self.reply_id)
        self.is_asked = True
        self.readers.append(reader)
        self.settle()
        return reader

    @precondition(lambda self: self.status is not None)
    @rule(elsewhere=st.booleans())
    def stop_again(self, elsewhere: bool) -> None:
        self.stop(elsewhere, self.status)
        self.settle()

    @precondition(lambda self: self.status is not None or not self.unsaid)
    @precondition(lambda self: self.status is None and not self.unsaid)
    @rule()
    def give_up_home(self) -> None:
        """Take its home for dead, and close its reply; its home is alive, and is asked to stop it."""
        [(self.text,)] = self.rows(
            "update messages set status = 'interrupted', finished_at = clock_timestamp()"
            " where id = %s and status = 'streaming' returning content",
            self.reply_id,
        )
        self.status = "interrupted"
        self.stop(False, "interrupted")
        for reader in [reader for reader in self.readers if len(reader.seen) > len(self.text)]:
            self.run(eventually(lambda reader=reader: reader.last))
            assert reader.last == lost(len(reader.seen), len(self.text))
            self.readers.remove(reader)
        self.settle()

    # Elsewhere it takes a second.
    @precondition(lambda self: self.status is not None or not self.unsaid)
    @rule(beyond=st.integers(1, 3), elsewhere=st.booleans() if FULL else st.just(False))
    def come_too_far(self, beyond: int, elsewhere: bool) -> None:
        reader = self.run(self.at_both.come(self.home ^ elsewhere, self.reply_id, self.text + "?" * beyond))
        if elsewhere and self.status is None:
            # Believed, if home does not say in time what it has. It takes the reply for read meanwhile.
            assert reader.status in (200, 409)
            self.is_asked = True
        else:
            assert reader.status == 409
        reader.leave(abruptly=True)
        self.settle()

    @precondition(lambda self: self.status is None and not self.unsaid)
    @rule(
        target=ReplyMachine.attached,
        acts=ACTS,
        pieces=st.lists(RAW, min_size=1, max_size=3),
        closes_slowly=st.booleans(),
    )
    def do_at_once(self, acts: list[Act], pieces: list[str], closes_slowly: bool) -> Reader:
        """Do all of this at once, and then stop the reply: whatever has ended it, all tell it alike."""
        may_be = self.ends_by({kind for kind, _, _ in acts}, pieces * [kind for kind, _, _ in acts].count("say"))
        rush = Rush(self, acts, pieces)
        self.run(rush.run(closes_slowly))
        status, text = stored(self.rows, self.reply_id)
        assert (status, text) in may_be
        assert {json.dumps(stopped) for stopped in rush.stopped} == {
            json.dumps((200, {"message_id": self.reply_id, "status": status}))
        }
        nothing_new = status != "complete" and text == self.text
        assert {reader.status for reader in rush.come} <= ({200, 204} if nothing_new else {200})
        assert {reader.status for reader in rush.asked} <= {200, 409}
        if "leave" in {kind for kind, _, _ in acts}:
            self.readers = []
        self.readers = [*self.readers, *rush.come]
        self.status, self.text = status, text
        self.run(eventually(lambda: all(reader.last or reader.status == 204 for reader in self.readers)))
        self.readers_have_seen_the_beginning_of_it()
        self.readers_are_told_how_it_ended()
        opened = [reader for reader in rush.asked if reader.status == 200]
        assert len(opened) <= 1
        for reader in opened:
            self.go_on()
            self.opened(reader)
            self.stop(False, "stopped")
            self.closed("stopped")
        # What may happen next does not depend on what came first.
        self.go_on()
        reader = self.open(0)
        self.settle()
        return reader

    def ends_by(self, kinds: set[str], pieces: list[str]) -> set[tuple[FinalStatus, str]]:
        """Return how the reply may end by these and a stop, while it is said some of the pieces."""
        may_end: set[FinalStatus] = {"stopped"}
        may_end |= {status for status in STATUSES if status in kinds}
        if ("leave" in kinds or not self.readers) and ("ask" in kinds or self.window_s == 0):
            may_end.add("disconnected")
        raw, text, ends = self.raw, self.text, set()
        for status, count in itertools.product(may_end, range(len(pieces) + 1)):
            for piece in pieces[:count]:
                if self.status is None:
                    self.said(piece)
            if self.status is None:
                self.closed(status)
            assert self.status is not None
            ends.add((self.status, self.text))
            self.raw, self.text, self.status = raw, text, None
        return ends

    # What is expected, and what is.

    @property
    def is_held(self) -> bool:
        # A piece that was asked for before is said all the same.
        return super().is_held and not self.is_asked

    def settle(self) -> None:
        while self.unsaid and self.is_asked and self.status is None:
            piece = self.unsaid.popleft()
            if isinstance(piece, str):
                self.said(piece)
                self.is_asked = not super().is_held
            else:
                self.closed("failed" if piece else "complete")
        with suppress(TimeoutError):
            self.run(eventually(self.is_settled, SETTLED_S))

    def is_settled(self) -> bool:
        try:
            for check in CHECKS:
                check(self)
        except AssertionError:
            return False
        return True

    def turn_at_home(self) -> Any:
        return self.at_both.servers[self.home].app[TURNS].find(self.reply_id)

    def actual_text(self) -> str:
        turn = self.turn_at_home()
        return turn.reply.text if turn else stored(self.rows, self.reply_id)[1]

    def actual_status(self) -> Any:
        status, _ = stored(self.rows, self.reply_id)
        return None if status == "streaming" else status

    def model_waits(self) -> bool:
        return not self.speech.is_asked and not self.speech.is_over

    # What else is so at any time.

    @invariant()
    def its_model_has_said_what_it_was_asked_for(self) -> None:
        if self.status is None:
            assert self.speech.given == self.unsaid

    @invariant()
    def its_model_is_let_go_at_its_end(self) -> None:
        assert self.speech.is_over is (self.status is not None)

    @invariant()
    def its_model_is_given_the_turns_before(self) -> None:
        messages, questions = [], []
        for turn in self.turns:
            questions.append(turn.question)
            if turn.reply.strip():
                messages += [Message("user", "\n\n".join(questions)), Message("assistant", turn.reply)]
                questions = []
        assert self.speech.messages == [*messages, Message("user", "\n\n".join([*questions, self.question]))]

    @invariant()
    def its_home_knows_who_reads_it(self) -> None:
        turn = self.turn_at_home()
        assert (turn is None) is (self.status is not None)
        if turn is not None:
            at_home = [reader.server is self.at_both.servers[self.home] for reader in self.readers]
            assert len(turn.reply.readers) == at_home.count(True) + (False in at_home)

    @invariant()
    def readers_are_told_how_it_ended(self) -> None:
        for reader in self.readers:
            assert reader.last == (None if self.status is None or reader.status == 204 else self.last_event())

    def last_event(self) -> dict[str, Any]:
        assert self.status is not None
        if self.status != "complete":
            error = "Stopped" if self.status == "stopped" else "Stream failed"
            return {"error": error, "message": failure(self.status)}
        return {
            "token": "",
            "done": True,
            "fullText": self.text,
            "chat_id": self.chat_id,
            "message_id": self.reply_id,
            "chars": len(self.text),
            "sha256": hashlib.sha256(self.text.encode()).hexdigest(),
            "stop": "end",
            # The model does not say, so that it is taken for a token every two bytes.
            "usage": {
                "input": ceil(sum(len(message.content.encode()) for message in self.speech.messages) / 2),
                "output": ceil(len(self.text.encode()) / 2),
                "estimated": True,
            },
        }

    @invariant()
    def each_event_is_well_formed_and_in_its_place(self) -> None:
        for reader in self.at_both.readers:
            if reader.reading is not None and reader.reading.done() and not reader.reading.cancelled():
                reader.reading.result()

    @invariant()
    def rows_say_for_ever_what_was_told(self) -> None:
        before = []
        for turn in self.turns:
            before += [("user", turn.question, "complete"), ("assistant", turn.reply, turn.status)]
        *rows, (role, content, status) = self.rows.messages(self.at_both.tenant.org_id)
        assert rows == [*before, ("user", self.question, "complete")]
        assert role == "assistant"
        if self.status is None:
            assert status == "streaming"
            assert self.text.startswith(content)
            assert content.startswith(self.kept)
        else:
            assert (content, status) == (self.text, self.status)


# What takes its time to be so.
CHECKS = (
    ChatAtTwoServers.it_has_one_end,
    ChatAtTwoServers.it_has_what_was_said,
    ChatAtTwoServers.readers_have_seen_the_beginning_of_it,
    ChatAtTwoServers.its_model_waits_exactly_while_it_is_held,
    ChatAtTwoServers.its_model_has_said_what_it_was_asked_for,
    ChatAtTwoServers.its_model_is_let_go_at_its_end,
    ChatAtTwoServers.its_home_knows_who_reads_it,
    ChatAtTwoServers.readers_are_told_how_it_ended,
    ChatAtTwoServers.rows_say_for_ever_what_was_told,
)


@pytest.mark.timeout(1800 if FULL else 120)
def test_any_events_at_two_servers(postgres_url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "mirrors.CALL_AGAIN_S": 0.2,
        "mirrors.LOOK_S": 0.005,
        "mirrors.ANSWER_S": 1.0,
        "remotes.SHARE_S": 0.005,
        "elsewhere.LOOK_AGAIN_S": 0.005,
    }.items():
        monkeypatch.setattr(f"app.replies.{name}", seconds)
    run_state_machine_as_test(
        lambda: ChatAtTwoServers(postgres_url, rows),
        settings=settings(
            max_examples=scale(15, 200),
            stateful_step_count=scale(20, 40),
            derandomize=not FULL,
            # The shortest way to a failure takes minutes to find.
            phases=scale([Phase.generate], [Phase.generate, Phase.shrink]),
            report_multiple_bugs=False,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
