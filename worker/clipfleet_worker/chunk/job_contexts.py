"""The jobs of a worker with their outputs opened, cached while their chunks are processed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pyarrow as pa

from clipfleet.contract.jobs import REDIS_OUTPUT, Job, StoredVectors, StoreVersion, read_job
from clipfleet.contract.parts import staged_ranges
from clipfleet.errors import (
    JobTooNewError,
    JobUnreadableError,
    OutputConflictError,
    OutputRefusedError,
    OutputTooNewError,
    OutputUnreachableError,
    ResultsExpiredError,
    UsageError,
)
from clipfleet.ledger.errands import Sweep
from clipfleet.ledger.jobs import Claim, FinishClaim, Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.moderation.log import has_policy
from clipfleet.outputs import Output, objects, open_output, output_of
from clipfleet.outputs.bound_folder import BoundFolderOutput, outside_the_roots, require_below
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.objects import Layout, layout_of
from clipfleet.outputs.staged import StagedReader
from clipfleet.parts import parts_of
from clipfleet.results.store_ranges import StoreRanges
from clipfleet.results.vector_ranges import PartRanges, RedisRanges, VectorRanges
from clipfleet.s3.client import SCHEME, split_s3_uri
from clipfleet.store.place import StorePlace
from clipfleet_worker.score.decisions import Decisions
from clipfleet_worker.sinks import Sink
from clipfleet_worker.sinks.parts import PartSink
from clipfleet_worker.sinks.redis import RedisSink

# Below a Lance dataset.
DATASET_FOLDERS = ("data", "_versions", "_transactions", "_deletions", "_indices")
_KEPT_CONTEXTS = 64
_CONTEXTS_WITH_FILES = 8  # with open staged files; those of jobs in Redis are in memory


@dataclass(frozen=True, slots=True)
class JobContext:
    """A job with its output opened."""

    job: Job
    output: Output
    sink: Sink
    staged: StagedReader
    open_vectors: Callable[[], VectorRanges] | None = None  # of a job over stored vectors
    check_place: Callable[[str], object] = lambda _: None  # see `require_writable_store`
    decision_log: Output | None = None  # of a moderation job that records its decisions

    @property
    def decisions(self) -> Decisions:
        """Decides by the policy of the job."""
        return Decisions(self.job, self.decision_log)

    @property
    def head_places(self) -> tuple[Output, ...]:
        """Where the files of its heads may lie: jobs of a gateway's requests bring none of their own."""
        return (self.output,) if self.decision_log is None else (self.output, self.decision_log)

    @property
    def layout(self) -> Layout:
        """Names in the output."""
        return layout_of(self.job.schema_version)

    def items(
        self, claim: Claim, *, with_vectors: bool = True, alive: Callable[[], object] = lambda: None
    ) -> pa.Table:
        """Read the items of a claimed chunk, in order: as they were staged, or the rows with the vectors.

        Args:
            claim: of the chunk.
            with_vectors: see `VectorRanges.read`.
            alive: see `VectorRanges.read`.

        Raises:
            OutputConflictError: the vectors are gone for good.
            OutputRefusedError: they are where this worker must not read.
            OutputUnavailableError: the items cannot be read now.
        """
        staged = self.staged.read_chunk(claim.first_chunk, claim.chunks, claim.chunk_id)
        if self.open_vectors is None:
            return staged
        (part_range,) = staged_ranges(staged)
        try:
            return self.open_vectors().read(part_range, with_vectors=with_vectors, alive=alive)
        except ResultsExpiredError as error:  # they never come back
            raise OutputConflictError(str(error)) from error

    def require_writable_store(self, fingerprint: str) -> None:
        """Return if this worker may write to the store of the job, and to its dataset of this model.

        Raises:
            OutputRefusedError: it may not.
        """
        assert self.job.store is not None  # noqa: S101 - the caller knows
        store = self.job.store.uri
        self.check_place(store)
        if fingerprint:
            for folder in ("", *DATASET_FOLDERS):
                self.check_place(f"{store}/{fingerprint}.lance/{folder}".rstrip("/"))

    def is_held(self) -> bool:
        """Whether the output still belongs to this job: another job may have overwritten it."""
        return _holds(self.output, self.job)


