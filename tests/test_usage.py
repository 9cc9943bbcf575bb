"""How replies ended and what they cost: the same for every client, in the row, in the log, and added up."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import uuid4

import jwt
import pytest
from aiohttp.test_utils import TestClient, TestServer
from house import come_back, hears
from serving import StartServer
from support import Gated, RawClient, Rows, Tenant, events, eventually, logged, post, says

from app.models import ModelError, Piece, Reasoning, Stop, Usage
from app.parsers import Price

COUNTED = Usage(7, 9)
USAGE = {"input": 7, "output": 9, "estimated": False}
KEY = {"Idempotency-Key": "one"}

FAILURES: dict[str, tuple[BaseException, str, int, str, str]] = {
    "busy": (ModelError("529", "busy"), "Model busy", 503, "Model busy", "The model is busy"),
    "too_long": (
        ModelError("413", "too_long"),
        *("Conversation too long", 400, "Conversation too long", "The conversation is too long for the model"),
    ),
    "refused": (ModelError("no", "refused"), "Refused", 422, "Refused", "The model refused the question"),
    "of the provider": (ModelError("500"), "Stream failed", 502, "Reply failed", "The model failed"),
    "of the model": (RuntimeError("lost"), "Stream failed", 502, "Reply failed", "The model failed"),
}


async def last_event(server: TestServer, tenant: Tenant, reply_id: str, offset: int = 0) -> dict[str, Any]:
    client = await come_back(server, tenant, reply_id, offset)
    await client.read_head()
    return events(b"".join(await client.read_chunks()))[-1]


async def asked_again(server: TestServer, tenant: Tenant) -> dict[str, Any]:
    """Return the last event that who asks with the same key gets."""
    client = await RawClient.connect(server)
    client.send(post("/chat/stream", b'{"message": "Hi"}', tenant, headers="Idempotency-Key: one\r\n"))
    await client.read_head()
    return events(b"".join(await client.read_chunks()))[-1]


def kept(rows: Rows, reply_id: str) -> tuple[Any, ...]:
    [row] = rows(
        "select status, reason, input_tokens, output_tokens, is_estimated from messages where id = %s", reply_id
    )
    return row


@pytest.mark.parametrize("reason", FAILURES)
async def test_failure_has_its_name_for_whoever_asks_wherever_and_whenever(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, reason: str
) -> None:
    exc, event, _, _, why = FAILURES[reason]
    expected = {"error": event, "message": f"{why}; what it said so far is saved."}
    model = Gated(pieces=["Hello"])
    raising = raises_after(model, exc)
    home, door = await start_server(model=raising), await start_server(model=says("not asked"))
    await hears(home)
    await hears(door)
    client: TestClient = await aiohttp_client(home)
    question = {"message": "Hi"}
    async with client.post("/chat/stream", json=question, headers=tenant.headers | KEY) as response:
        reply_id = response.headers["x-message-id"]
        mirrored = await come_back(door, tenant, reply_id, 0)
        await mirrored.read_head()
        model.go(2)
        assert events(await response.read())[-1] == expected
    assert events(b"".join(await mirrored.read_chunks()))[-1] == expected
    for server in (home, door):
        assert await last_event(server, tenant, reply_id) == expected
        # Of a busy provider the key asks anew.
        assert reason == "busy" or await asked_again(server, tenant) == expected
    row_reason = reason if reason in ("busy", "too_long", "refused") else None
    assert kept(rows, reply_id) == ("failed", row_reason, 1, 3, True)
    assert rows.messages(tenant.org_id)[1][1] == "Hello"


def raises_after(model: Gated, exc: BaseException) -> Any:
    async def raising(conversation: Any) -> Any:
        async for piece in model(conversation):
            yield piece
        raise exc

    return raising


@pytest.mark.parametrize("reason", FAILURES)
async def test_failure_of_what_is_no_stream_is_its_status(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, reason: str
) -> None:
    exc, _, status, error, why = FAILURES[reason]
    client: TestClient = await aiohttp_client(await start_server(model=says(exc)))
    for _ in range(2):
        async with client.post("/chat", json={"message": "Hi"}, headers=tenant.headers | KEY) as response:
            answer = await response.json()
        assert (response.status, answer["error"]) == (status, error)
        assert answer["message"] == f"{why}; what it said so far is saved."
        assert ("Retry-After" in response.headers) == (status == 503)
    # A provider that never answered costs nothing.
    replies = rows(
        "select input_tokens, output_tokens, is_estimated from messages where org_id = %s and status = 'failed'",
        tenant.org_id,
    )
    # Of a busy one it was asked twice.
    assert replies == [(0, 0, False)] * (2 if reason == "busy" else 1)


@pytest.mark.parametrize(("said_s", "told"), [(None, "5"), (0, "5"), (21.2, "22"), (86400, "3600")])
async def test_busy_providers_retry_after_is_passed_on(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant, said_s: float | None, told: str
) -> None:
    busy = ModelError("429", "busy", retry_after_s=said_s)
    client: TestClient = await aiohttp_client(await start_server(model=says(busy)))
    async with client.post("/chat", json={"message": "Hi"}, headers=tenant.headers) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, told)


@pytest.mark.parametrize(
    ("stop", "reason"),
    [(Stop("end"), None), (Stop("length"), "length"), (Stop("refusal"), "refusal"), (None, None)],
)
async def test_whole_reply_says_how_its_model_ended_and_what_it_cost(
    start_server: StartServer,
    aiohttp_client: Any,
    rows: Rows,
    tenant: Tenant,
    caplog: pytest.LogCaptureFixture,
    stop: Stop | None,
    reason: str | None,
) -> None:
    pieces: Sequence[Piece] = [Usage(7, 1), Reasoning("Hm"), "Hello", COUNTED, *([stop] if stop else [])]
    model = says(*pieces)
    home, door = await start_server(model=model), await start_server(model=says("not asked"))
    client: TestClient = await aiohttp_client(home)
    async with client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers | KEY) as response:
        reply_id = response.headers["x-message-id"]
        done = events(await response.read())[-1]
    assert list(done)[-2:] == ["stop", "usage"]
    assert (done["stop"], done["usage"]) == (reason or "end", USAGE)
    for server in (home, door):
        assert await last_event(server, tenant, reply_id, 5) == done
        assert await asked_again(server, tenant) == done
    async with client.post("/chat", json={"message": "Hi"}, headers=tenant.headers | KEY) as response:
        answer = await response.json()
    assert (answer["message_id"], answer["stop"], answer["usage"]) == (reply_id, reason or "end", USAGE)
    assert kept(rows, reply_id) == ("complete", reason, 7, 9, False)
    [record] = logged(caplog, "Stream completed")
    assert vars(record)["usage"] == USAGE


async def test_cost_of_what_is_no_stream_is_in_the_line_of_its_request(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    client: TestClient = await aiohttp_client(await start_server(model=says("Hello", COUNTED)))
    async with client.post("/chat", json={"message": "Hi"}, headers=tenant.headers) as response:
        assert (await response.json())["usage"] == USAGE
    [record] = logged(caplog, "Request completed")
    assert vars(record)["usage"] == USAGE


async def test_reply_that_is_broken_off_costs_what_was_said(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    model = Gated(pieces=["Hello", "never"])
    client: TestClient = await aiohttp_client(await start_server(model=model))
    async with client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers) as response:
        reply_id = response.headers["x-message-id"]
        model.go()
        await response.content.readuntil(b"\n\n")
        async with client.delete(f"/chat/stream/{reply_id}", headers=tenant.headers) as stopped:
            assert (await stopped.json())["status"] == "stopped"
    assert kept(rows, reply_id) == ("stopped", None, 1, 3, True)
    [record] = logged(caplog, "Reply ended")
    assert vars(record)["usage"] == {"input": 1, "output": 3, "estimated": True}


async def test_checkpoint_has_what_the_reply_has_cost_so_far(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    model = Gated(pieces=["Hello", "never"])
    client: TestClient = await aiohttp_client(await start_server(model=model, checkpoint_s=0.05))
    async with client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers) as response:
        model.go()
        reply_id = response.headers["x-message-id"]
        await eventually(lambda: kept(rows, reply_id) == ("streaming", None, 1, 3, True))


async def test_reply_of_before_says_nothing_of_its_cost(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    server = await start_server(model=says("Hello"))
    client: TestClient = await aiohttp_client(server)
    async with client.post("/chat", json={"message": "Hi"}, headers=tenant.headers) as response:
        reply_id = (await response.json())["message_id"]
    rows(
        "update messages set user_id = null, input_tokens = null, output_tokens = null, is_estimated = null"
        " where id = %s",
        reply_id,
    )
    done = await last_event(server, tenant, reply_id)
    assert (done["stop"], "usage" in done) == ("end", False)


# ---- GET /usage

NOTHING = {"turns": 0, "input": 0, "output": 0}


async def usage(client: TestClient, headers: dict[str, str]) -> dict[str, Any]:
    async with client.get("/usage", headers=headers) as response:
        assert response.status == 200
        answer: dict[str, Any] = await response.json()
        return answer


async def test_usage_is_of_the_caller_in_this_day_and_this_month(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    client: TestClient = await aiohttp_client(await start_server(model=says("Hello", COUNTED)))
    # Of the same org, and of another one: by the same id.
    others = [rows.tenant(tenant.org_id), Tenant(rows.tenant().org_id, tenant.user_id)]
    rows(
        "insert into users (org_id, id, email) values (%s, %s, 'twin@example.com')",
        *(others[1].org_id, others[1].user_id),
    )
    assert await usage(client, tenant.headers) == {"day": NOTHING, "month": NOTHING, "budgets": []}
    for caller, times in ((tenant, 3), (others[0], 1), (others[1], 2)):
        for _ in range(times):
            async with client.post("/chat", json={"message": "Hi"}, headers=caller.headers) as response:
                assert response.status == 200
    for caller, times in ((tenant, 3), (others[0], 1), (others[1], 2)):
        sums = {"turns": times, "input": 7 * times, "output": 9 * times}
        assert await usage(client, caller.headers) == {"day": sums, "month": sums, "budgets": []}
    # One in the last second of the day before, one in that of the month before.
    [first, second] = rows(
        "select id from messages where org_id = %s and user_id = %s limit 2", tenant.org_id, tenant.user_id
    )
    for (reply_id,), period in ((first, "day"), (second, "month")):
        rows(
            "update messages set created_at = date_trunc(%s, now(), 'UTC') - interval '1 second' where id = %s",
            *(period, reply_id),
        )
    [(is_first_of_month,)] = rows("select date_trunc('day', now(), 'UTC') = date_trunc('month', now(), 'UTC')")
    of_month = 1 if is_first_of_month else 2
    assert await usage(client, tenant.headers) == {
        "day": {"turns": 1, "input": 7, "output": 9},
        "month": {"turns": of_month, "input": 7 * of_month, "output": 9 * of_month},
        "budgets": [],
    }


async def test_usage_has_running_replies_as_far_as_they_are_stored(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    model = Gated(pieces=["Hello"])
    client: TestClient = await aiohttp_client(await start_server(model=model))
    async with client.post("/chat/stream", json={"message": "Hi"}, headers=tenant.headers) as response:
        assert (await usage(client, tenant.headers))["day"] == {"turns": 1, "input": 0, "output": 0}
        model.go(2)
        await response.read()
    assert (await usage(client, tenant.headers))["day"] == {"turns": 1, "input": 1, "output": 3}


async def test_usage_is_refused_to_who_is_not_in_the_org(client: TestClient, rows: Rows, tenant: Tenant) -> None:
    stranger = Tenant(tenant.org_id, rows.tenant().user_id)
    async with client.get("/usage", headers=stranger.headers) as response:
        answer = await response.json()
    assert (response.status, answer["error"]) == (403, "Forbidden")


async def test_usage_of_who_is_made_with_their_first_question_is_nothing_and_their_orgs_budgets(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    secret = "a secret of no less than 32 characters"
    client: TestClient = await aiohttp_client(await start_server(jwt_secret=secret, jwt_create_users=True))
    token = jwt.encode({"org_id": tenant.org_id, "sub": str(uuid4()), "exp": 9_999_999_999}, secret)
    rows("insert into budgets (org_id, period, units) values (%s, 'month', 5000)", tenant.org_id)
    found = await usage(client, {"Authorization": f"Bearer {token}"})
    [budget] = found.pop("budgets")
    assert found == {"day": NOTHING, "month": NOTHING}
    assert 0 < budget.pop("resets_s") <= 31 * 86400
    assert budget == {"scope": "org", "period": "month", "units": 5000, "used": 0, "reserved": 0}
    assert rows("select count(*) from users where org_id = %s", tenant.org_id) == [(1,)]


async def test_numbers_of_budgets_have_a_point_only_where_they_are_not_whole(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    rows("insert into budgets (org_id, period, units) values (%s, 'month', 5000)", tenant.org_id)
    rows(
        "insert into budgets (org_id, user_id, period, units) values (%s, %s, 'day', 40.5)",
        *(tenant.org_id, tenant.user_id),
    )
    model = says("Hello", COUNTED)
    client: TestClient = await aiohttp_client(
        await start_server(
            model=model, model_max_tokens=10, model_price=Price(Decimal(500_000), Decimal(1_000_000))
        )
    )
    for used in ("0", "12.5"):
        async with client.get("/usage", headers=tenant.headers) as response:
            answer = await response.text()
        assert f'"units": 5000, "used": {used}, "reserved": 0,' in answer
        assert f'"units": 40.5, "used": {used}, "reserved": 0,' in answer
        async with client.post("/chat", json={"message": "Hi"}, headers=tenant.headers) as response:
            assert response.status == 200
