"""The one error type that reaches a client; `middleware` writes it as JSON."""

from __future__ import annotations

from collections.abc import Mapping


class ApiError(Exception):
    """An answer other than success.

    `error` is short and stable, for programs; `message` is one sentence for people that says what was wrong
    and what was expected. Neither may hold message text, secrets or the text of another exception.
    """

    def __init__(
        self,
        status: int,
        error: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.headers = headers or {}
        # Further fields of the answer.
        self.details = details or {}


class StartError(Exception):
    """Why the server cannot start, in one line for the terminal."""


def stopping() -> ApiError:
    # So that the next try reaches another server, where there is one.
    headers = {"Retry-After": "1", "Connection": "close"}
    return ApiError(503, "Stopping", "The server is stopping; try again.", headers=headers)


def undone() -> ApiError:
    message = "The question was not stored; ask again."
    return ApiError(503, "Database unavailable", message, headers={"Retry-After": "1"})


def unknown_reply() -> ApiError:
    return ApiError(404, "Not found", "There is no such reply.")


def unknown_chat() -> ApiError:
    return ApiError(404, "Not found", "There is no such chat.")
