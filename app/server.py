"""The application: routes, middleware, and what lives as long as it does."""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import nullcontext
from functools import partial

from aiohttp import web

from app.api import chat, chats, history, site, tickets, usage
from app.api.identity import IDENTIFY, from_headers, identified, identified_by_query
from app.api.limits import LIMITS, Limits
from app.api.middleware import expect, observe, sign, take_whatever_host
from app.api.sim import SIMULATOR, Simulator
from app.api.site import STOP
from app.api.tokens import check_tokens
from app.descriptors import letting_in
from app.errors import StartError
from app.models import Model
from app.models.choice import chosen
from app.models.simulated import Simulated
from app.models.timed import Timings, timed
from app.replies.bells import Bells
from app.replies.elsewhere import ELSEWHERE, Elsewhere
from app.replies.guard import Guard
from app.replies.lease import GUARD_S, Lease
from app.replies.meter import utf8_length
from app.replies.mirrors import MIRRORS, Mirrors
from app.replies.openings import Openings
from app.replies.reader import READERS, Readers
from app.replies.remotes import Remotes
from app.replies.saves import Saves
from app.replies.tasks import Tasks, in_background, repeat
from app.replies.turns import TURNS, Turns
from app.settings import OWN_CONNECTIONS, SETTINGS, Settings
from app.statuses import STOPPING
from app.storage.db import DATABASE, Database, DatabaseAway
from app.storage.store import DEMO_ORG_ID, DEMO_USER_ID, STORE, Store

log = logging.getLogger(__name__)

# For requests that are no turns, once the turns have ended: reads, half-sent bodies.
SHUTDOWN_TIMEOUT_S = 1.0

# With a database that does not answer. With the last words of turns it is within the 10 s that are promised.
CLEANUP_S = 6.0

# How often what is old is forgotten.
SWEEP_S = 60.0

# A used ticket lets its reader come back.
TICKET_AGE_S = 3600.0

# For how long the same Idempotency-Key is the same turn.
KEY_AGE_S = 24 * 3600.0

# A reply of fewer is not worth its question.
MIN_TOKENS = 50

MODEL: web.AppKey[Model] = web.AppKey("model")
SERVER_ID: web.AppKey[int] = web.AppKey("server_id", int)
BELLS: web.AppKey[Bells] = web.AppKey("bells", Bells)
GUARD: web.AppKey[Guard] = web.AppKey("guard", Guard)
TIMINGS: web.AppKey[Timings] = web.AppKey("timings", Timings)


ROUTES = [
    web.get("/", site.page_file("index.html")),
    *(web.get(f"/{name}", site.page_file(name)) for name in site.SCRIPTS_AND_STYLES),
    web.get("/openapi.json", site.page_file("openapi.json")),
    web.get("/health", site.health),
    web.get("/ready", site.ready),
    web.post("/chat", identified(chat.send)),
    web.post("/chat/stream", identified(chat.stream)),
    web.post("/chat/stream/ticket", identified(tickets.issue)),
    web.get("/chat/stream", identified_by_query(chat.stream_to_event_source), allow_head=False),
    web.get("/chat/stream/{message_id}", identified(chat.resume), allow_head=False),
    web.delete("/chat/stream/{message_id}", identified(chat.stop)),
    web.get("/model", identified(site.model)),
    web.get("/usage", identified(usage.read_usage)),
    web.get("/chats", identified(history.list_chats)),
    web.patch("/chats/{chat_id}", identified(chats.rename)),
    web.delete("/chats/{chat_id}", identified(chats.delete)),
    web.get("/chats/{chat_id}/messages", identified(history.list_messages)),
    web.get("/chats/{chat_id}/export", identified(chats.export), allow_head=False),
]


def create_app(settings: Settings, *, model: Model | None = None) -> web.Application:
    """Return the application. `settings.database_url` must be set, and its schema migrated."""
    app = web.Application(middlewares=[observe], client_max_size=settings.body_limit_bytes)
    app.add_routes(
        web.RouteDef(route.method, route.path, route.handler, route.kwargs | {"expect_handler": expect})
        for route in ROUTES
    )
    app[SETTINGS] = settings
    app[STOP] = asyncio.Event()
    app[IDENTIFY] = check_tokens(app, settings) if settings.checks_tokens else from_headers
    app[site.MODEL_NAME] = (settings.model_name or settings.model) if model is None else None
    app.cleanup_ctx.extend([partial(keep_model, given=model), keep_database, keep_turns, keep_metrics])
    app.on_response_prepare.append(sign)
    app.on_shutdown.append(drain)
    return app


async def keep_model(app: web.Application, *, given: Model | None) -> AsyncIterator[None]:
    """Keep the model, the one of the settings unless one is given, until the last turn has ended."""
    settings = app[SETTINGS]
    async with chosen(settings) if given is None else nullcontext(given) as model:
        app[SIMULATOR] = Simulator(settings, is_heard=isinstance(model, Simulated))
        app[TIMINGS] = Timings()
        app[MODEL] = model if settings.metrics_port is None else timed(model, app[TIMINGS])
        yield


