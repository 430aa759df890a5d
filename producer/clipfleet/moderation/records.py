"""Records of decisions: what a row of a moderation job says of its decision, as JSON objects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import DECISION_COLUMNS, LABEL_COLUMNS, head_scores_column, label_columns
from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import Job
from clipfleet.contract.policies import DecisionId, DecisionStatus, policy_facts
from clipfleet.parts.json_rows import json_dicts
from clipfleet.results.rows import RowReader

_STATUS, _ID, _AT, _REASONS = DECISION_COLUMNS
_THIN_REASONS = 20  # in an announcement; all are in the record


def decided_after(rows: pa.Table, generation: int) -> pa.Table:
    """The rows that later generations have decided; -1: all of them."""
    if generation < 0:
        return rows
    later = [DecisionId.of_text(text).generation > generation for text in rows[_ID].to_pylist()]
    return rows.filter(pa.array(later, pa.bool_()))


def records(rows: pa.Table, job: Job) -> Iterator[dict[str, Any]]:
    """The record of each row, in their order: everything that explains it but the texts of its policy."""
    if job.policy is None:
        raise ValueError(f"job {job.job_id} has no policy")
    facts, owner = policy_facts(job.policy), job.decisions and job.decisions.owner
    for batch in rows.to_batches():
        for row in json_dicts(batch):
            yield {
                "decision_id": row[_ID],
                "status": row[_STATUS],
                "reasons": row[_REASONS],
                "error": _error(row),
                "job_id": job.job_id,
                "item_index": row["item_index"],
                "item_id": row["item_id"],
                "uri": row["uri"],
                "content_hash": row["content_hash"],
                "policy": facts,
                "model": job.model,
                "model_fingerprint": row["model_fingerprint"],
                "scores": _scores(row, job),
                "heads": _heads(row, job),
                "automated": True,
                "at": row[_AT],
                "owner": owner,
            }


def thin(record: dict[str, Any]) -> str:
    """The JSON of a record as it is announced: without scores, and with the first reasons only."""
    found = {name: value for name, value in record.items() if name not in ("scores", "heads", "owner")}
    found["reasons"] = found["reasons"][:_THIN_REASONS]
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def count_decisions(reader: RowReader) -> dict[str, int]:
    """Count the rows so far by decision, in the order of `DecisionStatus`. Raises like `RowReader.read`."""
    counts: Counter[str] = Counter()
    for batch in reader.read([_STATUS]).batches:
        counts.update({one["values"]: one["counts"] for one in pc.value_counts(batch[_STATUS]).to_pylist()})
    return {status.value: counts[status] for status in DecisionStatus}


def _error(row: dict[str, Any]) -> dict[str, str] | None:
    if row["error_code"] is None:
        return None
    return {"code": row["error_code"], "detail": row["error_detail"]}


def _scores(row: dict[str, Any], job: Job) -> dict[str, dict[str, float]]:
    """Scores by label set and label."""
    found = {}
    for label_set in job.label_sets:
        names = label_columns(label_set.name) if job.named_label_sets else LABEL_COLUMNS
        labels, scores = row[names[2]] or (), row[names[3]] or ()
        found[label_set.name] = dict(zip(labels, scores, strict=True))
    return found


def _heads(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """By head: its number, or its scores by label."""
    found: dict[str, Any] = {}
    for head in job.heads:
        if head.head.kind is HeadKind.REGRESS:
            found[head.name] = row[head.columns[1]]
        else:
            scores = row[head_scores_column(head.name)] or ()
            found[head.name] = dict(zip(head.head.labels, scores, strict=False))
    return found
