"""Rows for tests of results in Redis: what a worker brings of a chunk, and what everybody can see then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from clipfleet.contract.heads import JobHead
from clipfleet.contract.jobs import REDIS_OUTPUT, Job
from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Claim, Ledger, Retention
from clipfleet_worker.sinks.redis import RedisSink
from tests.support.ledger import make_job

DIMENSION = 4
LONG = Retention(job_seconds=1000, result_seconds=500)


def redis_job(job_id: str = "job", chunk_items: int = 4) -> Job:
    """A job that keeps its rows in Redis."""
    return make_job(job_id, output=REDIS_OUTPUT).model_copy(update={"chunk_size": chunk_items})


def submit_job(
    ledger: Ledger,
    job_id: str = "job",
    *,
    chunks: int = 1,
    chunk_items: int = 4,
    sealed: bool = True,
    retention: Retention = LONG,
) -> Job:
    """Such a job in the ledger, with its chunks in one staged file."""
    job = redis_job(job_id, chunk_items)
    ledger.submit(job, retention)
    if chunks:
        assert ledger.stage(job_id, 0, chunks, chunks * chunk_items) == "staged"
    if sealed:
        assert ledger.seal(job_id, chunks, chunks * chunk_items) == "sealed"
    return job


def chunk_rows(
    first_index: int,
    count: int = 4,
    *,
    writer: str = "w",
    failed: Sequence[int] = (),
    ids: Sequence[str] = (),
    accepts: bool = False,
    heads: Sequence[JobHead] = (),
) -> pa.Table:
    """Rows as a worker makes them; `label` tells who wrote them, `failed` lists positions.

    With `accepts` the label set of the job has thresholds; `heads` are those of the job.
    """
    rows = [
        {
            "item_index": first_index + position,
            "item_id": ids[position] if ids else f"id-{first_index + position}",
            "uri": f"/{first_index + position}.jpg",
            "status": "failed" if position in failed else "ok",
            "error_code": "not_found" if position in failed else None,
            "error_detail": "404" if position in failed else None,
            "label": None if position in failed else writer,
            "embedding": None if position in failed else np.full(DIMENSION, first_index + position, "f2"),
            "shelf": f"shelf {position}",
            **({"accepted": None if position in failed else [writer] * position} if accepts else {}),
            **({} if position in failed else _by_heads(heads, position)),
        }
        for position in range(count)
    ]
    accepted = ["accepted"] if accepts else []
    fields = [pa.field("shelf", pa.string())]
    return pa.Table.from_pylist(rows, part_schema(DIMENSION, fields, accepted_columns=accepted, heads=heads))


def _by_heads(heads: Sequence[JobHead], position: int) -> dict[str, Any]:
    """Numbers that float16 could not hold; of every second row no label."""
    found: dict[str, Any] = {}
    for one in heads:
        label, score, *accepted = one.columns
        found[label] = one.head.labels[0] if position % 2 else None
        found[score] = float(np.float32(position + 1 / 3))
        found.update((name, [*one.head.labels[:position]]) for name in accepted)
    return found


def identity(claim: Claim) -> PartIdentity:
    return PartIdentity(claim.job_id, claim.chunk_id, claim.generation)


def counts(rows: pa.Table) -> PartCounts:
    failed = rows["status"].to_pylist().count("failed")
    return PartCounts(rows.num_rows - failed, failed, {"not_found": failed} if failed else {})


def bring(sink: RedisSink, claim: Claim, rows: pa.Table) -> PartCounts:
    """What the pipeline does at the end of a chunk."""
    return sink.write(identity(claim), rows, counts(rows), token=claim.token)


def complete(ledger: Ledger, claim: Claim, found: PartCounts) -> str:
    """What the worker does then."""
    return ledger.complete(
        claim, ok=found.ok, failed=found.failed, codes=found.codes, work_seconds={"write": 0.5}
    )


def visible_rows(client: redis.Redis, job_id: str = "job") -> dict[int, dict[str, Any]]:
    """The rows that anybody can read, by index; each says its own index."""
    found: Any = client.hgetall(keys.job(job_id, keys.ROWS))
    rows = {int(index): json.loads(text) for index, text in found.items()}
    assert all(row["item_index"] == index for index, row in rows.items())
    return dict(sorted(rows.items()))


def pending_keys(client: redis.Redis, job_id: str = "job") -> list[str]:
    """What workers have brought and nobody sees."""
    return sorted(str(name) for name in client.scan_iter(keys.job(job_id, ":pending:*")))
