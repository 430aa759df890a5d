"""Stages items beside the output: cuts the batches of a source into chunks, each a row group of a Parquet
file.

Writes and reads `_clipfleet/items-*.parquet` only. The caller records each file that `Stager.stage` yields in
the ledger; a file that is not recorded is written again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.contract.jobs import Job
from clipfleet.contract.parts import count_items
from clipfleet.contract.versions import SCHEMA_VERSION
from clipfleet.errors import OutputUnavailableError, SourceChangedError
from clipfleet.ledger.row_store import WholeItems
from clipfleet.outputs import Output
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.outputs.objects import Layout, layout_of
from clipfleet.outputs.scratch import output_errors
from clipfleet.outputs.staged import StagedReader

CHUNKS_PER_FILE = 256
CLOSE_AFTER_SECONDS = 2.0
BYTES_PER_FILE = 64 << 20  # reached only with inline images: a reader may load a whole file
MAX_CHUNK_BYTES = 32 * 1024 * 1024  # approximate: a chunk ends with the batch that reaches it


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A visible file of staged items."""

    first_chunk: int
    chunks: int
    items: int
    name: str  # object name in the output


def staged_bytes(rows: pa.Table, job: Job) -> WholeItems:
    """All items of a small job, as `Stager` would write them to one file, but not compressed.

    Args:
        rows: all rows of its source.
        job: with its chunk size. Nobody may submit it again, as no checksum of the source is kept.
    """
    chunks = -(-rows.num_rows // job.chunk_size)
    schema = rows.schema.with_metadata(_identity(job.job_id, 0, job.schema_version))
    sink = pa.BufferOutputStream()
    with _parquet_writer(sink, schema, compression="none") as writer:
        writer.write_table(rows, row_group_size=job.chunk_size)
    name = layout_of(job.schema_version).staged_file(0, chunks)
    return WholeItems(name, sink.getvalue().to_pybytes(), chunks, rows.num_rows)


def _identity(job_id: str, first_chunk: int, schema_version: int) -> dict[str, str]:
    return {"job_id": job_id, "first_chunk": str(first_chunk), "schema_version": str(schema_version)}


@dataclass(frozen=True, slots=True)
class _Chunk:
    rows: pa.Table
    since: float  # monotonic seconds of its first row


@dataclass(frozen=True, slots=True)
class Stager:
    """Stages the items of one job."""

    output: Output
    job_id: str
    chunk_size: int  # upper bound
    schema_version: int = SCHEMA_VERSION  # of the job
    chunks_per_file: int = CHUNKS_PER_FILE  # upper bound
    confirm: Confirm = unconditionally  # called before each file becomes visible, see `Output`
    monotonic: Callable[[], float] = time.monotonic

    def stage(
        self,
        batches: Iterable[pa.RecordBatch],
        already_staged: Sequence[tuple[int, int]] = (),
        require_unknown: Callable[[int], None] = lambda _: None,
    ) -> Iterator[StagedFile]:
        """Write the items to files of whole chunks, and yield each file once it is visible.

        A file is closed when it has enough chunks or bytes, or two seconds after its first row; the clock is
        checked at every batch, empty ones included. Stopping early leaves only files that were yielded.

        Args:
            batches: all batches of a `Source`.
            already_staged: `(first_chunk, chunks)` of the files that the ledger knows from an earlier,
                interrupted call. They are compared with the source, neither rewritten nor yielded.
            require_unknown: called with the first chunk of a file whose name exists; raises if the ledger
                knows it. Otherwise a killed call left it, and it is replaced.

        Raises:
            SourceChangedError: the source differs from what is staged; names the first such item.
            OutputUnavailableError: the output is not writable, or a file known to the ledger is not readable.
        """
        items = _Cutter(batches, self.chunk_size, self.monotonic)
        next_chunk = self._compare(items, already_staged)
        file: _OpenFile | None = None
        try:
            for chunk in items.chunks():
                if chunk is not None:
                    if file is None:
                        file = self._new_file(next_chunk, chunk)
                    file.add(chunk.rows)
                if file is not None and self._is_due(file):
                    staged, file = file.publish(require_unknown, self.confirm), None
                    next_chunk += staged.chunks
                    yield staged
            if file is not None:
                staged, file = file.publish(require_unknown, self.confirm), None
                yield staged
        finally:
            if file is not None:
                file.discard()

    def _new_file(self, first_chunk: int, chunk: _Chunk) -> _OpenFile:
        identity = _identity(self.job_id, first_chunk, self.schema_version)
        layout = layout_of(self.schema_version)
        schema = chunk.rows.schema.with_metadata(identity)
        return _OpenFile(self.output, layout, first_chunk, chunk.since, schema)

    def _is_due(self, file: _OpenFile) -> bool:
        age_seconds = self.monotonic() - file.since
        return (
            file.chunks >= self.chunks_per_file
            or age_seconds >= CLOSE_AFTER_SECONDS
            or file.bytes >= BYTES_PER_FILE
        )

    def _compare(self, items: _Cutter, already_staged: Sequence[tuple[int, int]]) -> int:
        """Compare the staged items with the start of the source; return the number of the next chunk."""
        next_chunk = 0
        with StagedReader(
            self.output, job_id=self.job_id, schema_version=self.schema_version, capacity=1
        ) as reader:
            for first_chunk, count in sorted(already_staged):
                if first_chunk != next_chunk:
                    raise ValueError(f"staged files leave a gap: chunk {next_chunk} before {first_chunk}")
                for chunk_id in range(first_chunk, first_chunk + count):
                    staged = reader.read_chunk(first_chunk, count, chunk_id)
                    # By its own length: a pause of the source may have cut it short.
                    _require_equal(staged, items.take(len(staged)))
                next_chunk += count
        return next_chunk


class _Cutter:
    """Cuts a stream of batches into chunks."""

    def __init__(
        self, batches: Iterable[pa.RecordBatch], chunk_size: int, monotonic: Callable[[], float]
    ) -> None:
        self._batches = iter(batches)
        self._chunk_size = chunk_size
        self._monotonic = monotonic
        self._held: list[pa.RecordBatch] = []
        self._rows = 0
        self._since = 0.0  # time of the first held row
        self._came = 0.0  # time of the last batch

    def take(self, count: int) -> pa.Table | None:
        """Take the next rows: fewer than `count` at the end of the source, None after it."""
        while self._rows < count and self._add_next():
            pass
        return self._cut(min(count, self._rows)).rows if self._rows else None

    def chunks(self) -> Iterator[_Chunk | None]:
        """Cut the remaining rows into chunks, and yield None after each batch.

        A chunk is short at the end of the source; if its first row has waited too long, so that a slow source
        does not delay work; and with inline images, to bound the memory of submit and worker.
        """
        yield from self._whole_chunks()
        while self._add_next():
            yield from self._whole_chunks()
            if self._rows and self._came - self._since >= CLOSE_AFTER_SECONDS:
                yield self._cut(self._rows)
            yield None
        if self._rows:
            yield self._cut(self._rows)

    def _whole_chunks(self) -> Iterator[_Chunk]:
        while self._rows >= self._chunk_size:
            yield self._cut(self._chunk_size)
        if self._rows and sum(batch.nbytes for batch in self._held) >= MAX_CHUNK_BYTES:
            yield self._cut(self._rows)

    def _add_next(self) -> bool:
        batch = next(self._batches, None)
        if batch is None:
            return False
        self._came = self._monotonic()
        if batch.num_rows:
            if not self._rows:
                self._since = self._came
            self._held.append(batch)
            self._rows += batch.num_rows
        return True

    def _cut(self, count: int) -> _Chunk:
        table = pa.Table.from_batches(self._held)
        chunk = _Chunk(table.slice(0, count), self._since)
        self._held = table.slice(count).to_batches()
        self._rows -= count
        self._since = self._came  # the rest is from the last batch
        return chunk


class _OpenFile:
    """A staged file that is not visible yet."""

    def __init__(
        self, output: Output, layout: Layout, first_chunk: int, since: float, schema: pa.Schema
    ) -> None:
        self._layout = layout
        self.since = since
        self.chunks = 0
        self.bytes = 0  # of its items, in memory
        self._items = 0
        self._first_chunk = first_chunk
        self._output = output
        with ExitStack() as stack:
            self._path: Path = stack.enter_context(output.scratch())
            with output_errors(self._path):
                self._sink = stack.enter_context(pa.OSFile(str(self._path), "wb"))
                self._writer = _parquet_writer(self._sink, schema)
            self._resources = stack.pop_all()

    def add(self, rows: pa.Table) -> None:
        with output_errors(self._path):
            self._writer.write_table(rows, row_group_size=len(rows))
        self.chunks += 1
        self.bytes += rows.nbytes
        self._items += count_items(rows)

    def publish(self, require_unknown: Callable[[int], None], confirm: Confirm) -> StagedFile:
        name = self._layout.staged_file(self._first_chunk, self.chunks)
        with self._resources:
            with output_errors(self._path):
                self._writer.close()
                self._sink.close()
            if not self._output.publish(self._path, name, confirm=confirm):
                version = self._output.version(name)  # read first, so that later changes are detected
                require_unknown(self._first_chunk)
                if version is None or not self._output.replace_if(self._path, name, version, confirm=confirm):
                    require_unknown(self._first_chunk)
                    raise OutputUnavailableError(
                        f"{self._output.uri}/{name}: was replaced or removed in the meantime"
                    )
        return StagedFile(self._first_chunk, self.chunks, self._items, name)

    def discard(self) -> None:
        with self._resources, suppress(OSError):
            self._writer.close()


def _parquet_writer(
    sink: pa.NativeFile, schema: pa.Schema, *, compression: Literal["zstd", "none"] = "zstd"
) -> pq.ParquetWriter:
    # Measured with 1 M URLs in chunks of 512: zstd level 1 writes 3.7 M items/s into 5.8 MB, snappy 5.4 M
    # into 17 MB. A dictionary costs a third of the speed: URLs and ids rarely repeat within a chunk.
    return pq.ParquetWriter(
        sink,
        schema,
        compression=compression,
        compression_level=1 if compression == "zstd" else None,
        use_dictionary=False,
        column_encoding={"item_index": "DELTA_BINARY_PACKED"},
        write_statistics=False,
    )


def _require_equal(staged: pa.Table, fresh: pa.Table | None) -> None:
    if fresh is not None and fresh.equals(staged):
        return
    first_index = staged["item_index"][0].as_py()
    if fresh is not None and fresh.column_names != staged.column_names:
        before, now = (", ".join(table.column_names) for table in (staged, fresh))
        raise _changed(f"at item {first_index} its columns were {before}, now they are {now}")
    pairs = zip_longest(staged.to_pylist(), [] if fresh is None else fresh.to_pylist())
    for item_index, (before, now) in enumerate(pairs, first_index):
        if now is None:
            raise _changed(f"it ends before item {item_index}")
        differing = [name for name in before if before[name] != now[name]]
        if differing:
            # No values: a URL may contain a password.
            raise _changed(f"item {item_index} differs in {', '.join(differing)}")
    raise _changed(f"at item {first_index} its column types differ")


def _changed(how: str) -> SourceChangedError:
    return SourceChangedError(
        f"the source changed since the job was submitted: {how}; submit it as a new job"
    )
