"""The earlier job, or the store, whose vectors are labelled again: whether it fits, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from os.path import realpath
from typing import Any

from clipfleet.contract.columns import VectorType
from clipfleet.contract.jobs import (
    MAX_CHUNK_SIZE,
    REDIS_OUTPUT,
    Job,
    PartFormat,
    Precision,
    StoredVectors,
    StoreVersion,
)
from clipfleet.errors import JobNotFoundError, OutputConflictError, OutputDamagedError, UsageError
from clipfleet.outputs import output_uri
from clipfleet.results.rows import RowReader, require_of_images
from clipfleet.results.store_ranges import StoreRanges
from clipfleet.results.store_rows import StoreRows
from clipfleet.results.vector_ranges import VectorRanges
from clipfleet.s3.client import SCHEME
from clipfleet.submit.options import OF_IMAGES, OF_THE_VECTORS, JobOptions

# Rows whose fingerprint a submit compares: a part as JSON Lines is read as a whole. Workers compare all.
_MOST_COMPARED: Mapping[PartFormat, int] = {PartFormat.PARQUET: 100_000, PartFormat.JSONL: 50_000}
# Workers with different devices take another precision each for `auto`; more are of several models.
_MOST_FINGERPRINTS = len({*Precision} - {Precision.AUTO})
_CHUNKS = 8  # at least, if there are as many parts: so many workers share a small job

OpenRanges = Callable[[Job, StoredVectors], VectorRanges]


@dataclass(frozen=True, slots=True)
class Origin:
    """A finished job with stored vectors, or a store at one version."""

    job: Job  # of a store: see `StoreRows.job`
    vectors: StoredVectors | StoreVersion
    finished_at: datetime
    ranges: VectorRanges
    items: int
    largest_part: int  # rows

    @property
    def identity(self) -> dict[str, str]:
        """What other vectors at the same place differ in: a job that was retried since, another version."""
        if isinstance(self.vectors, StoreVersion):
            return {"store_id": self.vectors.store_id, "version": str(self.vectors.version)}
        return {"job_id": self.vectors.job_id, "finished_at": self.finished_at.isoformat()}

    def described(self, options: JobOptions) -> JobOptions:
        """The options of the new job: what the vectors depend on is that of the earlier one.

        Raises:
            UsageError: an option does not apply to stored vectors, or the output is that of the vectors.
        """
        if options.output is not None and _overlap(output_uri(options.output), self.vectors.uri):
            raise UsageError(
                f"{self.vectors.uri} holds the vectors that are labelled again: choose another `output=`, "
                "neither in it nor above it"
            )
        if "vector_type" in options.model_fields_set and not options.store_embeddings:
            raise UsageError("`vector_type=` is of copied vectors: copy them with `store_embeddings=True`")
        for name in (*OF_THE_VECTORS, *OF_IMAGES):
            if getattr(options, name) != JobOptions.model_fields[name].default:
                why = "is that of the vectors" if name in OF_THE_VECTORS else "is for images"
                raise UsageError(f"`{name}=` {why}, which are labelled again: leave it out")
        taken: dict[str, Any] = {name: getattr(self.job, name) for name in OF_THE_VECTORS}
        if "vector_type" not in options.model_fields_set:
            taken["vector_type"] = self._vector_type(options)
        return options.model_copy(update=taken)

    def chunk_size(self, asked: int | None) -> int:
        """Upper bound of the items of a chunk, which consists of whole parts."""
        most = asked or min(MAX_CHUNK_SIZE, self.items // _CHUNKS)
        return max(most, self.largest_part)

    def _vector_type(self, options: JobOptions) -> VectorType:
        if not options.store_embeddings or options.output in (None, REDIS_OUTPUT):
            return VectorType.FLOAT16  # of all vectors in Redis
        return self.job.vector_type


def origin_of(reader: RowReader, open_ranges: OpenRanges, job_id: str | None = None) -> Origin:
    """Check that the rows of a job can be labelled again.

    Args:
        reader: of its rows.
        open_ranges: opens them as ranges.
        job_id: of the job that is meant; None: that which has the output.

    Raises:
        UsageError: it has not finished, keeps no vectors of images, or has those of several models,
            as far as their number says so: a worker, which has the model, compares each row.
        WorldError: the output or Redis is unavailable.
    """
    uri, job = reader.uri, reader.job()
    if job is None:
        raise JobNotFoundError(
            f"{uri}: no job that this version can read has this output: what is labelled again is a finished "
            "job with vectors; embed the images first with `clipfleet embed`"
        )
    if job_id is not None and job.job_id != job_id:
        raise OutputConflictError(f"{uri} no longer contains job {job_id}: it holds {job.job_id}")
    require_of_images(job, uri)
    if not job.keeps_embeddings:
        raise UsageError(
            f"{uri}: keeps no vectors: embed its source with `clipfleet embed`, or label it with "
            "`store_embeddings=True`, once; then its vectors can be labelled again and again"
        )
    finished_at = require_finished(reader, job)
    fingerprints, dimension = _model_of(reader, job)
    where = REDIS_OUTPUT if job.output_is_redis else uri
    vectors = StoredVectors(
        uri=where,
        job_id=job.job_id,
        created_at=job.created_at,
        model_fingerprint=fingerprints[0],
        dimension=dimension,
    )
    found = _origin(job, vectors, finished_at, open_ranges(job, vectors))
    if found.largest_part > MAX_CHUNK_SIZE:
        raise OutputDamagedError(f"{uri}: a part has {found.largest_part:,} rows, more than any job writes")
    return found


def require_finished(reader: RowReader, job: Job) -> datetime:
    """When a job finished.

    Raises:
        UsageError: it has not, so that rows may be missing.
    """
    finished_at = reader.finished_at()
    if finished_at is None:
        raise UsageError(
            f"{reader.uri}: job {job.job_id} has not finished: wait for it with `clipfleet watch "
            f"{job.job_id}`, or continue it with `clipfleet retry {job.job_id}` if it was cancelled or has "
            "failed"
        )
    return finished_at


def origin_of_store(rows: StoreRows) -> Origin:
    """The vectors of a store at the version that is read.

    Raises:
        UsageError: it has no rows.
        WorldError: the store is unavailable.
    """
    if not rows.count:
        raise UsageError(f"{rows.uri}: no row has a vector: nothing to label")
    vectors = StoreVersion(
        uri=rows.place.uri,
        store_id=rows.store.store_id,
        version=rows.version,
        model_fingerprint=rows.fingerprint,
        dimension=rows.dimension,
    )
    job = rows.job()
    ranges = StoreRanges(rows.place, vectors, job.source.extra_columns)
    return _origin(job, vectors, rows.finished_at(), ranges)


def _origin(
    job: Job, vectors: StoredVectors | StoreVersion, finished_at: datetime, ranges: VectorRanges
) -> Origin:
    items = largest = 0
    for part in ranges.ranges(1):
        items, largest = items + part.rows, max(largest, part.rows)
    return Origin(job, vectors, finished_at, ranges, items, largest)


def _overlap(output: str, place: str) -> bool:
    """Whether two outputs are the same place, or one lies in the other."""
    if REDIS_OUTPUT in (output, place):
        return False
    one, other = (f"{uri if uri.startswith(SCHEME) else realpath(uri)}/" for uri in (output, place))
    return one.startswith(other) or other.startswith(one)


def _model_of(reader: RowReader, job: Job) -> tuple[list[str], int]:
    """The fingerprints of the rows that are ok, from the first one on, and the length of their vectors."""
    found, rows = dict[str, None](), 0
    for batch in reader.read(["model_fingerprint"]).batches:
        found.update(dict.fromkeys(filter(None, batch["model_fingerprint"].unique().to_pylist())))
        rows += batch.num_rows
        if found and rows >= _MOST_COMPARED[job.part_format]:
            break
    if len(found) > _MOST_FINGERPRINTS:
        raise OutputConflictError(
            f"{reader.uri}: rows of {len(found)} different models: embed its source again into a new output"
        )
    if not found:
        raise UsageError(f"{reader.uri}: no row has a vector: nothing to label")
    kind = reader.read(["embedding"]).schema.field("embedding").type
    return [*found], int(kind.list_size)
