"""Metrics of the whole cluster, as the ledger counts them.

Every worker of a cluster tells the same: aggregate them with `max`, never with `sum`.
"""

from __future__ import annotations

from collections.abc import Iterable

from clipfleet.contract import JobState
from clipfleet.ledger import Backlog
from clipfleet_worker.metrics import Family, Kind, Sample, one


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
        Kind.GAUGE,
        "chunks of the jobs that go on: `queued` (nobody's), `leased` (some worker's), `done`",
        ("lane", "state"),
        _chunks,
    ),
    Family(
        "clipfleet_ledger_open_items",
        Kind.GAUGE,
        "items of the jobs that go on without a row yet",
        ("lane",),
        lambda backlog: [((lane,), counts.open_items) for lane, counts in backlog.lanes.items()],
    ),
    Family(
        "clipfleet_ledger_jobs",
        Kind.GAUGE,
        "jobs that the ledger knows, ended ones included",
        ("state",),
        _jobs,
    ),
    Family(
        "clipfleet_ledger_oldest_due_seconds",
        Kind.GAUGE,
        "how long some chunk has waited for any worker: since its back-off was over, or, where nobody has "
        "come to its job yet, since the submit; 0: none waits",
        (),
        lambda backlog: one(backlog.oldest_due_seconds),
    ),
    Family(
        "clipfleet_ledger_outage_seconds",
        Kind.GAUGE,
        "how long a job has waited for its output or source to come back; 0: none does",
        (),
        lambda backlog: one(backlog.outage_seconds),
    ),
    Family(
        "clipfleet_ledger_jobs_left_out",
        Kind.GAUGE,
        "jobs that are not in these figures: the oldest ones beyond 5000",
        (),
        lambda backlog: one(backlog.jobs_left_out),
    ),
    Family(
        "clipfleet_jobs_quarantined_total",
        Kind.COUNTER,
        "jobs that have failed because what Redis held of them was damaged",
        (),
        lambda backlog: one(backlog.quarantined_jobs),
    ),
)
