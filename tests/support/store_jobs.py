"""Jobs that fill a store, as their workers leave them before the commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipfleet.contract.jobs import Job
from clipfleet.contract.parts import PartIdentity, count_rows, part_schema
from clipfleet.contract.stores import StoreTarget
from clipfleet.outputs.folder import FolderOutput
from clipfleet.parts.parquet import ParquetParts
from clipfleet.store.place import StorePlace
from tests.support.jobs import make_job
from tests.support.store_rows import DIMENSION, LISTED_AT


def row(item_id: str, status: str = "ok", model: str | None = "a" * 16) -> dict[str, Any]:
    """A row of a part; an equal id means an equal image. `model`: its fingerprint, of a row that is ok."""
    return {
        "item_index": 0, "item_id": item_id, "uri": f"/{item_id}", "status": status, "_digest": 5,
        "content_hash": item_id, "embedding": [1.0] * DIMENSION if status == "ok" else None,
        "_is_copied": False, "_size_bytes": 50 if status == "ok" else None,
        "error_code": "timeout" if status == "failed" else None,
        "model_fingerprint": model if status == "ok" else None,
    }  # fmt: skip


def job_with(
    place: StorePlace, parts: Sequence[Sequence[Mapping[str, Any]]], job_id: str = "night", **target: Any
) -> tuple[Job, FolderOutput]:
    """A job of a store in a folder, and its output with these parts."""
    values: dict[str, Any] = {"uri": place.uri, "store_id": place.read().store_id, "listed_at": LISTED_AT}
    output = FolderOutput(Path(place.job_output(job_id)))
    job = make_job(output.uri, job_id=job_id, store=StoreTarget(**(values | target)))
    for number, rows in enumerate(parts):
        table = pa.Table.from_pylist([*rows], part_schema(DIMENSION, fills_a_store=True))
        identity, files = PartIdentity(job_id, number, 0), ParquetParts(job.schema_version)
        with output.scratch() as path:
            files.write(output, path, identity, table, count_rows(table))
            output.publish(path, files.name(number))
    return job, output