class JobContexts:
    """Cache of the contexts of recent jobs.

    A job that was submitted again under its id is another job, even if it is equal: its standard input, for
    example, has other items.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: RedisStore,
        output_roots: tuple[Path, ...],
        s3_buckets: Collection[str] = (),
        file_roots: tuple[Path, ...] = (),
    ) -> None:
        """Make an empty cache.

        Args:
            ledger: of the jobs.
            store: of `redis://` outputs.
            output_roots: folders below which outputs may be.
            s3_buckets: buckets that may hold outputs; empty: all that the credentials can reach.
            file_roots: folders below which vectors may be read, besides those of outputs.
        """
        self._ledger = ledger
        self._store = store
        self._output_roots = tuple(root.resolve() for root in output_roots)
        self._readable_roots = (*self._output_roots, *(root.resolve() for root in file_roots))
        self._s3_buckets = frozenset(s3_buckets)
        self._contexts: OrderedDict[tuple[str, str, int], JobContext] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, claim: Claim | FinishClaim | Sweep) -> JobContext:
        """The context of a claimed job.

        Raises:
            OutputTooNewError: a newer clipfleet submitted the job.
            OutputRefusedError: the output is outside the roots, or this version cannot read the job.
            OutputUnreachableError: the output is not mounted here, or holds another job.
            OutputUnavailableError: the output cannot be read now.
        """
        key = (claim.job_id, claim.job_fingerprint, claim.job_created_ms)
        with self._lock:
            if key in self._contexts:
                self._contexts.move_to_end(key)
                return self._contexts[key]
        context = self._open(claim.job_id)
        with self._lock:
            self._contexts[key] = context
            while len(self._contexts) > _KEPT_CONTEXTS:
                self._contexts.popitem(last=False)
            idle = list(self._contexts.values())[:-_CONTEXTS_WITH_FILES]
        for other in idle:
            other.staged.close_unless_busy()
        return context

    def _open(self, job_id: str) -> JobContext:
        try:
            job = self._ledger.job(job_id)
        except JobTooNewError as error:
            raise OutputTooNewError(f"job {job_id}: {error}") from error
        except JobUnreadableError as error:
            raise OutputRefusedError(f"job {job_id}: {error}") from error
        try:
            output = output_of(job, self._store)
        except UsageError as error:  # S3 is not configured here, or another program wrote the job
            raise OutputRefusedError(str(error)) from error
        if not job.output_is_redis:
            self.check_place(output.uri)
        if isinstance(output, FolderOutput):
            # Stays below the roots even if links change meanwhile.
            output = BoundFolderOutput(Path(output.uri), self._output_roots)
        log = self._decision_log(job, output)
        # When the first chunk reads them: whoever finishes the job, or sweeps its output, needs none.
        vectors = None if job.vectors is None else cache(partial(self._vectors, job, job.vectors))
        staged = partial(StagedReader, output, job_id=job_id, schema_version=job.schema_version)
        if job.output_is_redis:
            sink = RedisSink(self._store)
            return JobContext(job, output, sink, staged(capacity=1), vectors, decision_log=log)
        if job.store is not None:
            self.check_place(job.store.uri)
        _check_holds(output, job)
        parts = PartSink(output, parts_of(job), is_ours=partial(_holds, output, job))
        return JobContext(job, output, parts, staged(), vectors, self.check_place, log)

    def _decision_log(self, job: Job, output: Output) -> Output | None:
        """Open the place of a job's decision records, which may be its output."""
        if job.decisions is None:
            return None
        if job.decisions.uri == output.uri:
            return output
        try:
            log = open_output(job.decisions.uri)
        except UsageError as error:
            raise OutputRefusedError(str(error)) from error
        self.check_place(log.uri)
        if isinstance(log, FolderOutput):
            log = BoundFolderOutput(Path(log.uri), self._output_roots)
        if job.policy is not None and not has_policy(log, job.policy.sha256):  # another disk
            raise OutputUnreachableError(
                f"{log.uri}, where decisions are recorded, lacks the policy of job {job.job_id}: is it "
                "shared between producer and worker?"
            )
        return log

    def _vectors(self, job: Job, vectors: StoredVectors | StoreVersion) -> VectorRanges:
        """The vectors of a job that labels them, from where this worker may read."""
        columns = job.source.extra_columns
        if isinstance(vectors, StoreVersion):
            place = StorePlace(self._readable(vectors.uri))
            return StoreRanges(place, vectors, columns, job.chunk_size, admit=self._check_dataset)
        if vectors.uri == REDIS_OUTPUT:
            return RedisRanges(self._store, vectors, columns, job.chunk_size)
        return PartRanges(self._readable(vectors.uri), vectors, columns, job.chunk_size)

    def _readable(self, uri: str) -> Output:
        """Open the place of vectors."""
        try:
            origin = open_output(uri)
        except UsageError as error:
            raise OutputRefusedError(str(error)) from error
        if origin.uri.startswith(SCHEME):
            self._check_bucket(origin.uri)
        elif isinstance(origin, FolderOutput):
            path = Path(origin.uri).resolve()
            if not any(path.is_relative_to(root) for root in self._readable_roots):
                raise _not_readable(origin.uri)
            origin = BoundFolderOutput(Path(origin.uri), self._readable_roots)
        return origin

    def _check_dataset(self, uri: str) -> None:
        if not uri.startswith(SCHEME):
            require_below(Path(uri), self._readable_roots, _not_readable(uri))

    def check_place(self, uri: str) -> None:
        """Return if this worker may write there, links included; raise `OutputRefusedError` if not."""
        if uri.startswith(SCHEME):
            self._check_bucket(uri)
        else:
            self._check_root(uri)

    def _check_root(self, output: str) -> None:
        # Scratch files are created and swept further below: links in between must not lead elsewhere.
        paths = Path(output).resolve(), Path(output, objects.TMP).resolve()
        if not all(any(path.is_relative_to(root) for root in self._output_roots) for path in paths):
            raise outside_the_roots(output)

    def _check_bucket(self, output: str) -> None:
        bucket, _ = split_s3_uri(output)
        if self._s3_buckets and bucket not in self._s3_buckets:
            raise OutputRefusedError(
                f"{output} is in a bucket that this worker must not use: add {bucket} to CLIPFLEET_S3_BUCKETS"
            )


