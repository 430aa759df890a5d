"""Finished jobs with stored vectors, without images or workers: what `relabel` starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from clipfleet.contract.columns import VectorType
from clipfleet.contract.jobs import DecodeRoute, ErrorCode, Job, StoredVectors
from clipfleet.contract.parts import PartIdentity, count_rows, part_schema
from clipfleet.outputs import Output, objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.parts import parts_of
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from tests.support.jobs import make_job, place_job

EARLIER = "20261101-0123456789ab"
PART_ROWS = 512
FINISHED_AT = "2026-11-01T13:00:30+00:00"


def unit_vectors(seed: int, count: int, dimension: int) -> np.ndarray:
    """Random directions, float32 (count, dimension)."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def vector_rows(
    first: int,
    vectors: np.ndarray,
    fingerprint: str,
    *,
    failed: Collection[int] = (),
    vector_type: VectorType = VectorType.FLOAT16,
    **extra: pa.Array,
) -> pa.Table:
    """Rows as an embed job writes them.

    Args:
        first: index of the first item.
        vectors: float (rows, d).
        fingerprint: of the model.
        failed: indexes of items that have failed.
        vector_type: as which they are stored.
        extra: columns of the source.
    """
    count, dimension = vectors.shape
    indexes = range(first, first + count)
    fields = [pa.field(name, values.type) for name, values in extra.items()]
    schema = part_schema(dimension, fields, vector_type=vector_type)
    lost = np.array([index in failed for index in indexes])
    mask = pa.array(lost)
    kind = schema.field("embedding").type
    numbers = pa.array(vectors.astype(kind.value_type.to_pandas_dtype()).reshape(-1))
    known = {
        "item_index": pa.array(indexes, pa.int64()),
        "item_id": pa.array([f"item-{index:08d}" for index in indexes]),
        "uri": pa.array([f"https://images.example/{index % 97:02d}/{index:08d}.jpg" for index in indexes]),
        "status": pa.array(np.where(lost, "failed", "ok").tolist(), pa.string()),
        "error_code": pa.array([ErrorCode.NOT_FOUND.value if one else None for one in lost], pa.string()),
        "error_detail": pa.array(["HTTP status 404" if one else None for one in lost], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(numbers, dimension, mask=mask),
        "width": pa.array([640 + index % 7 for index in indexes], pa.int32(), mask=lost),
        "height": pa.array([480 + index % 5 for index in indexes], pa.int32(), mask=lost),
        "content_hash": pa.array(
            [hashlib.sha256(b"%d" % index).hexdigest() for index in indexes], pa.string(), mask=lost
        ),
        "model_fingerprint": pa.array([None if one else fingerprint for one in lost], pa.string()),
        **extra,
    }
    columns = [known.get(name, pa.nulls(count, schema.field(name).type)) for name in schema.names]
    return pa.table(columns, schema=schema)


def place_vectors(output: FolderOutput, tables: Iterable[pa.Table], **values: Any) -> Job:
    """Write a finished embed job whose parts have these rows."""
    job = make_job(output.uri, **{"job_id": EARLIER, **values})
    place_job(output, job)
    files, parts = parts_of(job), []
    for number, rows in enumerate(tables):
        name, counts = files.name(number), count_rows(rows)
        parts.append({"name": name, "rows": rows.num_rows, "failed": counts.failed})
        with output.scratch() as path:
            files.write(output, path, PartIdentity(job.job_id, number, 0), rows, counts)
            output.publish(path, name)
    manifest = {"job": {"job_id": job.job_id}, "finished_at": FINISHED_AT, "parts": parts, "label_sets": []}
    output.replace(objects.MANIFEST, json.dumps(manifest).encode())
    output.replace(objects.SUCCESS, b"")
    return job


def fingerprint_of(encoder: FakeEncoder) -> str:
    """Of rows that the encoder made with the default options."""
    return encoder.fingerprint_for(DecodeRoute.FAST)


def stored_vectors(output: Output, job: Job, fingerprint: str, dimension: int) -> StoredVectors:
    """What a job that labels them names."""
    return StoredVectors(
        uri=output.uri,
        job_id=job.job_id,
        created_at=job.created_at,
        model_fingerprint=fingerprint,
        dimension=dimension,
    )
