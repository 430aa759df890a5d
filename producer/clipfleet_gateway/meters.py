"""What a gateway counts, for Prometheus: families and nothing else. No global registry, no I/O.

Label values are few whatever clients send: the templates of our routes, and statuses.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Meters:
    """The families of one gateway, each with what it means."""

    def __init__(self) -> None:
        # Else there is a second sample for each series, which no query of ours reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "clipfleet_gateway_requests_total",
            "answered requests by status; 429: refused because there were too many; 499: the client hung up",
            ("route", "method", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "clipfleet_gateway_request_seconds",
            "time from the head of a request to the end of its answer",
            ("route", "method"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.open_requests = Gauge(
            "clipfleet_gateway_open_requests", "requests that are not answered yet", registry=registry
        )
        self.waiting_inputs = Gauge(
            "clipfleet_gateway_waiting_inputs",
            "images and texts of open requests; above a bound, further requests are refused",
            registry=registry,
        )
        self.shared_job_inputs = Histogram(
            "clipfleet_gateway_shared_job_inputs",
            "images and texts in each job that requests have shared",
            buckets=_INPUTS,
            registry=registry,
        )
        self.open_batches = Gauge(
            "clipfleet_gateway_open_batches",
            "batches of all keys that have not ended; every replica reports the same: take the `max`",
            registry=registry,
        )
        self.open_jobs = Gauge(
            "clipfleet_gateway_open_jobs",
            "jobs of `/v1/jobs` that have not ended; every replica reports the same: take the `max`",
            registry=registry,
        )
        ProcessCollector(registry=registry)
