"""How parts are written and read: the protocol, and one file per format. Knows no source and no job state."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow as pa

from clipfleet.contract.jobs import Job, PartFormat
from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.contract.versions import SCHEMA_VERSION
from clipfleet.outputs import Output
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.parts.jsonl import JsonlParts
from clipfleet.parts.parquet import ParquetParts


class OpenPart(Protocol):
    """A part, open for reading."""

    num_rows: int
    beside: Sequence[str]  # names of further objects that belong to the part

    @property
    def schema(self) -> pa.Schema:
        """Of the rows, without metadata."""

    def footer(self) -> tuple[PartIdentity, PartCounts]:
        """Identity and counts of the part.

        Raises:
            ValueError: the file is not a part of clipfleet.
        """

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Iterate over the rows in order, in batches of at most 4,096, with all columns or the named ones."""


class PartFiles(Protocol):
    """One format of parts. Methods raise `OutputUnavailableError` if waiting may help."""

    readers: int  # parts to read concurrently, bounded by memory
    footer_readers: int  # footers to read concurrently, to hide round trips

    def name(self, chunk_id: int) -> str:
        """Object name of the part of a chunk."""

    def write(
        self,
        output: Output,
        path: Path,
        identity: PartIdentity,
        rows: pa.Table,
        counts: PartCounts,
        *,
        confirm: Confirm = unconditionally,
    ) -> None:
        """Write a part to a scratch file of the output, ready to publish. Idempotent.

        Objects that belong to it are created in the output at once; for `confirm` see `Output`.
        """

    def open(
        self, output: Output, name: str, *, most_bytes: int | None = None
    ) -> AbstractContextManager[OpenPart]:
        """Open a part of the output for reading.

        Args:
            output: of the job.
            name: of the part.
            most_bytes: of a part that is read as a whole now; None: as many as it has.

        Raises:
            FileNotFoundError: no such object.
            OutputDamagedError: now or while reading: unexpected content, or more of it.
        """


def part_files(
    part_format: PartFormat, job_id: str | None, schema_version: int = SCHEMA_VERSION
) -> PartFiles:
    """Choose the format of the parts of a job of this version.

    Without a job id, JSONL parts have no footer and inferred types.
    """
    if part_format is PartFormat.JSONL:
        return JsonlParts(job_id, schema_version)
    return ParquetParts(schema_version)


def parts_of(job: Job) -> PartFiles:
    """The format of a job's parts, in its version."""
    return part_files(job.part_format, job.job_id, job.schema_version)


Name = TypeVar("Name")
Loaded = TypeVar("Loaded")


def read_ahead(
    load: Callable[[Name], Loaded], names: Iterable[Name], *, depth: int
) -> Generator[Loaded, None, None]:
    """Yield `load(name)` for each name, in order, with concurrent calls to hide round trips.

    The first is loaded alone, so that a caller that stops after it pays for no more; then concurrency doubles
    after each result, up to `depth`. An exception of `load` is raised in its turn, and later results are
    dropped.

    Args:
        load: called in other threads, with a depth of 1 in this one.
        names: consumed lazily.
        depth: upper bound of calls in progress or not yet yielded.
    """
    if depth == 1:
        for name in names:
            yield load(name)
        return
    left = iter(names)
    under_way: deque[Future[Loaded]] = deque()
    wanted = 1
    with ThreadPoolExecutor(depth, thread_name_prefix="read-ahead") as pool:
        try:
            while True:
                under_way.extend(pool.submit(load, name) for name in islice(left, wanted - len(under_way)))
                if not under_way:
                    return
                yield under_way.popleft().result()
                wanted = min(2 * wanted, depth)
        finally:
            for call in under_way:
                call.cancel()
