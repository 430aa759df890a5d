"""Metrics of the whole cluster, as the ledger counts them.

Every worker of a cluster reports the same values: aggregate them with `max`, never with `sum`. The exporter
serves them without a worker, for autoscalers: of the worker's packages it needs prometheus_client only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from http import HTTPStatus

from clipfleet.contract.jobs import JobState
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import Backlog, Ledger
from clipfleet.redis.connection import connect
from clipfleet_worker.status.metrics import FamiliesCollector, Family, Sample, metrics_page
from clipfleet_worker.status.server import Page, StatusServer

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 3.0  # Prometheus waits ten, and scrapes again soon


def _chunks(backlog: Backlog) -> Iterable[Sample]:
    for lane, counts in backlog.lanes.items():
        yield (lane, "queued"), counts.queued_chunks
        yield (lane, "leased"), counts.leased_chunks
        yield (lane, "done"), counts.done_chunks


def _jobs(backlog: Backlog) -> Iterable[Sample]:
    return [((state,), backlog.jobs[state]) for state in JobState]


LEDGER_FAMILIES: tuple[Family[Backlog], ...] = (
    Family(
        "clipfleet_ledger_chunks",
        "chunks of active jobs: `queued`, `leased` (by a worker), `done`",
        _chunks,
        labels=("lane", "state"),
    ),
    Family(
        "clipfleet_ledger_open_items",
        "items of active jobs without a row",
        lambda backlog: [((lane,), counts.open_items) for lane, counts in backlog.lanes.items()],
        labels=("lane",),
    ),
    Family("clipfleet_ledger_jobs", "jobs in the ledger, ended ones included", _jobs, labels=("state",)),
    Family(
        "clipfleet_ledger_oldest_due_seconds",
        "longest time that a chunk has waited for a worker: since its back-off ended or, if its job has not "
        "begun, since the submit; 0: none waits",
        lambda backlog: backlog.oldest_due_seconds,
    ),
    Family(
        "clipfleet_ledger_outage_seconds",
        "longest time that a job has waited for its output or source; 0: none waits",
        lambda backlog: backlog.outage_seconds,
    ),
    Family(
        "clipfleet_ledger_jobs_left_out",
        "jobs that these figures leave out: the oldest ones beyond 5000",
        lambda backlog: backlog.jobs_left_out,
    ),
    Family(
        "clipfleet_jobs_quarantined_total",
        "jobs that failed because their data in Redis was damaged",
        lambda backlog: backlog.quarantined_jobs,
    ),
)


def hasty_ledger(url: str) -> Ledger:
    """Make a ledger that fails soon if Redis is away: no answer is better than a late one."""
    return Ledger(url, client=connect(url, retries=0, patience_seconds=_PATIENCE_SECONDS))


def run_exporter(ledger: Ledger, host: str, port: int, ending: threading.Event) -> None:
    """Serve `/metrics` and `/healthz` until `ending` is set; each scrape reads the ledger.

    Raises:
        UsageError: the address cannot be used.
    """

    def backlog() -> Backlog | None:
        try:
            return ledger.backlog()
        except RedisUnavailableError as error:  # no figures are better than old ones
            log.warning("no figures: %s", error, extra={"action": "backlog_failed"})
            return None

    metrics = metrics_page(FamiliesCollector(LEDGER_FAMILIES, backlog))
    server = StatusServer(host, port, {"/metrics": metrics, "/healthz": lambda: Page(HTTPStatus.OK, b"{}\n")})
    server.start()
    try:
        ending.wait()
    finally:
        server.stop()
        ledger.close()
