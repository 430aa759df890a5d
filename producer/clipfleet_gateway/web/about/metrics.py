"""What Prometheus scrapes at `/metrics`: requests by route, and `process_*`.

Label values are few whatever clients send: the templates of our routes, and statuses. Nothing is registered
globally, and nothing here blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from aiohttp import hdrs, web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from clipfleet_gateway.web.operations import Handler, Middleware, Operation, Raw, Served

_METRICS = Operation(
    "GET", "/metrics", "getMetrics", "Report metrics in Prometheus' text format.",
    answers={200: Raw("text/plain", "all metrics of this gateway")},
)  # fmt: skip
_UNKNOWN = "other"
_HUNG_UP = "499"  # as nginx counts requests whose client has not waited for the answer
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class MetricsRoutes:
    """Counts requests, and serves what it counted."""

    def __init__(self) -> None:
        # Else there is a second sample for each series, which no query of ours reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
        self.registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "clipfleet_gateway_requests_total",
            "answered requests by status; 429: refused because there were too many; 499: the client hung up",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "clipfleet_gateway_request_seconds",
            "time from the head of a request to the end of its answer",
            ("route", "method"),
            buckets=_BOUNDS,
            registry=self.registry,
        )
        self._open = Gauge(
            "clipfleet_gateway_open_requests", "requests that are not answered yet", registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def operations(self) -> Iterable[Served]:
        """The route."""
        yield _METRICS, self._metrics

    async def _metrics(self, _: web.Request) -> web.Response:
        headers = {hdrs.CONTENT_TYPE: CONTENT_TYPE_PLAIN_0_0_4, hdrs.CACHE_CONTROL: "no-store"}
        return web.Response(body=generate_latest(self.registry), headers=headers)

    def counting(self) -> Middleware:
        """Counts whatever the inner middlewares and the handler answer; the outermost one."""

        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            route, method = _labels(request)
            began, status = time.perf_counter(), _HUNG_UP
            self._open.inc()
            try:
                response = await handler(request)
                status = str(response.status)
                return response
            finally:
                self._open.dec()
                self._requests.labels(route, method, status).inc()
                self._seconds.labels(route, method).observe(time.perf_counter() - began)

        return count


def _labels(request: web.Request) -> tuple[str, str]:
    """Template and method of the route; anything may stand in requests that match none."""
    resource: Any = request.match_info.route.resource
    return (_UNKNOWN, _UNKNOWN) if resource is None else (resource.canonical, request.method)
