"""Finished outputs with vectors, for tests of what labels them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.contract.jobs import Job, StoredVectors
from clipfleet.contract.parts import PartIdentity, count_rows, part_schema
from clipfleet.outputs import Output, objects
from clipfleet.parts import parts_of
from tests.support.jobs import make_job, place_job

DIMENSION = 8
FINGERPRINT = "0123456789abcdef"
FINISHED_AT = datetime(2026, 11, 24, 13, tzinfo=UTC)


def stored_rows(
    job: Job, first: int, count: int, *, failed: Sequence[int] = (), fingerprint: str = FINGERPRINT
) -> pa.Table:
    """Rows of a job with random vectors; `failed` are positions. Where all failed, no length is known."""
    vectors = np.random.default_rng(first).normal(size=(count, DIMENSION))
    rows: list[dict[str, Any]] = []
    for position in range(count):
        index = first + position
        row: dict[str, Any] = {"item_index": index, "item_id": f"id{index}", "uri": f"/images/{index}.jpg"}
        row |= {name: f"{name} of {index}" for name in job.source.extra_columns}
        if position in failed:
            row |= {"status": "failed", "error_code": "not_found", "error_detail": "no such file"}
        else:
            row |= {
                "status": "ok", "width": 640, "height": 480, "content_hash": f"{index:064x}",
                "model_fingerprint": fingerprint, "embedding": vectors[position].tolist(),
                "label": "cat", "score": 0.75,
            }  # fmt: skip
        rows.append(row)
    extra = [pa.field(name, pa.string()) for name in job.source.extra_columns]
    dimension = 1 if len(failed) == count else DIMENSION
    names = [one.name for one in job.named_label_sets]
    return pa.Table.from_pylist(
        rows, part_schema(dimension, extra, names, job.vector_type, job.accepted_columns)
    )


def add_stored_part(output: Output, job: Job, chunk_id: int, rows: pa.Table) -> None:
    """Write the part of a chunk."""
    files, counts = parts_of(job), count_rows(rows)
    with output.scratch() as path:
        files.write(output, path, PartIdentity(job.job_id, chunk_id, 0), rows, counts)
        assert output.publish(path, files.name(chunk_id))


def finish_stored(output: Output, job: Job, rows: Sequence[int]) -> None:
    """Write the manifest of so many rows per part, and `_SUCCESS`."""
    files = parts_of(job)
    parts = [{"name": files.name(number), "rows": count, "failed": 0} for number, count in enumerate(rows)]
    manifest = {"job": {"job_id": job.job_id}, "finished_at": FINISHED_AT.isoformat(), "parts": parts}
    output.replace(objects.MANIFEST, json.dumps(manifest).encode())
    output.replace(objects.SUCCESS, b"")


def stored_output(output: Output, sizes: Sequence[int] = (3, 2, 4), **values: Any) -> Job:
    """A finished job with parts of these sizes, whose first item has failed."""
    job = make_job(output.uri, **values)
    place_job(output, job)
    first = 0
    for number, size in enumerate(sizes):
        rows = stored_rows(job, first, size, failed=() if number else (0,))
        add_stored_part(output, job, number, rows)
        first += size
    finish_stored(output, job, sizes)
    return job


def vectors_of(job: Job) -> StoredVectors:
    """What a job that labels them again names."""
    return StoredVectors(
        uri=job.output,
        job_id=job.job_id,
        created_at=job.created_at,
        model_fingerprint=FINGERPRINT,
        dimension=DIMENSION,
    )


def damage_vectors(part: Path) -> None:
    """Overwrite the pages with the vectors of a Parquet part, and nothing else."""
    group = pq.read_metadata(part).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    (vectors,) = (one for one in columns if one.path_in_schema.startswith("embedding"))
    start, size = vectors.data_page_offset, vectors.total_compressed_size
    data = bytearray(part.read_bytes())
    data[start : start + size] = bytes(size)
    part.write_bytes(data)
