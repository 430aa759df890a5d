"""Metrics of the whole cluster, as the ledger counts them.

Every worker of a cluster tells the same: aggregate them with `max`, never with `sum`.
"""

from __future__ import annotations

from collections.abc import Iterable

from clipfleet.contract import JobState
from clipfleet.ledger import Backlog
from clipfleet_worker.metrics import Family, Sample


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
