"""Metrics of the whole cluster, as the ledger counts them.

Every worker of a cluster tells the same: aggregate them with `max`, never with `sum`. They can be had without
a worker, for who starts workers when there is work, and ends them when not: that needs prometheus_client, and
nothing else of the worker's packages.
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

_PATIENCE_SECONDS = 3.0  # Prometheus waits ten, and asks again soon


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
        "chunks of the jobs that go on: `queued` (nobody's), `leased` (some worker's), `done`",
        _chunks,
        labels=("lane", "state"),
    ),
    Family(
        "clipfleet_ledger_open_items",
        "items of the jobs that go on without a row yet",
        lambda backlog: [((lane,), counts.open_items) for lane, counts in backlog.lanes.items()],
        labels=("lane",),
    ),
    Family(
        "clipfleet_ledger_jobs", "jobs that the ledger knows, ended ones included", _jobs, labels=("state",)
    ),
    Family(
        "clipfleet_ledger_oldest_due_seconds",
        "how long some chunk has waited for any worker: since its back-off was over, or, where nobody has "
        "come to its job yet, since the submit; 0: none waits",
        lambda backlog: backlog.oldest_due_seconds,
    ),
    Family(
        "clipfleet_ledger_outage_seconds",
        "how long a job has waited for its output or source to come back; 0: none does",
        lambda backlog: backlog.outage_seconds,
    ),
    Family(
        "clipfleet_ledger_jobs_left_out",
        "jobs that are not in these figures: the oldest ones beyond 5000",
        lambda backlog: backlog.jobs_left_out,
    ),
    Family(
        "clipfleet_jobs_quarantined_total",
        "jobs that have failed because what Redis held of them was damaged",
        lambda backlog: backlog.quarantined_jobs,
    ),
)


def hasty_ledger(url: str) -> Ledger:
    """The ledger for who would rather hear nothing than hear it late."""
    return Ledger(url, client=connect(url, retries=0, patience_seconds=_PATIENCE_SECONDS))


def run_exporter(ledger: Ledger, host: str, port: int, ending: threading.Event) -> None:
    """Serve `/metrics` and `/healthz` until `ending` is set; the ledger is asked when somebody asks us.

    Raises:
        UsageError: the address cannot be used.
    """

    def backlog() -> Backlog | None:
        try:
            return ledger.backlog()
        except RedisUnavailableError as error:  # then there are no figures: nothing is better than old ones
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
