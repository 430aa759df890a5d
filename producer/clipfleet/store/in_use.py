"""Which unfinished jobs of the ledger fill a store.

Whoever changes a store reads this after taking its lock: a job may have been finished meanwhile.
"""

from __future__ import annotations

from contextlib import suppress

from clipfleet.contract.jobs import Job
from clipfleet.errors import JobNotFoundError, JobUnreadableError
from clipfleet.ledger.jobs import JobStatus, Ledger

_MOST_JOBS = 1_000_000


def unfinished_jobs(ledger: Ledger, store_id: str) -> list[tuple[Job, JobStatus]]:
    """The jobs that fill a store and have not ended, the newest first, each with a snapshot."""
    found = []
    for status in ledger.jobs(_MOST_JOBS):
        if status.state.is_final:
            continue
        with suppress(JobNotFoundError, JobUnreadableError):  # it has expired, or fills no store that we know
            job = ledger.job(status.job_id)
            if job.store is not None and job.store.store_id == store_id:
                found.append((job, status))
    return found
