"""Rows of a job from the parts of its output, in any format. Reads only; holds a few parts at a time."""

from __future__ import annotations

import json
import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ValidationError

from clipfleet.contract.jobs import Job, PartFormat
from clipfleet.contract.parts import UNKNOWN_DIMENSION, ItemStatus, embedding_field
from clipfleet.errors import (
    OutputConflictError,
    OutputDamagedError,
    OutputUnavailableError,
    ResultsNotReadyError,
    UsageError,
    first_problem,
)
from clipfleet.ledger.status import EarlyEnd
from clipfleet.outputs import Output, objects
from clipfleet.outputs.job_file import job_of
from clipfleet.outputs.objects import LAYOUT, LAYOUTS, Layout, layout_of
from clipfleet.parts import OpenPart, PartFiles, part_files, read_ahead
from clipfleet.results.rows import RowStream

_EXAMPLE_BYTES = 1 << 20
_PART_SUFFIXES = tuple(f".{part_format}" for part_format in PartFormat)


class _ManifestPart(BaseModel):
    name: str
    rows: int | None = None


class _ManifestJob(BaseModel):
    job_id: str


class _Manifest(BaseModel):
    """The parts of `_manifest.json` that are read."""

    job: _ManifestJob
    finished_at: datetime
    parts: tuple[_ManifestPart, ...]
    label_sets: tuple[dict[str, Any], ...] | None = None  # None: an older version wrote it


