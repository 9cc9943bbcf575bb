"""What is stored: each file in `sql/` is a method of the same name."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol, TypeVar
from uuid import UUID

from aiohttp import web

from app.errors import StartError
from app.statuses import FinalStatus, Reason
from app.storage.db import Database
from app.storage.statements import Statement, listed

Result = TypeVar("Result")
Method = Callable[..., Coroutine[Any, Any, Result]]

DEMO_ORG_ID = "00000000-0000-0000-0000-000000000001"
DEMO_USER_ID = "00000000-0000-0000-0000-000000000002"


class Caller(NamedTuple):
    """A user and the org that they act in. Whether they belong together, each SQL statement checks."""

    org_id: str
    user_id: str


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562, 5.7), as `new_id` in PostgreSQL: ids of one time are neighbours in the indexes.

    Python has none before 3.14.
    """
    chance = secrets.randbits(74)
    fields = time.time_ns() // 1_000_000 << 80, 7 << 76, chance >> 62 << 64, 2 << 62, chance & (1 << 62) - 1
    return str(UUID(int=sum(fields)))


class OpenedTurn(Protocol):
    caller_known: bool
    chat_known: bool
    overtaken: bool
    gone_on: bool
    chat_id: str | None
    created_at: datetime
    history: list[dict[str, Any]]
    running_id: str | None
    running_server_id: int | None
    granted: int | None
    short: Literal["used", "reserved"] | None
    budgets: list[dict[str, Any]] | None


class FoundReply(Protocol):
    chat_id: str
    content: str
    status: Literal["streaming"] | FinalStatus
    created_at: datetime
    server_id: int
    reason: Reason | None
    input_tokens: int | None
    output_tokens: int | None
    is_estimated: bool | None


class Store:
    """A method for each file in `sql/`: it takes by name what the file's header says, or the call is a TypeError.

    What the database has as a constant, it does not take.

    All raise what `Database.run` does.
    """

    chat_delete: Method[Any]
    chat_find: Method[Any | None]
    chat_list: Method[Sequence[Any]]
    chat_rename: Method[Any | None]
    database_ping: Method[Any]
    demo_seed: Method[None]
    message_export: Method[Sequence[Any]]
    message_list: Method[Sequence[Any]]
    reply_find: Method[FoundReply | None]
    reply_look: Method[Sequence[Any]]
    server_call: Method[Any]
    server_lock: Method[Any]
    ticket_find: Method[Any | None]
    ticket_issue: Method[Any | None]
    ticket_sweep: Method[Any]
    turn_by_key: Method[Any | None]
    turn_checkpoint: Method[Any]
    turn_close: Method[Any | None]
    turn_interrupt: Method[Sequence[Any]]
    turn_key_sweep: Method[Any]
    turn_open: Method[OpenedTurn]
    turn_prove: Method[Sequence[Any]]
    turn_undo: Method[Any | None]
    usage_read: Method[Any]

    def __init__(self, database: Database) -> None:
        statements = database.statements
        missing = Store.__annotations__.keys() - statements.keys()
        extra = statements.keys() - Store.__annotations__.keys()
        if missing or extra:
            raise StartError(
                f"sql/ lacks {listed(sorted(missing))} of Store, and has {listed(sorted(extra))} beside it"
            )
        for statement in statements.values():
            setattr(self, statement.name, method(database, statement))


def method(database: Database, statement: Statement) -> Method[Any]:
    """Return the function that runs a statement."""
    expected = frozenset(statement.takes)

    def call(*args: object, **params: object) -> Coroutine[Any, Any, Any]:
        if args or params.keys() != expected:
            given = listed([*params, *("an unnamed one" for _ in args)])
            raise TypeError(f"{statement.name} is given {given}, expected {listed(statement.takes)}")
        return database.run(statement, params)

    return call


STORE: web.AppKey[Store] = web.AppKey("store", Store)
