"""`/metrics`, and the middleware that counts requests by route. Nothing here blocks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from aiohttp import hdrs, web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from clipfleet_gateway.meters import Meters
from clipfleet_gateway.web.operations import Handler, Middleware, Operation, Raw, Served

_METRICS = Operation(
    "GET", "/metrics", "getMetrics", "Report metrics in Prometheus' text format.",
    answers={200: Raw("text/plain", "all metrics of this gateway")},
)  # fmt: skip
_UNKNOWN = "other"
_HUNG_UP = "499"  # as nginx counts requests whose client has not waited for the answer


class MetricsRoutes:
    """Counts requests, and serves what it counted."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters

    def operations(self) -> Iterable[Served]:
        """The route."""
        yield _METRICS, self._metrics

    async def _metrics(self, _: web.Request) -> web.Response:
        headers = {hdrs.CONTENT_TYPE: CONTENT_TYPE_PLAIN_0_0_4, hdrs.CACHE_CONTROL: "no-store"}
        return web.Response(body=generate_latest(self._meters.registry), headers=headers)

    def counting(self) -> Middleware:
        """Counts whatever the inner middlewares and the handler answer; the outermost one."""
        meters = self._meters

        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            route, method = _labels(request)
            began, status = time.perf_counter(), _HUNG_UP
            try:
                with meters.open_requests.track_inprogress():
                    response = await handler(request)
                status = str(response.status)
                return response
            finally:
                meters.requests.labels(route, method, status).inc()
                meters.request_seconds.labels(route, method).observe(time.perf_counter() - began)

        return count


def _labels(request: web.Request) -> tuple[str, str]:
    """Template and method of the route; anything may stand in requests that match none."""
    resource: Any = request.match_info.route.resource
    return (_UNKNOWN, _UNKNOWN) if resource is None else (resource.canonical, request.method)