class PartRows:
    """Rows in the parts of an output; see `clipfleet.results.rows.RowReader`.

    `early_end` queries the ledger, if there is one: an output does not record it.
    """

    def __init__(self, output: Output, *, early_end: Callable[[], EarlyEnd | None] = lambda: None) -> None:
        self.output = output
        self._early_end = early_end
        self.uri = output.uri

    def job(self) -> Job | None:
        with suppress(OutputConflictError):
            return job_of(self.output)
        return None

    def label_sets(self) -> Sequence[Mapping[str, Any]] | None:
        manifest = self._manifest()
        return None if manifest is None else manifest.label_sets

    def finished_at(self) -> datetime | None:
        manifest = self._manifest()
        return None if manifest is None or self.output.read(objects.SUCCESS) is None else manifest.finished_at

    def early_end(self) -> EarlyEnd | None:
        return self._early_end()

    def read(self, columns: Sequence[str] | None = None) -> RowStream:
        """Read all parts in one schema.

        The length of `embedding` may differ in parts where it is all null (written before the model was
        known); they get the length of the others.
        """
        parts, names = self._parts()
        schema = _common_schema(parts, names)
        if columns is not None:
            schema = pa.schema([_field(schema, name) for name in columns])
        return RowStream(schema, _batches(parts, names, schema))

    def row_at(self, index: int) -> pa.RecordBatch | None:
        """Bisect the parts, which are in order: of each one looked at, the first index is read."""
        parts, names = self._parts()
        number = bisect_right(range(len(names)), index, key=lambda n: parts.first_index(names[n])) - 1
        if number < 0:
            return None
        with parts.opened(names[number]) as part:
            for batch in part.batches():
                row = batch.filter(pc.equal(batch["item_index"], pa.scalar(index)))
                if row.num_rows:
                    return row
        return None

    def rows_of_parts(self) -> list[int]:
        """The number of rows of each part of a finished job, in order.

        Raises:
            ResultsNotReadyError: the job has not finished.
            OutputDamagedError: a part is missing.
        """
        manifest, job = self._manifest(), self.job()
        if manifest is None or self.output.read(objects.SUCCESS) is None:
            raise ResultsNotReadyError(f"{self.output.uri}: the job has not finished")
        self._require_complete(job, self._part_names(job))
        rows = [part.rows for part in manifest.parts if part.rows is not None]
        if len(rows) < len(manifest.parts):
            raise OutputDamagedError(
                f"{self.output.uri}/{objects.MANIFEST} does not say how many rows each part has"
            )
        return rows

    def _parts(self) -> tuple[_Parts, list[str]]:
        """The parts, and their names in the order of the source."""
        job = self.job()
        found = self._part_names(job)
        self._require_complete(job, found)
        part_format, names = self._of_one_format(job, found)
        files = part_files(part_format, job.job_id if job else None)
        return _Parts(self.output, files, job), names

    def failure_examples(self) -> dict[str, str]:
        """Read the beginning of the finished job's list of failed rows."""
        try:
            with self.output.open(self._layout(self.job()).errors) as file:
                lines = file.read(_EXAMPLE_BYTES).decode(errors="replace").splitlines(keepends=True)
        except (FileNotFoundError, OutputUnavailableError):
            return {}
        examples: dict[str, str] = {}
        for line in lines:
            try:
                row = json.loads(line)
                examples.setdefault(str(row["error_code"]), str(row["error_detail"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # truncated or modified: skip this example
        return examples

    def _layout(self, job: Job | None) -> Layout:
        """That of the job; without its description, that of the parts which are there."""
        if job is not None:
            return layout_of(job.schema_version)
        with_parts = (one for one in LAYOUTS if any(self.output.names(one.part_prefix)))
        return next(with_parts, LAYOUT)

    def _part_names(self, job: Job | None) -> list[str]:
        suffixes = _PART_SUFFIXES if job is None else f".{job.part_format}"
        names = self.output.names(self._layout(job).part_prefix)
        return [name for name in names if name.endswith(suffixes)]

    def _of_one_format(self, job: Job | None, names: list[str]) -> tuple[PartFormat, list[str]]:
        found: dict[PartFormat, list[str]] = {}
        for name in names:
            for part_format in PartFormat if job is None else (job.part_format,):
                if name.endswith(f".{part_format}"):
                    found.setdefault(part_format, []).append(name)
        if not found:
            hint = "" if self.output.read(objects.JOB_FILE) is not None else "; no job has this output"
            raise ResultsNotReadyError(f"{self.output.uri}: no results yet{hint}")
        if len(found) > 1:
            raise OutputConflictError(
                f"{self.output.uri}: parts in two formats and no {objects.JOB_FILE} to choose by: "
                "move one format away"
            )
        ((part_format, names),) = found.items()
        return part_format, names

    def _require_complete(self, job: Job | None, names: list[str]) -> None:
        """Raise `OutputDamagedError` unless a finished job has all of its parts, and no others.

        Raise `UsageError` if its rows are in a store by now, which has its parts removed.
        """
        manifest = self._manifest()
        is_others = manifest is not None and job is not None and job.job_id != manifest.job.job_id
        if manifest is None or is_others or self.output.read(objects.SUCCESS) is None:
            return  # unfinished or retried: read the parts so far
        if job is not None and job.store is not None:
            raise UsageError(
                f"{self.output.uri}: the rows of job {job.job_id} are in the store {job.store.uri}: name "
                f"that instead; {objects.LAYOUT.errors} here has the items that failed"
            )
        listed = {part.name for part in manifest.parts}
        if missing := listed.difference(names):
            raise OutputDamagedError(
                f"{self.output.uri}/{_some(missing)} listed in {objects.MANIFEST} but missing: "
                f"`clipfleet retry {shlex.quote(self.output.uri)}` runs their items again"
            )
        if strange := set(names).difference(listed):
            raise OutputDamagedError(
                f"{self.output.uri}/{_some(strange)} not listed in {objects.MANIFEST} of job "
                f"{manifest.job.job_id}: move away files of other jobs"
            )

    def _manifest(self) -> _Manifest | None:
        data = self.output.read(objects.MANIFEST)
        if data is None:
            return None
        try:
            return _Manifest.model_validate_json(data)
        except ValidationError as error:
            problem = first_problem(error)
            raise OutputDamagedError(f"{self.output.uri}/{objects.MANIFEST} is damaged: {problem}") from None


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of one output."""

    output: Output
    files: PartFiles
    job: Job | None  # the expected job, if known

    @contextmanager
    def opened(self, name: str) -> Iterator[OpenPart]:
        where = f"{self.output.uri}/{name}"
        try:
            with self.files.open(self.output, name) as part:
                self._require_ours(part, where)
                yield part
        except FileNotFoundError as error:
            raise OutputUnavailableError(f"{where}: was removed while it was read") from error

    def first_index(self, name: str) -> int:
        """The lowest `item_index` of a part."""
        with self.opened(name) as part:
            return int(next(part.batches(["item_index"]))["item_index"][0].as_py())

    def _require_ours(self, part: OpenPart, where: str) -> None:
        try:
            identity, _ = part.footer()
        except ValueError:  # copied without its footer, or written by another program
            return
        if self.job is not None and identity.job_id != self.job.job_id:
            raise OutputDamagedError(
                f"{where} belongs to job {identity.job_id}, not to {self.job.job_id}: "
                f"`clipfleet retry {shlex.quote(self.output.uri)}` runs its items again"
            )


def _some(names: set[str]) -> str:
    """The first name, the number of others, and the verb."""
    return f"{min(names)} is" if len(names) == 1 else f"{min(names)} and {len(names) - 1:,} more are"


def _common_schema(parts: _Parts, names: list[str]) -> pa.Schema:
    """Schema of the first part with an ok row: others may not know the length of a vector."""
    first: pa.Schema | None = None
    for name in names:
        with parts.opened(name) as part:
            if _has_ok_row(part):
                return part.schema
            first = first or part.schema
    return first


def _batches(parts: _Parts, names: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    def load(name: str) -> list[pa.RecordBatch]:
        with parts.opened(name) as part:
            there = [column for column in schema.names if column in part.schema.names]
            return [_conformed(batch, schema, name) for batch in part.batches(there)]

    for batches in read_ahead(load, names, depth=parts.files.readers):
        yield from batches


def _field(schema: pa.Schema, name: str) -> pa.Field[Any]:
    """A column; that of the vectors is all null where none are kept."""
    if name == "embedding" and name not in schema.names:
        return embedding_field(UNKNOWN_DIMENSION)
    return schema.field(name)


def _has_ok_row(part: OpenPart) -> bool:
    try:
        _, counts = part.footer()
        return counts.ok > 0
    except ValueError:  # copied without its footer, or written by another program
        if "status" not in part.schema.names:
            return False
        ok = pa.scalar(ItemStatus.OK.value)
        return any(pc.any(pc.equal(batch["status"], ok)).as_py() for batch in part.batches(["status"]))


def _conformed(batch: pa.RecordBatch, schema: pa.Schema, name: str) -> pa.RecordBatch:
    if batch.schema.equals(schema):
        return batch
    return pa.RecordBatch.from_arrays([_column(batch, field, name) for field in schema], schema=schema)


def _column(batch: pa.RecordBatch, field: pa.Field[Any], name: str) -> pa.Array:
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    column = batch.column(field.name)
    if column.type.equals(field.type):
        return column
    if column.null_count == len(column):
        return pa.nulls(batch.num_rows, field.type)
    try:
        return column.cast(field.type)
    except pa.ArrowException:
        raise OutputConflictError(
            f"{name}: column {field.name} is {column.type}, in other parts {field.type}: from another model?"
        ) from None
