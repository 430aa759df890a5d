"""Earlier nights of a store: those that are in progress, that were interrupted, or that have ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count

from clipfleet.backfill.opening import VECTOR_OPTIONS, given_vectors
from clipfleet.backfill.options import BackfillOptions
from clipfleet.backfill.outcome import of_job
from clipfleet.backfill.rounds import Services, submit_lock
from clipfleet.contract.jobs import Job, SourceDescription
from clipfleet.errors import JobConflictError, JobNotFoundError
from clipfleet.job_handle import JobHandle, OnProgress
from clipfleet.ledger.jobs import JobStatus
from clipfleet.ledger.locks import LockTakenError
from clipfleet.outputs import objects, open_output
from clipfleet.outputs.job_file import job_of
from clipfleet.redis.patience import OnTrouble
from clipfleet.store.in_use import unfinished_nights
from clipfleet.store.place import StorePlace

_READ_OPTIONS = ("url_column", "bytes_column", "id_column", "base_uri")  # of a source, without its state
_LOOK_SECONDS = 5.0  # between looks at a submit that may be interrupted


@dataclass(frozen=True, slots=True)
class EndedNight:
    """A night whose items were all submitted, and that has ended."""

    job: Job
    status: JobStatus | None  # None: Redis knows it no more, and its output says that it has ended well


def unfinished_night(services: Services, store_id: str, migration_id: str | None = None) -> JobHandle | None:
    """A job that fills the same dataset and has not ended; those of interrupted submits are cancelled."""
    for job, status in unfinished_nights(services.ledger, store_id):
        assert job.store is not None  # noqa: S101 - it fills the store
        if job.store.migration_id != migration_id:
            continue
        if status.sealed or not _was_interrupted(services, store_id, job.job_id):
            return services.job(job.job_id)
        services.cancel(job.job_id)
        services.say(
            f"job {job.job_id} was cancelled: its submit was interrupted, and is replaced by this one"
        )
    return None


def _was_interrupted(services: Services, store_id: str, job_id: str) -> bool:
    try:
        with services.locks.held(submit_lock(store_id, job_id)):
            return not services.ledger.status(job_id).sealed
    except LockTakenError:
        return False


def same_night(
    services: Services, place: StorePlace, store_id: str | None, job_id: str
) -> tuple[str, EndedNight | JobHandle | None]:
    """The night that a job id stands for, and the id of its job.

    A night whose submit was interrupted, or whose vectors the store did not want any more, is run again with
    another job id, which follows from the first one.

    Returns:
        The id, and the night: one that has ended, one that goes on (which Redis had lost), or None.

    Raises:
        JobConflictError: the job of this id is none of this store.
    """
    for one in _ids(job_id):
        found = _job(services, place, one)
        if found is None:
            return one, None
        if found.job.store is None or found.job.store.store_id != store_id:
            raise JobConflictError(f"job {one} does not fill {place.uri}: choose another `job_id=`")
        if isinstance(found, JobHandle):
            return one, found
        is_whole = found.status is None or found.status.sealed
        if is_whole and not of_job(found.job, found.status).is_superseded:
            return one, found
    raise AssertionError  # ids do not end


def require_same_night(job: Job, source: SourceDescription, options: BackfillOptions) -> None:
    """Raise `JobConflictError` unless a night that is repeated has this source and these options.

    What the source holds, and the version of a list, may have changed since: the night keeps what it found.
    """
    assert job.store is not None  # noqa: S101 - it is a night
    has = {name: getattr(job, name) for name in (*VECTOR_OPTIONS, "chunk_size")}
    has["keep_gone_days"] = job.store.keep_gone_days
    wanted: dict[str, object] = {"keep_gone_days": options.keep_gone_days, **given_vectors(options)}
    if options.chunk_size is not None:
        wanted["chunk_size"] = options.chunk_size
    differing = [f"`{name}=`" for name, value in wanted.items() if value != has[name]]
    if _without_state(source) != _without_state(job.source):
        differing.insert(0, "source")
    if differing:
        raise JobConflictError(
            f"job {job.job_id} is that of a night with another {', '.join(differing)}: choose another "
            "`job_id=`"
        )


def _without_state(source: SourceDescription) -> tuple[str, str, dict[str, str]]:
    options = {name: source.options[name] for name in _READ_OPTIONS if name in source.options}
    return source.kind, source.uri, options


def _ids(job_id: str) -> Iterator[str]:
    return chain([job_id], (f"{job_id}-{number}" for number in count(2)))


def _job(services: Services, place: StorePlace, job_id: str) -> EndedNight | JobHandle | None:
    try:
        status = services.ledger.status(job_id)
        if not status.state.is_final:
            return services.job(job_id)
        return EndedNight(services.ledger.job(job_id), status)
    except JobNotFoundError:
        output = open_output(place.job_output(job_id))
    job = job_of(output)
    if job is None:
        return None
    if output.read(objects.SUCCESS) is not None:
        return EndedNight(job, None)
    return services.rebuild(output.uri)


def end_of(job: JobHandle, on_progress: OnProgress | None, on_trouble: OnTrouble | None) -> JobStatus | None:
    """Wait until a job has ended; None: its submit does not end, it may have been interrupted."""
    while True:
        try:
            return job.wait(_LOOK_SECONDS, on_progress=on_progress, on_trouble=on_trouble)
        except TimeoutError:
            if not job.status().sealed:
                return None
