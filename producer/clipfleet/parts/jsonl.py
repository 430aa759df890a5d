"""JSON Lines parts: rows only, so that every reader of JSON Lines gets exactly the rows.

Identity and counts do not fit among rows, and two objects cannot be written atomically. So the footer is an
object of its own, named by job and content hash, and written first: a part with different content never finds
it, and a footer without a part is never read. A late part of another job is recognised by its own footer.

The first line of a part ends with as many blanks as its generation, which JSON ignores: equal rows of two
generations differ in their bytes. S3 compares versions by content, and a late writer that has seen one must
not replace the other.
"""

from __future__ import annotations

import hashlib
import io
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipfleet.contract.jobs import PartFormat
from clipfleet.contract.parts import PartCounts, PartIdentity, part_footer, read_part_footer
from clipfleet.contract.versions import SCHEMA_VERSION
from clipfleet.errors import OutputDamagedError, OutputUnavailableError
from clipfleet.outputs import Output, objects
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.outputs.objects import layout_of
from clipfleet.outputs.parquet import damaged, parquet_errors
from clipfleet.outputs.scratch import output_errors
from clipfleet.parts.json_rows import from_json, inferred_schema, json_lines, json_schema

# Raised by json for invalid text, and by Arrow for values that do not fit.
_DAMAGED = (json.JSONDecodeError, UnicodeError, OverflowError, RecursionError, pa.ArrowException)

_BATCH_ROWS = 512  # converted to Python objects, where vectors are large
_SCHEMA = "schema"  # entry of the footer: the Arrow schema of the rows


class JsonlParts:
    """See `clipfleet.parts.PartFiles`."""

    readers = 2  # a part of 4,096 rows with vectors of length 512 is 40 MB of text
    footer_readers = 4  # finding a footer reads the whole part

    def __init__(self, job_id: str | None, schema_version: int = SCHEMA_VERSION) -> None:
        self._job_id = job_id
        self._schema_version = schema_version

    def name(self, chunk_id: int) -> str:
        return layout_of(self._schema_version).part(chunk_id, PartFormat.JSONL)

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
        """Write the rows to the scratch file, and the footer to the output at once."""
        content = hashlib.sha256()
        with output_errors(path), path.open("wb") as file:
            for number, batch in enumerate(rows.to_batches(_BATCH_ROWS)):
                text = "".join(json_lines(batch))
                if number == 0:
                    text = text.replace("\n", " " * identity.generation + "\n", 1)
                data = text.encode()
                content.update(data)
                file.write(data)
        footer = part_footer(identity, counts, self._schema_version)
        footer[_SCHEMA] = _schema_text(json_schema(rows.schema))
        name = objects.detached_footer(self.name(identity.chunk_id), identity.job_id, content.hexdigest())
        is_new = output.create(name, json.dumps(footer).encode(), confirm=confirm)
        # Otherwise another writer of this generation has the same rows.
        if not is_new and _read_footer(output, name) is None:
            raise OutputUnavailableError(f"{output.uri}/{name}: was removed while it was written")

    @contextmanager
    def open(self, output: Output, name: str, *, most_bytes: int | None = None) -> Iterator[OpenJsonlPart]:
        """Open a part, reading all of it."""
        with parquet_errors(output, name), output.open(name) as file:
            content = file.read() if most_bytes is None else file.read(most_bytes + 1)
        if most_bytes is not None and len(content) > most_bytes:
            raise OutputDamagedError(f"{output.uri}/{name}: has more than {most_bytes:,} bytes")
        footer_name, footer = "", None
        if self._job_id is not None:
            footer_name, footer = _footer_of(output, name, self._job_id, hashlib.sha256(content).hexdigest())
        try:
            yield OpenJsonlPart(content, footer, footer_name)
        except MemoryError:  # Arrow's is also an ArrowException
            raise
        except _DAMAGED as error:
            raise damaged(output, name, error) from error


class OpenJsonlPart:
    """See `clipfleet.parts.OpenPart`."""

    def __init__(self, content: bytes, footer: dict[str, str] | None, footer_name: str) -> None:
        self._content = content
        self._footer = footer
        self.num_rows = content.count(b"\n")
        self.beside: Sequence[str] = (footer_name,) if footer is not None else ()

    @cached_property
    def schema(self) -> pa.Schema:
        """See `OpenPart`; without a footer what the rows look like."""
        if self._footer is not None:
            return _schema_of(self._footer)
        return inferred_schema(chain.from_iterable(self._rows()))

    def footer(self) -> tuple[PartIdentity, PartCounts]:
        if self._footer is None:
            raise ValueError("no footer matches its content")
        return read_part_footer(self._footer)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        for rows in self._rows():
            yield from_json(rows, schema)

    def _rows(self) -> Iterator[list[dict[str, Any]]]:
        lines = io.BytesIO(self._content)
        while rows := [json.loads(line) for line in islice(lines, _BATCH_ROWS)]:
            if not all(isinstance(row, dict) for row in rows):
                raise pa.ArrowInvalid("a line is not a JSON object")
            yield rows


def _footer_of(
    output: Output, part_name: str, job_id: str, content_hash: str
) -> tuple[str, dict[str, str] | None]:
    """Name and content of the footer of a part: of this job, else of the job that wrote it."""
    name = objects.detached_footer(part_name, job_id, content_hash)
    footer = _read_footer(output, name)
    if footer is None:
        for other in output.names(objects.footer_prefix(part_name)):
            if other.endswith(f"-{content_hash}.json"):
                return other, _read_footer(output, other)
    return name, footer


def _read_footer(output: Output, name: str) -> dict[str, str] | None:
    data = output.read(name)
    if data is None:
        return None
    try:
        entries: dict[str, str] = json.loads(data)
        read_part_footer(entries)
        _schema_of(entries)
    except (ValueError, KeyError, TypeError, OSError, RecursionError, pa.ArrowException) as error:
        raise damaged(output, name, error) from error
    return entries


def _schema_text(schema: pa.Schema) -> str:
    return b64encode(schema.remove_metadata().serialize()).decode()


def _schema_of(footer: dict[str, str]) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(b64decode(footer[_SCHEMA], validate=True)))
