"""Which jobs need a store: those that fill it, and those that read it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress

from clipfleet.contract.jobs import Job, StoreVersion, read_job
from clipfleet.errors import JobNotFoundError, JobUnreadableError
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.store.place import StorePlace

_ALL = 1_000_000_000


def unfinished_jobs(ledger: Ledger, place: StorePlace, store_id: str) -> list[Job]:
    """The jobs of a store that have not ended, newest first.

    A writer reads them after it has taken the lock of the store: a job that commits while they are read
    would be missed.

    Raises:
        JobUnreadableError: a newer clipfleet has submitted one that has not ended, and may need the store.
        RedisUnavailableError: no Redis responds.
    """
    found = []
    for status in ledger.jobs(_ALL):
        if status.state.is_final:
            continue
        with suppress(JobNotFoundError):  # it has expired meanwhile
            job = _readable(ledger, status.job_id, place, store_id)
            if job is not None and _is_of(job, place, store_id):
                found.append(job)
    return found


def _readable(ledger: Ledger, job_id: str, place: StorePlace, store_id: str) -> Job | None:
    """A job; None if this version cannot read it, and it is of another store for certain, or of none."""
    text = ""
    try:
        text = ledger.description(job_id)
        return read_job(text)
    except JobUnreadableError as error:
        if _is_of_others(text, place, store_id):
            return None
        raise type(error)(
            f"job {job_id} may need {place.uri}, and has not ended: wait for it, or end it with "
            f"`clipfleet cancel {job_id}` of the version that submitted it ({error})"
        ) from error


def _is_of_others(text: str, place: StorePlace, store_id: str) -> bool:
    try:
        facts = json.loads(text)
        named = [one for one in (facts.get("store"), facts.get("vectors")) if one is not None]
        uris = [facts["output"], *(one["uri"] for one in named)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    return store_id not in text and not any(f"{uri}/".startswith(f"{place.uri}/") for uri in uris)


def unfinished_nights(ledger: Ledger, store_id: str) -> list[tuple[Job, JobStatus]]:
    """The jobs that fill a store and have not ended, newest first, each with a snapshot.

    Jobs of a newer clipfleet are left out: they fill no store that this one knows.
    """
    found = []
    for status in ledger.jobs(_ALL):
        if status.state.is_final:
            continue
        with suppress(JobNotFoundError, JobUnreadableError):
            job = ledger.job(status.job_id)
            if job.store is not None and job.store.store_id == store_id:
                found.append((job, status))
    return found


def _is_of(job: Job, place: StorePlace, store_id: str) -> bool:
    if job.store is not None:
        return job.store.store_id == store_id
    if isinstance(job.vectors, StoreVersion):
        return job.vectors.store_id == store_id
    return job.vectors is not None and job.vectors.uri.startswith(f"{place.uri}/")


def of_model(jobs: list[Job], fingerprint: str) -> list[Job]:
    """The jobs of a store that need the dataset of a model, or may become the first ones to fill it."""
    return [job for job in jobs if _fingerprint(job) in (None, fingerprint)]


def _fingerprint(job: Job) -> str | None:
    if isinstance(job.vectors, StoreVersion):
        return job.vectors.model_fingerprint
    return None if job.store is None else job.store.fingerprint


def versions_in_use(jobs: list[Job], fingerprint: str, versions: Iterable[int]) -> set[int]:
    """Those versions of the dataset of a model that jobs need.

    A job that fills it needs the version that it was compared with, and all later ones: one of them may have
    its own commit, which its finish looks for if it is repeated. A job that labels a version needs that one.
    """
    found = set()
    for job in of_model(jobs, fingerprint):
        if job.store is not None:
            found |= {number for number in versions if number >= job.store.base_version}
        elif isinstance(job.vectors, StoreVersion):
            found.add(job.vectors.version)
    return found
