"""One round of a backfill: a whole source is compared with a dataset; what follows is run, or committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from clipfleet.backfill.items import ComparedItems, ListedItems, OnListed
from clipfleet.backfill.options import BackfillOptions
from clipfleet.backfill.outcome import RoundResult
from clipfleet.contract.jobs import JobState, Lane
from clipfleet.contract.stores import StoreTarget
from clipfleet.errors import JobConflictError, JobNotFoundError
from clipfleet.job_handle import JobHandle
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.locks import Alive, LockLostError, Locks
from clipfleet.outputs.scratch import output_errors
from clipfleet.redis.patience import OnTrouble
from clipfleet.sources import Source
from clipfleet.store.committing.commit import Counts
from clipfleet.store.committing.of_job import SupersededError, commit_gone, lock_name
from clipfleet.store.comparing import Comparing, Comparison
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.known import known_items
from clipfleet.store.place import EmbeddedBy, StorePlace
from clipfleet.submit.options import JobOptions
from clipfleet.submit.submission import GoneItems

_LOCK_SECONDS = 0.5  # between two tries to take a lock
_SAID_AFTER_SECONDS = 5.0

Submit = Callable[[ComparedItems, JobOptions, StoreTarget, GoneItems], JobHandle]


@dataclass(frozen=True)
class Services:
    """What a backfill works with. Calls of the ledger and locks wait out outages of Redis."""

    ledger: Ledger
    locks: Locks
    submit: Submit
    job: Callable[[str], JobHandle]
    rebuild: Callable[[str], JobHandle]  # by its output
    cancel: Callable[[str], tuple[bool, JobState]]
    say: OnTrouble
    sleep: Callable[[float], object] = time.sleep


@dataclass(frozen=True)
class Compared:
    """A source, compared with a dataset at one version."""

    comparison: Comparison
    comparing: Comparing
    items: ComparedItems
    dataset: VectorDataset | None
    has_gone_rows: bool  # that may have been kept for long enough
    listed_at: datetime

    @property
    def needs_commit(self) -> bool:
        """Whether there is something to commit beside what a job runs."""
        return len(self.comparison.gone) > 0 or self.has_gone_rows

    def gone(self) -> Iterator[pa.RecordBatch]:
        """See `Submission.gone`."""
        return self.comparing.gone_items(self.comparison)


def compare(
    source: Source,
    dataset: VectorDataset | None,
    folder: Path,
    *,
    now: datetime,
    most_items: int | None,
    on_listed: OnListed,
) -> Compared:
    """Compare the whole source with a dataset; the items to run go to a file in a local folder.

    Args:
        source: see `Comparing.run`.
        dataset: see `Comparing`.
        folder: for the file.
        now: by the clock of Redis. The listing counts as later than all that the dataset has, though that
            clock was ahead in an earlier night.
        most_items: see `Comparing`.
        on_listed: see `ListedItems`.

    Raises:
        SourceError: the source cannot be read to its end, or a store cannot hold it; nothing was changed.
        OutputUnavailableError: the dataset cannot be read, or the local disk is full.
    """
    began_at = min(now, datetime.now(UTC))
    known = known_items(dataset)
    listed_at = now if known.listed_at is None else max(now, known.listed_at + datetime.resolution)
    comparing = Comparing(dataset, known, began_at=began_at, most_items=most_items)
    path = folder / "items.parquet"
    path.unlink(missing_ok=True)
    with output_errors(path):
        comparison = comparing.run(ListedItems(source, on_listed), path)
    items = ComparedItems(path, source.description)
    return Compared(comparison, comparing, items, dataset, bool(known.is_gone.any()), listed_at)


def target_of(
    place: StorePlace, store_id: str, embedded_by: EmbeddedBy, compared: Compared, options: BackfillOptions,
    migration_id: str | None = None,
) -> StoreTarget:  # fmt: skip
    """What a job, or a commit, needs to know of the store."""
    return StoreTarget(
        uri=place.uri,
        store_id=store_id,
        migration_id=migration_id,
        fingerprint=embedded_by.fingerprint,
        base_version=0 if compared.dataset is None else compared.dataset.version,
        listed_at=compared.listed_at,
        keep_gone_days=options.keep_gone_days,
        same=compared.comparison.same,
        left=compared.comparison.left,
    )


def submit(
    services: Services, place: StorePlace, job_id: str, compared: Compared, target: StoreTarget,
    embedded_by: EmbeddedBy, options: BackfillOptions,
) -> JobHandle:  # fmt: skip
    """Submit the job of the items to run, or resume that submit.

    The lock of the submit says that it is in progress: without it, and not all staged, it was interrupted. A
    submit that has lost it resumes.

    Raises:
        JobConflictError: another backfill has taken the submit for an interrupted one.
    """
    lane = options.lane or (Lane.NORMAL if target.migration_id is None else Lane.BULK)
    described = JobOptions(
        output=place.job_output(job_id), job_id=job_id, model=embedded_by.model,
        precision=embedded_by.precision, decode=embedded_by.decode, exif=embedded_by.exif, lane=lane,
        chunk_size=options.chunk_size,
    )  # fmt: skip
    while True:
        try:
            with held(services, submit_lock(target.store_id, job_id)) as alive:
                items = ComparedItems(compared.items.path, compared.items.description, alive)
                return services.submit(items, described, target, compared.gone)
        except LockLostError:
            _require_open(services, job_id)


def _require_open(services: Services, job_id: str) -> None:
    """Raise `JobConflictError` if a job whose submit has not ended is over."""
    with suppress(JobNotFoundError):  # it is submitted anew
        if services.ledger.status(job_id).state.is_final:
            raise JobConflictError(
                f"job {job_id}: Redis was away, or this program stood still, and another backfill has "
                "replaced it: run it again"
            )


def submit_lock(store_id: str, job_id: str) -> str:
    """Name of the lock of a submit in progress."""
    return f"{lock_name(store_id)}:{job_id}"


def commit(services: Services, place: StorePlace, compared: Compared, target: StoreTarget) -> RoundResult:
    """Commit what is gone, where no item is to be run; nothing, if nothing is gone."""
    same = compared.comparison.same
    if not compared.needs_commit:
        return RoundResult(target.base_version, same=same)
    while True:
        try:
            with held(services, lock_name(target.store_id)) as alive:
                done = commit_gone(place, target, compared.gone, alive)
                return RoundResult(done.version, done.counts, same)
        except SupersededError:
            late = Counts(late=len(compared.comparison.gone))
            return RoundResult(target.base_version, late, is_superseded=True)
        except LockLostError:
            continue  # a repeated commit finds what the first one did


@contextmanager
def held(services: Services, name: str) -> Iterator[Alive]:
    """Hold a lock; wait for it, and say so if that takes long."""
    tries = 0

    def wait() -> None:
        nonlocal tries
        tries += 1
        if tries * _LOCK_SECONDS == _SAID_AFTER_SECONDS:
            services.say("another program changes the store: waiting for it")
        services.sleep(_LOCK_SECONDS)

    with services.locks.held(name, wait=wait) as alive:
        yield alive
