"""The application: guards, then routes. Reading `routes_of` says what is served."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Protocol

from aiohttp import web

from clipfleet_gateway.asking.served import ServedModels
from clipfleet_gateway.keys.known import KnownKeys
from clipfleet_gateway.policies.known import KnownPolicies
from clipfleet_gateway.services import Services
from clipfleet_gateway.web import guards
from clipfleet_gateway.web.about.health import HealthRoutes
from clipfleet_gateway.web.about.metrics import MetricsRoutes
from clipfleet_gateway.web.about.openapi import OpenApiRoutes
from clipfleet_gateway.web.asking import AskingRoutes
from clipfleet_gateway.web.batches import BatchRoutes
from clipfleet_gateway.web.callers import Callers
from clipfleet_gateway.web.connections import most_connections
from clipfleet_gateway.web.decisions import DecisionRoutes
from clipfleet_gateway.web.files import FileRoutes
from clipfleet_gateway.web.jobs import JobRoutes
from clipfleet_gateway.web.operations import Served
from clipfleet_gateway.web.received.body_guard import bodies, expect_later
from clipfleet_gateway.web.received.held_bodies import HELD, HeldBodies
from clipfleet_gateway.web.tending import Tending

_SHARE_OF_A_KEY = 0.25  # of all connections, so that one key leaves room for others
MOST_BODY_BYTES = 64 << 20  # of JSON; uploads of files have a bound of their own


class Routes(Protocol):
    """Some operations and what handles them."""

    def operations(self) -> Iterable[Served]:
        """Each with its handler, see `Operation`."""


def routes_of(services: Services, batches: Tending, jobs: Tending) -> Iterable[Routes]:
    """All routes of a gateway."""
    models = ServedModels(
        partial(services.ask, services.client.workers), partial(services.call, services.models.has_served)
    )
    shelf = services.policies
    policies = KnownPolicies(
        partial(services.look, shelf.names),
        partial(services.look, shelf.versions),
        partial(services.look, shelf.load),
    )
    yield HealthRoutes(services, models, policies)
    yield FileRoutes(services)
    yield AskingRoutes(services, models, policies)
    yield DecisionRoutes(services)
    yield BatchRoutes(services, batches)
    yield JobRoutes(services, jobs)


def make_app(services: Services) -> web.Application:
    """Build the application over services that the caller closes."""
    ring = services.keys
    known = KnownKeys(partial(services.look, ring.find), partial(services.look, ring.names))
    at_once = max(1, int(most_connections() * _SHARE_OF_A_KEY))
    callers = Callers(known.of_token, services.settings.gateway_requests_per_minute, at_once)
    metrics = MetricsRoutes(services.meters)
    app = web.Application(
        middlewares=[
            metrics.counting(),
            guards.answering(),
            guards.hosts(services.settings.gateway_hosts),
            guards.keys(callers),
            bodies(services.settings.gateway_file_bytes),
        ],
        client_max_size=MOST_BODY_BYTES,
    )
    app.on_response_prepare.append(guards.complete_head)
    app[HELD] = HeldBodies()
    tending = (
        Tending(services, services.batches, "batch", services.meters.open_batches, services.sweep),
        Tending(services, services.jobs, "job", services.meters.open_jobs),
    )
    app.cleanup_ctx.extend(one.during for one in tending)
    served = [one for routes in (*routes_of(services, *tending), metrics) for one in routes.operations()]
    served += OpenApiRoutes([operation for operation, _ in served]).operations()
    for operation, handler in served:
        for method in ("GET", "HEAD") if operation.method == "GET" else (operation.method,):
            app.router.add_route(method, operation.path, handler, expect_handler=expect_later)
    return app
