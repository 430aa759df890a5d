"""Files as written by `clip-retrieval inference`, for `clip-retrieval index` and `embedding-reader`.

    img_emb/img_emb_0.npy         float16 (n, d), one row per item that has a vector (texts: text_emb/...)
    metadata/metadata_0.parquet   row i describes row i of the matrix
    stats/0.json                  durations

Failed items are in neither. There is exactly one partition, never an empty one: readers skip an empty matrix
but not its metadata, which shifts all later rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipfleet.contract.columns import LABEL_COLUMNS
from clipfleet.contract.jobs import Job
from clipfleet.contract.parts import PART_COLUMNS
from clipfleet.errors import UsageError
from clipfleet.exports.column_names import unique_names
from clipfleet.exports.new_folder import Counted, ExportCounts
from clipfleet.results.formats import row_groups
from clipfleet.results.rows import RowReader, RowStream, batches_with_vectors

_CAPTION = "caption"
_URL = r"^(https?|s3)://"
_OF_EVERY_ROW = ("width", "height", "content_hash", "model_fingerprint")
_HEADER_BYTES = 128  # of a version 1 .npy file, magic and length included; room for any shape


def export_clip_retrieval(reader: RowReader, folder: Path) -> ExportCounts:
    """Write embeddings and metadata into a folder.

    Raises:
        UsageError: no row has an embedding.
    """
    began, written = time.time(), 0.0
    job = reader.job()
    stored = reader.read()
    counted = Counted(stored.batches)
    metadata = _Metadata(stored.schema, job)
    kind = "text_emb" if metadata.is_of_texts else "img_emb"
    for name in (kind, "metadata", "stats"):
        (folder / name).mkdir()
    path = folder / "metadata" / "metadata_0.parquet"
    with (
        _Matrix(folder / kind / f"{kind}_0.npy") as matrix,
        pq.ParquetWriter(path, metadata.schema, compression="zstd") as writer,
    ):
        of_vectors = batches_with_vectors(RowStream(stored.schema, iter(counted)))
        for group in row_groups(map(metadata.of, matrix.passing(of_vectors))):
            since = time.time()
            writer.write_table(group)
            written += time.time() - since
    if matrix.rows == 0:
        raise UsageError(
            f"{reader.uri}: no row has a vector, which this layout needs: "
            "embed the source, or classify it with `store_embeddings=True`"
        )
    _write_stats(folder / "stats" / "0.json", began, written + matrix.write_seconds, matrix.rows)
    return ExportCounts(matrix.rows, left_out=counted.rows - matrix.rows)


def _write_stats(path: Path, began: float, write_seconds: float, rows: int) -> None:
    ended = time.time()
    stats = {
        "start_time": began,
        "end_time": ended,
        "read_duration": ended - began - write_seconds,
        "inference_duration": 0.0,  # spent by the job, not by the export
        "write_duration": write_seconds,
        "total_duration": ended - began,
        "sample_count": rows,
    }
    path.write_text(json.dumps(stats))


class _Matrix:
    """A growing `.npy` file, whose header is written at the end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._dimension = 0
        self.rows = 0
        self.write_seconds = 0.0

    def __enter__(self) -> Self:
        self._file.write(bytes(_HEADER_BYTES))
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._file.write(_npy_header(self.rows, self._dimension))

    def passing(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append the vectors of batches (none is null), and pass the batches through."""
        for batch in batches:
            since = time.time()
            vectors = batch.column("embedding")
            values = vectors.flatten().cast(pa.float16())
            _, data = values.buffers()
            self._file.write(memoryview(data)[2 * values.offset : 2 * (values.offset + len(values))])
            self._dimension = vectors.type.list_size
            self.rows += len(vectors)
            self.write_seconds += time.time() - since
            yield batch


def _npy_header(rows: int, dimension: int) -> bytes:
    # Spelled exactly as numpy does: readers parse it with regular expressions.
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {dimension}), }}"
    start = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return start + text.encode().ljust(_HEADER_BYTES - 11) + b"\n"


class _Metadata:
    """Metadata of each vector: the columns of clip-retrieval, then ours, then the source's."""

    def __init__(self, schema: pa.Schema, job: Job | None) -> None:
        self._text_column = job.text_column if job else None
        has_labels = job is None or bool(job.label_sets)
        ours = ("item_index", "item_id", *(LABEL_COLUMNS if has_labels else ()), *_OF_EVERY_ROW)
        extra = [name for name in schema.names if name not in PART_COLUMNS]
        texts = {name for name in extra if pa.types.is_string(schema.field(name).type)}
        self._has_caption = _CAPTION in texts and not self.is_of_texts
        self._has_url = "url" in texts  # origin of images in shards
        theirs = ["image_path", "url"]
        if self._text_column is not None:
            extra.remove(self._text_column)
            theirs = [_CAPTION]
        if self._has_caption:
            extra.remove(_CAPTION)
            theirs.insert(1, _CAPTION)
        self._copied = unique_names([*ours, *extra], taken=theirs)
        fields = [pa.field(name, pa.string()) for name in theirs]
        fields += [schema.field(column).with_name(name) for name, column in self._copied.items()]
        self.schema = pa.schema(fields).remove_metadata()

    @property
    def is_of_texts(self) -> bool:
        """Whether the vectors are of texts."""
        return self._text_column is not None

    def of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Build the metadata of some rows."""
        copied = [batch.column(column) for column in self._copied.values()]
        if self._text_column is not None:
            texts = pc.cast(batch.column(self._text_column), pa.string())
            return pa.RecordBatch.from_arrays([texts, *copied], schema=self.schema)
        uris = batch.column("uri")
        elsewhere = batch.column("url") if self._has_url else pa.nulls(batch.num_rows, pa.string())
        theirs = [
            pc.if_else(pc.starts_with(uris, "/"), uris, batch.column("item_id")),
            pc.if_else(pc.match_substring_regex(uris, _URL), uris, elsewhere),
        ]
        if self._has_caption:
            theirs.insert(1, batch.column(_CAPTION))
        return pa.RecordBatch.from_arrays([*theirs, *copied], schema=self.schema)
