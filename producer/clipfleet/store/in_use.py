"""Which jobs need a store: those that fill it, and those that read it."""

from __future__ import annotations

from contextlib import suppress

from clipfleet.contract.jobs import Job
from clipfleet.errors import JobNotFoundError
from clipfleet.ledger.jobs import Ledger
from clipfleet.store.place import StorePlace

_ALL = 1_000_000_000


def unfinished_jobs(ledger: Ledger, place: StorePlace, store_id: str) -> list[Job]:
    """The jobs of a store that have not ended, newest first.

    A writer reads them after it has taken the lock of the store: a job that commits while they are read
    would be missed.

    Raises:
        JobUnreadableError: a newer clipfleet has submitted one that has not ended, of any store or none.
        RedisUnavailableError: no Redis responds.
    """
    found = []
    for status in ledger.jobs(_ALL):
        if status.state.is_final:
            continue
        with suppress(JobNotFoundError):  # it has expired meanwhile
            job = ledger.job(status.job_id)
            if _is_of(job, place, store_id):
                found.append(job)
    return found


def _is_of(job: Job, place: StorePlace, store_id: str) -> bool:
    if job.store is not None:
        return job.store.store_id == store_id
    return job.vectors is not None and f"{job.vectors.uri}/".startswith(f"{place.uri}/")


def versions_in_use(jobs: list[Job], fingerprint: str) -> set[int]:
    """Versions of the dataset of a model that jobs read: those that they were compared with."""
    return {
        job.store.base_version
        for job in jobs
        if job.store is not None and job.store.fingerprint in (None, fingerprint)
    }
