"""Whether the vectors that a job labels are where they were, before it is resumed."""

from __future__ import annotations

from clipfleet.contract.jobs import REDIS_OUTPUT, Job, StoredVectors, StoreVersion
from clipfleet.errors import OutputUnreachableError, ResultsNotReadyError, UsageError
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import open_output
from clipfleet.results.store_ranges import StoreRanges
from clipfleet.results.vector_ranges import PartRanges, RedisRanges, VectorRanges
from clipfleet.store.place import store_place


def require_vectors(job: Job, store: RedisStore) -> None:
    """Raise unless all stored vectors of a job are there; it may have none, and reads none.

    Raises:
        UsageError: they are gone, of another job, or of one that is being retried.
        WorldError: Redis or the output is unavailable now.
    """
    vectors = job.vectors
    if vectors is None:
        return
    try:
        _ranges(vectors, store).require_all()
    except ResultsNotReadyError as error:
        raise UsageError(
            f"job {job.job_id} labels the vectors of {vectors.said}, which has not finished ({error}): "
            "nothing was changed; wait for it first, with `clipfleet watch`"
        ) from error
    except (OutputUnreachableError, UsageError) as error:
        raise UsageError(
            f"job {job.job_id} labels the vectors of {vectors.said}, and its vectors at {vectors.uri} "
            f"are gone or not complete ({error}): nothing was changed; put them back first"
        ) from error


def _ranges(vectors: StoredVectors | StoreVersion, store: RedisStore) -> VectorRanges:
    if isinstance(vectors, StoreVersion):
        return StoreRanges(store_place(vectors.uri), vectors, ())
    if vectors.uri == REDIS_OUTPUT:
        return RedisRanges(store, vectors, ())
    return PartRanges(open_output(vectors.uri), vectors, ())
