"""An output with scores of a multi set, made by formula, and marks on it by a known truth."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.parts import part_schema
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from tests.support.jobs import make_job, place_job
from tests.support.rows import failed, note_manifest, row

LABELS = ("cat", "dog")
FINGERPRINT = "abcdef0123456789"
Truth = Callable[[int, str], bool]


def multi_set(labels: Sequence[str] = LABELS, **values: Any) -> LabelSet:
    """A set of kind multi."""
    return LabelSet(labels=tuple(labels), kind=LabelKind.MULTI, **values)


def scored(index: int, scores: dict[str, float], top_k: int, **values: Any) -> dict[str, Any]:
    """An ok row with the best scores, best first."""
    best = sorted(scores.items(), key=lambda pair: -pair[1])[:top_k]
    labels, numbers = [label for label, _ in best], [score for _, score in best]
    about = {"content_hash": f"hash{index}", "model_fingerprint": FINGERPRINT}
    return row(index, labels=labels, scores=numbers, **{**about, **values})


def place_scored_output(
    output: FolderOutput, rows: Sequence[dict[str, Any]], *, label_set: LabelSet | None = None, **values: Any
) -> Job:
    """Write a finished classify job with these rows."""
    label_set = label_set or multi_set()
    job = make_job(output.uri, **{"task": "classify", "label_sets": (label_set,), "job_id": "j", **values})
    place_job(output, job)
    named = [one.name for one in job.named_label_sets]
    schema = part_schema(
        None, [pa.field(name, pa.string()) for name in job.source.extra_columns], named,
        accepted_columns=job.accepted_columns, heads=job.heads, head_scores=job.head_scores_columns,
        has_decisions=job.policy is not None,
    )  # fmt: skip
    with output.scratch() as path:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), path)
        output.publish(path, objects.LAYOUT.part(0))
    note_manifest(output, [objects.LAYOUT.part(0)], job_id=job.job_id)
    return job


def two_labels(count: int, *, seed: int = 1, shown: float = 0.5) -> tuple[list[dict[str, Any]], Truth]:
    """Rows of two labels whose z is 2 where the label is shown, else -2, with unit noise; the truth of each.

    The last row has failed.
    """
    random = np.random.default_rng(seed)
    truth = random.random((count, len(LABELS))) < shown
    z = np.where(truth, 2.0, -2.0) + random.normal(size=truth.shape)
    p = 1 / (1 + np.exp(-z))
    rows = [scored(index, dict(zip(LABELS, p[index].tolist(), strict=True)), 2) for index in range(count)]
    return [*rows, failed(count)], lambda index, label: bool(truth[index, LABELS.index(label)])


def mark_file(path: Path, truth: Truth, *, by: str = "ann", limit: int | None = None) -> list[dict[str, str]]:
    """Fill in the verdicts of a sample as the truth says, the first `limit` ones; returns its rows."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for one in rows[:limit]:
        one["verdict"] = "yes" if truth(int(one["item_index"]), one["label"]) else "no"
        one["by"] = by
    write_rows(path, rows)
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> Path:
    """Write marks as CSV."""
    listed = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(listed[0]))
        writer.writeheader()
        writer.writerows(listed)
    return path
