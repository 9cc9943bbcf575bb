"""The application: routes, middleware, and what lives as long as it does."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import AsyncIterator

from aiohttp import web

from app.api import chat, history, resume, site, tickets
from app.api.identity import IDENTIFY, from_headers, identified, identified_by_query
from app.api.middleware import observe, preflight, refuse_when_stopping, sign
from app.api.tokens import Tokens
from app.errors import StartError
from app.models import Model
from app.models.simulated import Simulated
from app.replies.bells import Bells
from app.replies.saves import Saves
from app.replies.turns import TURNS, Turns
from app.settings import SETTINGS, Settings
from app.storage.db import DATABASE, Database, DatabaseAway
from app.storage.store import DEMO_ORG_ID, DEMO_USER_ID, STORE, Store

log = logging.getLogger(__name__)

# For requests that are no turns, once the turns have ended: reads, half-sent bodies.
SHUTDOWN_TIMEOUT_S = 1.0

# Objects between two collections, in place of 700: the short-lived ones of a token are in no cycles.
GC_THRESHOLD = 10_000

CANCEL_AGAIN_S = 0.5

# Connections that wait to be accepted; Linux takes at most net.core.somaxconn.
BACKLOG = 4096


def create_app(settings: Settings, *, model: Model | None = None) -> web.Application:
    """Return the application. `settings.database_url` must be set, and its schema migrated."""
    app = web.Application(
        middlewares=[observe, preflight, refuse_when_stopping],
        client_max_size=settings.body_limit_bytes,
    )
    app.add_routes(
        [
            web.get("/", site.page_file("index.html")),
            web.get("/chat.js", site.page_file("chat.js")),
            web.get("/sse.js", site.page_file("sse.js")),
            web.get("/chat.css", site.page_file("chat.css")),
            web.get("/openapi.json", site.page_file("openapi.json")),
            web.get("/health", site.health),
            web.get("/ready", site.ready),
            web.post("/chat", identified(chat.send)),
            web.post("/chat/stream", identified(chat.stream)),
            web.post("/chat/stream/ticket", identified(tickets.issue)),
            web.get("/chat/stream", identified_by_query(chat.stream_to_event_source), allow_head=False),
            web.get("/chat/stream/{message_id}", identified(resume.resume), allow_head=False),
            web.delete("/chat/stream/{message_id}", identified(resume.stop)),
            web.get("/chats", identified(history.list_chats)),
            web.get("/chats/{chat_id}/messages", identified(history.list_messages)),
        ]
    )
    app[SETTINGS] = settings
    app[IDENTIFY] = Tokens(settings).caller if settings.checks_tokens else from_headers
    # The seam: a real model goes here.
    app[chat.MODEL] = model or Simulated(settings.sim_delay_ms, settings.sim_seed)
    app.cleanup_ctx.append(keep_turns)
    app.on_response_prepare.append(sign)
    app.on_shutdown.append(drain)
    return app


async def keep_turns(app: web.Application) -> AsyncIterator[None]:
    """Keep the pool and the running turns. Closing saves are awaited before the pool is closed."""
    settings = app[SETTINGS]
    assert settings.database_url is not None
    database = Database(settings.database_url, pool_size=settings.db_pool_size, timeout_s=settings.db_timeout_s)
    app[DATABASE] = database
    app[STORE] = store = Store(database)
    app[resume.BELLS] = bells = Bells(database, store)
    saves = Saves()
    app[TURNS] = turns = Turns(
        store,
        saves,
        bells,
        limit=settings.stream_limit,
        user_limit=settings.user_stream_limit,
        user_turns_per_minute=settings.user_turns_per_minute,
        heartbeat_s=settings.heartbeat_s,
        write_timeout_s=settings.write_timeout_s,
        resume_window_s=settings.resume_window_s,
    )
    await turns.lock()
    # Reads the clock again, now that its connection is there.
    await turns.guard()
    # So that the first turn finds a connection.
    await store.database_ping()
    if settings.seed_demo:
        await store.demo_seed(org_id=DEMO_ORG_ID, user_id=DEMO_USER_ID)
    background = {
        asyncio.create_task(turns.watch()),
        asyncio.create_task(turns.keep_guard()),
        asyncio.create_task(turns.keep_swept()),
        asyncio.create_task(bells.answer(turns.take_call)),
    }
    yield
    while background:
        for task in background:
            task.cancel()
        # Again: wait_for of Python 3.11, on which aiopg builds, forgets a cancellation that comes with its result.
        _, background = await asyncio.wait(background, timeout=CANCEL_AGAIN_S)
    await saves.finish(settings.db_timeout_s)
    await database.close()


async def drain(app: web.Application) -> None:
    """Give running turns their grace, then end them. A second call finds nothing left to do."""
    await app[TURNS].drain(app[SETTINGS].shutdown_grace_s)


async def serve(app: web.Application, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve on `listener` until `stop` is set, then end what runs in good order.

    Raises:
        StartError: the database does not answer.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=app[SETTINGS].keepalive_timeout_s,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    try:
        await runner.setup()
        # What is there by now stays: the collector need not look through it again and again.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 100)
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        log.info("Listening", extra={"address": "{}:{}".format(*listener.getsockname()[:2])})
        await stop.wait()
        log.info("Stopping")
        # Before the listener closes, so that probes and late clients get an answer.
        await drain(app)
    except DatabaseAway as exc:
        raise StartError(f"the database of DATABASE_URL: {exc.message}") from None
    finally:
        await runner.cleanup()
    log.info("Stopped")