async def keep_database(app: web.Application) -> AsyncIterator[None]:
    """Keep the pool, for as long as there are statements to run."""
    settings = app[SETTINGS]
    assert settings.database_url is not None
    # Replies carry it; that its lock is held tells other servers that this one lives.
    app[SERVER_ID] = secrets.randbits(62)
    constants = {
        "server_id": app[SERVER_ID],
        "create_caller": settings.jwt_create_users,
        "history_limit": settings.history_limit_messages,
        "max_tokens": settings.model_max_tokens,
        "min_tokens": MIN_TOKENS,
        "system_bytes": utf8_length(settings.model_system or ""),
        **settings.model_price._asdict(),
    }
    database = Database(
        settings.database_url, pool_size=settings.pool_size, timeout_s=settings.db_timeout_s, constants=constants
    )
    app[DATABASE] = database
    app[STORE] = Store(database)
    yield
    await database.close()


async def keep_turns(app: web.Application) -> AsyncIterator[None]:
    """Keep the running turns, and what looks after them; in the end, wait until what ended is stored."""
    settings, database, store = app[SETTINGS], app[DATABASE], app[STORE]
    lease, tasks = Lease(), Tasks()
    app[BELLS] = bells = Bells(database, store, app[SERVER_ID])
    openings = Openings(store)
    saves = Saves(store)
    app[TURNS] = turns = Turns(settings, openings, saves, app[MODEL], lease, tasks)
    app[MIRRORS] = mirrors = Mirrors(store, bells)
    remotes = Remotes(turns, saves, bells, tasks)
    app[ELSEWHERE] = elsewhere = Elsewhere(turns, mirrors, remotes, bells, store, timeout_s=settings.db_timeout_s)
    app[GUARD] = guard = Guard(turns, saves, store, lease, tasks)
    app[READERS] = readers = Readers(settings)
    app[LIMITS] = limits = Limits(settings, turns)
    await guard.beat()
    # So that the first turn finds a connection.
    await store.database_ping()
    if settings.seed_demo:
        await store.demo_seed(org_id=DEMO_ORG_ID, user_id=DEMO_USER_ID)
    work = [
        readers.watch(),
        bells.hear(elsewhere.take),
        mirrors.keep_up(),
        remotes.keep_told(),
        repeat(guard.beat, GUARD_S),
        repeat(guard.look, GUARD_S),
        repeat(partial(sweep, store, limits), SWEEP_S),
    ]
    if settings.checkpoint_s:
        # A turn that is shorter than CHECKPOINT_S costs no statement more.
        work.append(repeat(turns.checkpoint, settings.checkpoint_s / 5))
    async with in_background(work):
        yield
    tasks.run(mirrors.leave())
    await turns.finish(settings.db_timeout_s)


async def keep_metrics(app: web.Application) -> AsyncIterator[None]:
    """Show what goes on, where a setting asks for it."""
    settings = app[SETTINGS]
    if settings.metrics_port is None:
        yield
        return
    # Not installed where it is not needed.
    from app.api.metrics import Metrics, shown

    metrics = Metrics(app[TURNS], app[MIRRORS], app[READERS], app[GUARD], app[LIMITS], app[DATABASE], app[TIMINGS])
    app.on_response_prepare.append(metrics.note)
    async with shown(metrics, settings):
        yield


async def sweep(store: Store, limits: Limits) -> None:
    """Forget what is old: in pieces, each of which a statement's time is enough for, however much there is."""
    limits.forget_old()
    for forget, age_s in ((store.ticket_sweep, TICKET_AGE_S), (store.turn_key_sweep, KEY_AGE_S)):
        while (await forget(age_s=age_s)).forgotten:
            # Others have their turn meanwhile: each piece is awaited, and takes a connection for itself.
            pass


async def drain(app: web.Application) -> None:
    """Give running turns their grace, then end them. A second call finds nothing left to do."""
    app[MIRRORS].cut(STOPPING)
    await app[TURNS].drain(app[SETTINGS].shutdown_grace_s)


async def serve(app: web.Application, listener: socket.socket) -> None:
    """Serve on `listener` until `app[STOP]` is set, then end what runs in good order.

    Raises:
        StartError: the database does not answer.
    """
    settings = app[SETTINGS]
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=settings.keepalive_timeout_s,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    try:
        await runner.setup()
        # What is there by now stays: the collector need not look through it again and again.
        gc.freeze()
        assert runner.server is not None
        take_whatever_host(runner.server)
        async with letting_in(runner.server, listener, kept=settings.pool_size + OWN_CONNECTIONS):
            log.info("Listening", extra={"address": "{}:{}".format(*listener.getsockname()[:2])})
            await app[STOP].wait()
            said = {"replies": len(app[TURNS].replies), "graceS": settings.shutdown_grace_s}
            log.info("Stopping", extra=said)
            await asyncio.sleep(settings.stop_delay_s)
            # Before the listener closes, so that probes and late clients get an answer.
            await drain(app)
    except DatabaseAway as exc:
        raise StartError(f"the database of DATABASE_URL: {exc.cause}") from None
    finally:
        # Not wait_for, which would wait for whatever does not let go.
        cleanup = asyncio.create_task(runner.cleanup())
        await asyncio.wait({cleanup}, timeout=CLEANUP_S)
        if cleanup.done():
            cleanup.result()
        else:
            log.error("Stopped before all was stored")
    log.info("Stopped")