def _not_readable(uri: str) -> OutputRefusedError:
    return OutputRefusedError(
        f"{uri}, whose vectors are to be labelled, is outside this worker's roots; start the worker with a "
        "folder above it: `clipfleet-worker up --root FOLDER`, or CLIPFLEET_FILE_ROOTS (of the worker, not "
        "of this shell)"
    )


def _holds(output: Output, job: Job) -> bool:
    data = output.read(objects.JOB_FILE)
    return data is not None and read_job(data).is_same(job)


def _check_holds(output: Output, job: Job) -> None:
    """Raise unless the output has the job's own file: else it is another disk, or another job's output."""
    data = output.read(objects.JOB_FILE)
    if data is None:
        doubt = (
            "do producer and worker have the same AWS_ENDPOINT_URL?"
            if output.uri.startswith(SCHEME)
            else "is this folder shared between producer and worker?"
        )
        raise OutputUnreachableError(f"{output.uri}/{objects.JOB_FILE} is not there: {doubt}")
    try:
        found = read_job(data)
    except JobUnreadableError as error:
        kind = OutputTooNewError if isinstance(error, JobTooNewError) else OutputUnreachableError
        raise kind(f"{output.uri}/{objects.JOB_FILE}: {error}") from error
    if not found.is_same(job):
        raise OutputUnreachableError(f"{output.uri} holds job {found.job_id}, not {job.job_id}")
