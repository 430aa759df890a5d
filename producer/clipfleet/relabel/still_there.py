"""Whether the vectors that a job labels are where they were, before it is resumed."""

from __future__ import annotations

from clipfleet.contract.jobs import REDIS_OUTPUT, Job
from clipfleet.errors import OutputUnreachableError, ResultsNotReadyError, UsageError
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import open_output
from clipfleet.results.vector_ranges import PartRanges, RedisRanges, VectorRanges


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
        ranges: VectorRanges
        if vectors.uri == REDIS_OUTPUT:
            ranges = RedisRanges(store, vectors, ())
        else:
            ranges = PartRanges(open_output(vectors.uri), vectors, ())
        ranges.require_all()
    except ResultsNotReadyError as error:
        raise UsageError(
            f"job {job.job_id} labels the vectors of job {vectors.job_id}, which has not finished ({error}): "
            f"nothing was changed; wait for it with `clipfleet watch {vectors.job_id}` first"
        ) from error
    except (OutputUnreachableError, UsageError) as error:
        raise UsageError(
            f"job {job.job_id} labels the vectors of job {vectors.job_id}, and its vectors at {vectors.uri} "
            f"are gone or not complete ({error}): nothing was changed; put them back first"
        ) from error
