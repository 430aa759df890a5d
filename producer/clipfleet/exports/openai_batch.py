"""The files of a finished OpenAI batch, one line per row.

    output.jsonl   the ok rows: id, custom_id, response {status_code, request_id, body}, error (null)
    error.jsonl    the failed ones: id, custom_id, response (null), error {code, message}
    batch.json     the batch object

As with OpenAI, an empty file is omitted and its id is null. `custom_id` is the `item_id` if all are unique,
else the `item_index`: readers match requests by it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import (
    ACCEPTED_COLUMN,
    DECISION_COLUMNS,
    LABEL_COLUMNS,
    accepted_column,
    label_columns,
)
from clipfleet.contract.jobs import Job, JobState, Task
from clipfleet.contract.parts import ItemStatus
from clipfleet.exports.new_folder import ExportCounts
from clipfleet.parts.json_rows import json_dicts, json_line
from clipfleet.results.rows import RowReader

OUTPUT, ERROR, BATCH = "output.jsonl", "error.jsonl", "batch.json"
_HEAD_KEYS = ("label", "score", ACCEPTED_COLUMN)  # in the order of `JobHead.columns`
_NOT_OF_THE_ITEM = {"status", "error_code", "error_detail", "embedding"}


def export_openai_batch(reader: RowReader, folder: Path) -> ExportCounts:
    """Write the files of a batch into a folder."""
    job = reader.job()
    stored = reader.read()  # before the ids are read, so that no row is added in between
    has_unique_ids = _are_unique(reader)
    lines = _Lines(job, stored.schema, "item_id" if has_unique_ids else "item_index")
    counts = {ItemStatus.OK: 0, ItemStatus.FAILED: 0}
    with ExitStack() as stack:
        files: dict[ItemStatus, TextIO] = {}
        for row in (row for batch in stored.batches for row in json_dicts(batch)):
            status = ItemStatus(row["status"])
            if status not in files:
                path = folder / (OUTPUT if status is ItemStatus.OK else ERROR)
                files[status] = stack.enter_context(path.open("w", encoding="utf-8"))
            files[status].write(json_line(lines.of(row)))
            counts[status] += 1
    batch = _batch_object(reader, job, counts)
    (folder / BATCH).write_text(json.dumps(batch, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    note = "some items share an item_id, so custom_id is the item_index"
    return ExportCounts(sum(counts.values()), left_out=0, notes=() if has_unique_ids else (note,))


def _are_unique(reader: RowReader) -> bool:
    """Whether all ids are unique, by 64-bit hashes: the ids may not fit into memory."""
    hashes = array("q")
    for batch in reader.read(["item_id"]).batches:
        hashes.extend(map(hash, batch.column("item_id").to_pylist()))
    numbers = pa.Array.from_buffers(pa.int64(), len(hashes), [None, pa.py_buffer(hashes)])
    return bool(pc.count_distinct(numbers).as_py() == len(hashes))


class _Lines:
    """Converts rows to lines of the batch's files."""

    def __init__(self, job: Job | None, schema: pa.Schema, id_column: str) -> None:
        self._job = job
        self._id_column = id_column
        named = [one.name for one in job.named_label_sets] if job else []
        by_set: dict[str | None, Sequence[str]] = {
            name: (*label_columns(name), accepted_column(name)) for name in named
        }
        self._answers = by_set or {None: (*LABEL_COLUMNS, ACCEPTED_COLUMN)}
        accepted = job.accepted_columns if job else ()
        self._of_labels = {*LABEL_COLUMNS, *chain.from_iterable(map(label_columns, named)), *accepted}
        self._heads = job.heads if job else ()
        of_heads = chain.from_iterable(head.columns for head in self._heads)
        ours = {*_NOT_OF_THE_ITEM, *self._of_labels, *of_heads, *(job.own_columns if job else ())}
        self._decisions = DECISION_COLUMNS if job and job.policy is not None else ()
        self._of_the_item = [name for name in schema.names if name not in ours]

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        """Convert one row."""
        request = f"{self._job.job_id}-{row['item_index']}" if self._job else str(row["item_index"])
        is_ok = row["status"] == ItemStatus.OK
        response = {"status_code": 200, "request_id": request, "body": self._body(row)}
        error = {"code": row["error_code"], "message": row["error_detail"]}
        return {
            "id": f"batch_req_{request}",
            "custom_id": str(row[self._id_column]),
            "response": response if is_ok else None,
            "error": None if is_ok else error,
        }

    def _body(self, row: dict[str, Any]) -> dict[str, Any]:
        data = []
        if row.get("embedding") is not None:
            data.append({"object": "embedding", "index": 0, "embedding": row["embedding"]})
        for set_name, columns in self._answers.items():
            found = zip((*LABEL_COLUMNS, ACCEPTED_COLUMN), columns, strict=True)
            answer = {name: row[column] for name, column in found if column in self._of_labels}
            if answer["labels"] is not None:
                named = {"label_set": set_name} if set_name is not None else {}
                data.append({"object": "classification", "index": len(data), **named, **answer})
        for head in self._heads:
            answer = dict(zip(_HEAD_KEYS, (row[column] for column in head.columns), strict=False))
            data.append({"object": "classification", "index": len(data), "head": head.name, **answer})
        decision = {name: row[name] for name in self._decisions}
        return {
            "object": "list",
            "data": data,
            **({"decision": decision} if decision else {}),
            "model": self._job.model if self._job else row["model_fingerprint"],
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
            "item": {name: row[name] for name in self._of_the_item},
        }


def _batch_object(reader: RowReader, job: Job | None, counts: Mapping[ItemStatus, int]) -> dict[str, Any]:
    """Build the batch object; unknown times are null."""
    finished_at, early_end = reader.finished_at(), reader.early_end()
    ended_at = {early_end.state: _seconds(early_end.at)} if early_end else {}
    is_classified = job is not None and job.task is Task.CLASSIFY
    return {
        "id": f"batch_{job.job_id if job else ''}",
        "object": "batch",
        "endpoint": "/v1/classifications" if is_classified else "/v1/embeddings",
        "errors": None,
        "input_file_id": job.source.uri if job else None,
        "completion_window": "24h",
        "status": next(iter(ended_at), "in_progress" if finished_at is None else "completed"),
        "output_file_id": OUTPUT if counts[ItemStatus.OK] else None,
        "error_file_id": ERROR if counts[ItemStatus.FAILED] else None,
        "created_at": _seconds(job.created_at) if job else None,
        "in_progress_at": _seconds(job.created_at) if job else None,
        "expires_at": None,
        "finalizing_at": _seconds(finished_at),
        "completed_at": _seconds(finished_at),
        "failed_at": ended_at.get(JobState.FAILED),
        "expired_at": None,
        "cancelling_at": ended_at.get(JobState.CANCELLED),
        "cancelled_at": ended_at.get(JobState.CANCELLED),
        "request_counts": {
            "total": sum(counts.values()),
            "completed": counts[ItemStatus.OK],
            "failed": counts[ItemStatus.FAILED],
        },
        "metadata": None,
    }


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
