"""The commit of a job: what its parts and the list of gone items hold goes into the store, once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import Job
from clipfleet.contract.parts import ItemStatus
from clipfleet.contract.stores import StoreTarget
from clipfleet.errors import OutputConflictError
from clipfleet.outputs import Output
from clipfleet.parts import parts_of, read_ahead
from clipfleet.store.committing.commit import Counts, commit_night
from clipfleet.store.committing.model import model_of_rows, require_model
from clipfleet.store.committing.night import Batches, Night, own_fields
from clipfleet.store.dataset import Alive, VectorDataset
from clipfleet.store.gone_items import read_gone
from clipfleet.store.place import EmbeddedBy, StoreFile, StorePlace
from clipfleet.store.rows import VECTOR_COLUMN, store_schema

KIND, BACKFILL, MIGRATION = "kind", "backfill", "migration"  # a property of a version, and values of it
# Another one: items that the comparison had found to be the same, which the counts of the commit do not have.
COMPARED_SAME = "compared_same"


@dataclass(frozen=True, slots=True)
class JobCommit:
    """What became of a job's rows."""

    version: int  # of the dataset; 0: there is none, as no item was embedded yet
    fingerprint: str
    counts: Counts


class SupersededError(Exception):
    """The store takes no more vectors of this model: it has another one by now."""


def commit_job(
    place: StorePlace, job: Job, output: Output, chunks: int, fingerprint: str, alive: Alive = lambda: None
) -> JobCommit:
    """Commit a job whose parts are all there. Idempotent: a repeated call finds what the first one did.

    The caller holds the lock of the store, see `lock_name`.

    Args:
        place: of the store.
        job: fills it.
        output: of the job.
        chunks: of the job.
        fingerprint: of its vectors, as it was pinned; empty if no worker has loaded the model, or the ledger
            has lost the job since: its rows say it then.
        alive: called often; what it raises ends the commit, and nothing is changed.

    Raises:
        SupersededError: the store has changed its model meanwhile, or migrates to the one that it has.
        OutputConflictError: another store is there by now, the rows are of several models, or a column has
            another type in the store.
        OutputUnavailableError: a part, or the store, cannot be read or written.
    """
    target = job.store
    assert target is not None  # noqa: S101 - the caller knows
    fingerprint = target.fingerprint or fingerprint or model_of_rows(job, output, range(chunks), alive)
    store = place.read()
    embedded_by = _embedded_by(store, target, place.uri)
    _require_wanted(embedded_by, job, target, place.uri)
    if target.migration_id is not None and fingerprint == store.current.fingerprint:
        raise SupersededError(f"{place.uri} has the vectors of {fingerprint} already")
    if embedded_by.fingerprint not in (None, fingerprint):
        raise SupersededError(
            f"{place.uri} has vectors with the fingerprint {embedded_by.fingerprint} by now, "
            f"job {job.job_id} has {fingerprint or 'none'}"
        )
    night = _night(job, target, output, chunks, fingerprint)
    dataset = _dataset(place, fingerprint, night, is_there=embedded_by.fingerprint is not None)
    if dataset is None:
        failed = sum(batch.num_rows for batch in night.rows())
        return JobCommit(0, "", Counts(failed=failed))
    properties = {**_properties(target), "job_id": job.job_id}
    done = commit_night(dataset, night, properties, since=target.base_version, alive=alive)
    dimension = dataset.schema.field(VECTOR_COLUMN).type.list_size
    _note_model(place, job, target, fingerprint, dimension)
    return JobCommit(done.dataset.version, fingerprint, done.counts)


def commit_gone(
    place: StorePlace, target: StoreTarget, gone: Batches, alive: Alive = lambda: None
) -> JobCommit:
    """Commit the items that are gone, of a night that has no item for a job to run. Idempotent.

    Args:
        place: of the store.
        target: as of a job; it has a fingerprint.
        gone: see `Night`.
        alive: see `commit_job`, also for what is raised, and for the lock.
    """
    fingerprint = target.fingerprint
    assert fingerprint is not None  # noqa: S101 - nothing is gone without a dataset
    if _embedded_by(place.read(), target, place.uri).fingerprint != fingerprint:
        raise SupersededError(f"{place.uri} has other vectors by now than those of {fingerprint}")
    night = Night(lambda: (), gone, target.listed_at, target.listed_at, target.keep_gone_days)
    properties = {**_properties(target), "listed_at": target.listed_at.isoformat()}
    dataset = _open(place, fingerprint)
    done = commit_night(dataset, night, properties, since=target.base_version, alive=alive)
    return JobCommit(done.dataset.version, fingerprint, done.counts)


