"""Rows as values, and parts that hold them, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.contract.heads import JobHead
from clipfleet.contract.parts import PART_COLUMNS, part_schema
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput


def row(index: int, **values: Any) -> dict[str, Any]:
    base = {"item_index": index, "item_id": f"img{index}", "uri": f"/p/{index}.jpg", "status": "ok"}
    return {**dict.fromkeys(PART_COLUMNS), **base, **values}


def embedded(index: int, *vector: float) -> dict[str, Any]:
    return row(index, embedding=list(vector), width=640, height=480)


def failed(index: int) -> dict[str, Any]:
    return row(index, status="failed", error_code="not_found", error_detail="no such file")


def classified(index: int) -> dict[str, Any]:
    return row(index, label="cat", score=0.75, labels=["cat", "dog"], scores=[0.75, 0.25])


def accepting(index: int, *labels: str) -> dict[str, Any]:
    """Of a set with thresholds, which accepts these labels."""
    best = [*labels, *({"cat", "dog"} - {*labels})]
    scores = [0.75 - position / 8 - (position >= len(labels)) / 4 for position in range(len(best))]
    answer = {"label": next(iter(labels), None), "score": scores[0], "labels": best, "scores": scores}
    return row(index, **answer, accepted=[*labels])


def note_manifest(
    output: FolderOutput,
    parts: Sequence[str],
    *,
    job_id: str = "j",
    finished_at: str = "2026-11-24T13:00:30Z",
    label_sets: Sequence[Mapping[str, Any]] = (),
) -> None:
    """What a job that was finished leaves: its manifest, as far as readers look at it."""
    names = [{"name": name} for name in parts]
    manifest = {"job": {"job_id": job_id}, "finished_at": finished_at, "parts": names}
    manifest["label_sets"] = list(label_sets)
    output.replace(objects.MANIFEST, json.dumps(manifest).encode())
    output.replace(objects.SUCCESS, b"")


def add_part(
    output: FolderOutput,
    chunk_id: int,
    rows: Sequence[dict[str, Any]],
    *,
    dimension: int = 2,
    extra: Sequence[str] = (),
    types: Mapping[str, pa.DataType] = MappingProxyType({}),
    label_sets: Sequence[str] = (),
    accepted: Sequence[str] = (),
    heads: Sequence[JobHead] = (),
    is_fixed: bool = True,
) -> None:
    ok = sum(one["status"] == "ok" for one in rows)
    footer = {"job_id": "j", "chunk_id": str(chunk_id), "ok": str(ok), "failed": str(len(rows) - ok)}
    fields = [pa.field(name, pa.string()) for name in extra]
    fields += [pa.field(name, kind) for name, kind in types.items()]
    schema = part_schema(dimension, fields, label_sets, accepted_columns=accepted, heads=heads)
    if not is_fixed:  # lists of any length: what readers older than pyarrow 26 need where some are null
        position = schema.get_field_index("embedding")
        schema = schema.set(position, pa.field("embedding", pa.list_(pa.float16())))
    table = pa.Table.from_pylist(list(rows), schema).replace_schema_metadata(footer)
    with output.scratch() as path:
        pq.write_table(table, path)
        output.publish(path, objects.LAYOUT.part(chunk_id))
