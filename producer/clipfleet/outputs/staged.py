"""Reads the staged items of a job back from its output, chunk by chunk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.contract.parts import count_items, holds_ranges
from clipfleet.contract.versions import READABLE_SCHEMA_VERSIONS, SCHEMA_VERSION
from clipfleet.errors import OutputTooNewError, OutputUnavailableError, OutputUnreachableError
from clipfleet.outputs import Output, objects
from clipfleet.outputs.objects import layout_of
from clipfleet.outputs.parquet import footer, open_parquet, parquet_errors


class StagedReader:
    """Reads chunks of staged files of one job, and keeps `capacity` files open. Thread-safe.

    A file of another job (`--overwrite`) is refused. Waiting for the lock is bounded by `patience_seconds`,
    so that queued readers fail soon if the store is down.
    """

    def __init__(
        self,
        output: Output,
        *,
        job_id: str,
        schema_version: int = SCHEMA_VERSION,
        capacity: int = 4,
        patience_seconds: float = 30.0,
    ) -> None:
        self._layout = layout_of(schema_version)
        self._patience_seconds = patience_seconds
        self._output = output
        self._job_id = job_id
        self._capacity = capacity
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()  # least recently used first
        self._lock = Lock()  # a read takes 0.1 ms, and no file may be closed during a read

    def read_chunk(self, first_chunk: int, chunks: int, chunk_id: int) -> pa.Table:
        """Read the items of a chunk, from the file of `chunks` chunks that starts with `first_chunk`.

        Raises:
            OutputUnavailableError: the file is missing although the output exists (a shared file system may
                show it late), or is not readable now.
            OutputUnreachableError: the output is missing, or the file is damaged or of another job.
        """
        if not first_chunk <= chunk_id < first_chunk + chunks:
            raise ValueError(f"chunk {chunk_id} is not among {chunks} chunks from {first_chunk}")
        with self._opened(first_chunk, chunks) as file:
            items = file.read_row_group(chunk_id - first_chunk, use_threads=False)
            items.validate(full=True)
            return items

    def count_items(self, first_chunk: int, chunks: int) -> int:
        """Count the items of a file. Raises like `read_chunk`."""
        with self._opened(first_chunk, chunks) as file:
            if holds_ranges(file.schema_arrow):
                return count_items(file.read(use_threads=False))
            return int(file.metadata.num_rows)

    @contextmanager
    def _opened(self, first_chunk: int, chunks: int) -> Iterator[pq.ParquetFile]:
        name = self._layout.staged_file(first_chunk, chunks)
        with self._locked(name), parquet_errors(self._output, name):
            file = self._files.pop(name, None) or self._open(name, first_chunk, chunks)
            try:
                yield file
            except BaseException:
                file.close(force=True)  # a stale handle would fail forever; the next read reopens it
                raise
            self._files[name] = file
            while len(self._files) > self._capacity:
                self._files.popitem(last=False)[1].close(force=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        if not self._lock.acquire(timeout=self._patience_seconds):
            raise OutputUnavailableError(f"{self._output.uri}/{name}: timed out behind another reader")
        try:
            yield
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close all files; the reader can be used again."""
        with self._lock:
            self._close_all()

    def close_unless_busy(self) -> None:
        """Close all files, unless a read is in progress."""
        if self._lock.acquire(blocking=False):
            try:
                self._close_all()
            finally:
                self._lock.release()

    def _close_all(self) -> None:
        while self._files:
            self._files.popitem()[1].close(force=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, name: str, first_chunk: int, chunks: int) -> pq.ParquetFile:
        try:
            file = open_parquet(self._output, name)
        except FileNotFoundError as error:
            raise self._missing(name) from error
        try:
            self._require_ours(name, file, first_chunk, chunks)
        except BaseException:
            file.close(force=True)
            raise
        return file

    def _missing(self, name: str) -> OutputUnavailableError:
        if self._output.read(objects.JOB_FILE) is None:
            return OutputUnreachableError(
                f"{self._output.uri}: the job's output is missing; is the folder mounted on this machine?"
            )
        return OutputUnavailableError(
            f"{self._output.uri}/{name}: the staged items are missing (not visible yet?)"
        )

    def _require_ours(self, name: str, file: pq.ParquetFile, first_chunk: int, chunks: int) -> None:
        noted = footer(file)
        version = noted.get("schema_version", "")
        if version.isdecimal() and int(version) > max(READABLE_SCHEMA_VERSIONS):
            raise OutputTooNewError(
                f"{self._output.uri}/{name}: was written by a newer version of clipfleet; update this worker"
            )
        if version not in {str(known) for known in READABLE_SCHEMA_VERSIONS}:
            problem = "was written by an incompatible version of clipfleet; update this worker"
        elif noted.get("job_id") != self._job_id:
            problem = f"belongs to job {noted.get('job_id')!r}, not to {self._job_id}"
        elif noted.get("first_chunk") != str(first_chunk) or file.num_row_groups != chunks:
            problem = "does not contain the chunks in its name"
        else:
            return
        raise OutputUnreachableError(f"{self._output.uri}/{name}: {problem}")