def _properties(target: StoreTarget) -> dict[str, str]:
    kind = BACKFILL if target.migration_id is None else MIGRATION
    return {KIND: kind, COMPARED_SAME: str(target.same)}


def lock_name(store_id: str) -> str:
    """Name of the lock that everyone holds who writes to a store."""
    return f"store:{store_id}"


def _embedded_by(store: StoreFile, target: StoreTarget, uri: str) -> EmbeddedBy:
    """The model that the target's dataset has by now."""
    if store.store_id != target.store_id:
        raise OutputConflictError(f"{uri} holds another store by now: the job was for {target.store_id}")
    if target.migration_id is None:
        return store.current
    if store.migration is None or store.migration.migration_id != target.migration_id:
        raise SupersededError(f"{uri}: the migration {target.migration_id} has ended")
    return store.migration.to


def _require_wanted(embedded_by: EmbeddedBy, job: Job, target: StoreTarget, uri: str) -> None:
    """Raise `SupersededError` if a store without vectors is to get other ones than those of a job."""
    if target.migration_id is not None or embedded_by.fingerprint is not None:
        return
    wanted = embedded_by.model_copy(update={"dimension": None})
    has = EmbeddedBy(model=job.model, precision=job.precision, decode=job.decode, exif=job.exif)
    if wanted != has:
        raise SupersededError(f"{uri} gets vectors of {wanted.model} by now, and has none of {job.model}")


def _night(job: Job, target: StoreTarget, output: Output, chunks: int, fingerprint: str) -> Night:
    files = parts_of(job)

    def load(chunk_id: int) -> list[pa.RecordBatch]:
        with files.open(output, files.name(chunk_id)) as part:
            identity, _ = part.footer()
            identity.require(job.job_id, chunk_id, f"{output.uri}/{files.name(chunk_id)}")
            found = [*part.batches()]
        for batch in found:
            require_model(batch, fingerprint, job)
        return found

    def rows() -> Iterator[pa.RecordBatch]:
        for batches in read_ahead(load, range(chunks), depth=2):
            yield from batches

    return Night(rows, lambda: read_gone(output), target.listed_at, job.created_at, target.keep_gone_days)


def _open(place: StorePlace, fingerprint: str) -> VectorDataset:
    """The dataset that `store.json` names."""
    try:
        return VectorDataset.open(place.dataset_uri(fingerprint))
    except FileNotFoundError:
        raise place.dataset_is_gone(fingerprint) from None


def _dataset(place: StorePlace, fingerprint: str, night: Night, *, is_there: bool) -> VectorDataset | None:
    """The dataset of a model, created if there are rows for its first version.

    Args:
        place: of the store.
        fingerprint: of the model; empty: not known.
        night: the first one, if the dataset is not there.
        is_there: whether `store.json` names it.

    Returns:
        None if there is nothing to commit to.
    """
    if is_there:
        return _open(place, fingerprint)
    if not fingerprint:
        return None
    uri = place.dataset_uri(fingerprint)
    try:
        return VectorDataset.open(uri)
    except FileNotFoundError:
        for batch in night.rows():
            if pc.any(pc.equal(batch["status"], ItemStatus.OK.value)).as_py():
                dimension = batch.schema.field("embedding").type.list_size
                return VectorDataset.create(uri, store_schema(dimension, own_fields(batch.schema)))
        return None


def _note_model(place: StorePlace, job: Job, target: StoreTarget, fingerprint: str, dimension: int) -> None:
    """Let `store.json` say which vectors there are, once they are there."""

    def change(store: StoreFile) -> StoreFile:
        found = _embedded_by(store, target, place.uri)
        _require_wanted(found, job, target, place.uri)
        if found.fingerprint is not None:
            return store
        found = found.model_copy(update={"fingerprint": fingerprint, "dimension": dimension})
        if store.migration is None or target.migration_id is None:
            return store.model_copy(update={"current": found})
        return store.model_copy(update={"migration": store.migration.model_copy(update={"to": found})})

    place.change(change)
