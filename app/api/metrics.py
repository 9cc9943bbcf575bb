"""What goes on in this process, for Prometheus: read where it is counted, when somebody asks.

Known to `server` alone, and to nobody where METRICS_PORT is unset. app/README.md lists the names.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar, get_args

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from app.api.identity import asked_host, is_own
from app.api.limits import Limits
from app.api.middleware import expect, take_whatever_host
from app.errors import StartError
from app.models.timed import Histogram, Timings
from app.replies.guard import Guard
from app.replies.mirrors import Mirrors
from app.replies.reader import Readers
from app.replies.reply import RUNNING
from app.replies.turns import Turns
from app.settings import Settings
from app.statuses import FinalStatus
from app.storage.db import Database

log = logging.getLogger(__name__)

# Of labels.
Values = TypeVar("Values", bound=tuple[str, ...])

# For answers that are under way when the server stops.
SHUTDOWN_TIMEOUT_S = 0.1


@dataclass(eq=False)
class Metrics(Collector):
    turns: Turns
    mirrors: Mirrors
    readers: Readers
    guard: Guard
    limits: Limits
    database: Database
    timings: Timings
    responses: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    async def note(self, request: web.Request, response: web.StreamResponse) -> None:
        """Count a response by the names of its route: those that clients make up are without number."""
        route = request.match_info.route
        path = route.resource.canonical if route.resource is not None else ""
        self.responses[route.method, path, str(response.status)] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield what there is, in one step of the event loop: nothing changes meanwhile."""
        yield from self._gauges()
        statuses = {(status,): self.turns.ended[status] for status in get_args(FinalStatus)}
        yield counter("chat_turns", "Turns of this process, by how they have ended", ["status"], statuses)
        what = "Replies of dead servers that this process has closed as interrupted"
        yield counter("chat_turns_abandoned", what, [], {(): self.guard.closed})
        short = self.limits.over_budget
        refusals = {("used",): short["used"], ("reserved",): short["reserved"]}
        yield counter("chat_budget_refusals", "Questions that budgets left too little for", ["reason"], refusals)
        errors = {(name,): self.database.unanswered[name] for name in self.database.statements}
        yield counter("chat_database_errors", "Statements that were not answered", ["statement"], errors)
        what = "Responses, by the route that took the request"
        yield counter("chat_http_responses", what, ["method", "route", "status"], self.responses)
        what = "From asking the model of a stream to its first piece"
        yield histogram("chat_first_piece_seconds", what, self.timings.first)
        what = "From one piece of a model to the next, without what it was held for"
        yield histogram("chat_piece_gap_seconds", what, self.timings.gaps)

    def _gauges(self) -> Iterator[Metric]:
        replies = self.turns.replies
        running = [reply for reply in replies if reply.state is RUNNING]
        unread = sum(not reply.readers for reply in running)
        for name, what, value in (
            ("chat_replies_running", "Replies that run in this process", len(running)),
            ("chat_replies_unread", "Those of them that nobody reads", unread),
            ("chat_replies_elsewhere", "Replies read here that run in another process", self.mirrors.count),
            ("chat_readers", "Open streams, and POST /chat that wait", self.readers.count),
            ("chat_saves_owed", "Ends of replies that are not stored yet", len(replies) - len(running)),
            ("chat_database_connections", "Connections in use", self.database.connections_in_use),
        ):
            yield GaugeMetricFamily(name, what, value=value)


def counter(name: str, what: str, labels: Sequence[str], counts: Mapping[Values, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, what, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def histogram(name: str, what: str, times: Histogram) -> HistogramMetricFamily:
    bounds = map(floatToGoString, [*times.bounds_s, float("inf")])
    buckets = list(zip(bounds, accumulate(times.counts), strict=True))
    return HistogramMetricFamily(name, what, buckets=buckets, sum_value=times.sum_s)


@asynccontextmanager
async def shown(metrics: Metrics, settings: Settings) -> AsyncIterator[None]:
    """Serve `GET /metrics` meanwhile, on a port of its own.

    Raises:
        StartError: nothing can listen there.
    """
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)

    async def show(request: web.Request) -> web.Response:
        refuse_foreign_host(request, settings)
        headers = {"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"}
        return web.Response(body=generate_latest(registry), headers=headers)

    app = web.Application()
    app.router.add_get("/metrics", show, expect_handler=expect)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    assert runner.server is not None
    take_whatever_host(runner.server)
    try:
        await listen(runner, settings)
        log.info("Listening for metrics", extra={"address": "{}:{}".format(*runner.addresses[0][:2])})
        yield
    finally:
        await runner.cleanup()


async def listen(runner: web.AppRunner, settings: Settings) -> None:
    try:
        await web.TCPSite(runner, settings.metrics_host, settings.metrics_port).start()
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise StartError(f"METRICS_PORT is {settings.metrics_port}, which is taken") from None
        raise StartError(
            f"METRICS_HOST is {settings.metrics_host}, where nothing can listen: {exc.strerror}"
        ) from None


def refuse_foreign_host(request: web.Request, settings: Settings) -> None:
    """Refuse pages whose name has come to resolve to this machine (DNS rebinding), over loopback.

    From elsewhere it may be asked for under any name, as `/health` is: Prometheus goes by addresses.
    """
    assert request.transport is not None
    address = request.transport.get_extra_info("sockname")[0]
    host = asked_host(request)
    if host and ipaddress.ip_address(address).is_loopback and not is_own(host, settings):
        message = (
            f"Host is {host[:100]!r}, expected localhost, a loopback address, HOST or one in ALLOWED_HOSTS.\n"
        )
        raise web.HTTPForbidden(text=message)
