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

from clipfleet.contract.jobs import PartFormat
from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.outputs import Output
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.parts.jsonl import JsonlParts
from clipfleet.parts.parquet import ParquetParts


class OpenPart(Protocol):
    """A part that is being read."""

    schema: pa.Schema  # of the rows, without metadata
    num_rows: int
    beside: Sequence[str]  # names of further objects without which the part is not complete

    def footer(self) -> tuple[PartIdentity, PartCounts]:
        """Whose part it is, and what it counts.

        Raises:
            ValueError: it is no part of ours.
        """

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in order, in batches of at most 4,096, with all columns or the named ones."""


class PartFiles(Protocol):
    """One format. Its methods raise `OutputUnavailableError` where waiting may help."""

    readers: int  # how many parts may be read at a time, so that memory stays in bounds
    footer_readers: int  # likewise where little beside the footers is wanted: a remote one takes round trips

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
        """Write a part to a scratch file of the output, ready to be published. May be repeated.

        What belongs to it beside is put into the output at once; for `confirm` see `Output`.
        """

    def open(self, output: Output, name: str) -> AbstractContextManager[OpenPart]:
        """Open a part of the output for reading.

        Raises:
            FileNotFoundError: there is no object of this name.
            OutputDamagedError: now or while reading: it does not hold what its name says.
        """


def part_files(part_format: PartFormat, job_id: str | None) -> PartFiles:
    """The parts of a job; without its id those of a JSONL part have no known footer and types."""
    return JsonlParts(job_id) if part_format is PartFormat.JSONL else ParquetParts()


Name = TypeVar("Name")
Loaded = TypeVar("Loaded")


def read_ahead(
    load: Callable[[Name], Loaded], names: Iterable[Name], *, depth: int
) -> Generator[Loaded, None, None]:
    """`load(name)` for each name, in order; several at a time, as each costs a remote store round trips.

    The first one is loaded alone, so who wants no more of them does not pay for more; then twice as many are
    under way after each one that is taken, up to `depth`. What `load` raises is raised in its turn, and what
    comes after it is dropped.

    Args:
        load: called in other threads.
        names: taken no faster than needed.
        depth: the most calls under way, or done and not taken yet.
    """
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
