"""Label a chunk's items: with every label set of the job, or each item with the set that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa

from clipfleet.contract.jobs import ErrorCode, ItemError, Job, Lane
from clipfleet.contract.label_sets import LabelSet
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.score.ranking import rank
from clipfleet_worker.score.text_matrices import TextMatrix

_IMAGES_PER_CALL = 256  # ranked at a time, so that other jobs' batches go in between


class ItemLabels:
    """The best labels of each item, descending, and their scores; None for an item without labels."""

    def __init__(self, items: int) -> None:
        self.labels: list[list[str] | None] = [None] * items
        self.scores: list[list[float] | None] = [None] * items


@dataclass(frozen=True, slots=True)
class ChunkLabels:
    """The content of a part's label columns."""

    chosen: ItemLabels  # of the job's first label set, or of the one that an item names
    by_set: Mapping[str, ItemLabels] = field(default_factory=dict)  # see `Job.named_label_sets`


def label_items(
    batcher: Batcher,
    job: Job,
    matrices: Sequence[TextMatrix],
    outcomes: Outcomes,
    logit_scale: float,
    choices: Sequence[str | None] | None = None,
) -> ChunkLabels:
    """Label the items that are ok.

    Args:
        batcher: runs the ranking on the device.
        job: the job, with its label sets.
        matrices: of its label sets, in their order.
        outcomes: of all items, ended.
        logit_scale: the model's.
        choices: the names in the job's label set column, if it has one.
    """

    def fill(table: ItemLabels, positions: Sequence[int], matrix: TextMatrix) -> None:
        for start in range(0, len(positions), _IMAGES_PER_CALL):
            some = positions[start : start + _IMAGES_PER_CALL]
            features = np.array([outcomes.features[position] for position in some], dtype=np.float32)
            # Always in the best lane: it is short, and a chunk that ends makes room for others.
            ranking = batcher.call(partial(rank, features, matrix.values, logit_scale, job.top_k), Lane.HIGH)
            ranked = zip(some, ranking.label_indices.tolist(), ranking.scores.tolist(), strict=True)
            for position, indices, scores in ranked:
                table.labels[position] = [matrix.labels[index] for index in indices]
                table.scores[position] = scores

    good = [position for position, feature in enumerate(outcomes.features) if feature is not None]
    if choices is None:
        tables = [ItemLabels(len(outcomes.features)) for _ in matrices]
        for table, matrix in zip(tables, matrices, strict=True):
            fill(table, good, matrix)
        names = [label_set.name for label_set in job.named_label_sets]
        return ChunkLabels(tables[0], dict(zip(names, tables, strict=bool(names))))
    chosen = ItemLabels(len(outcomes.features))
    for label_set, matrix in zip(job.label_sets, matrices, strict=True):
        fill(chosen, [position for position in good if choices[position] == label_set.name], matrix)
    return ChunkLabels(chosen)


def choices_of(items: pa.Table, job: Job) -> list[str | None] | None:
    """The label set that each item names; None if the job has no column for it."""
    if job.label_set_column is None:
        return None
    values = items[job.label_set_column].to_pylist()
    return [None if value is None else str(value).strip() for value in values]


def fail_unknown_choices(
    label_sets: Sequence[LabelSet], choices: Sequence[str | None], outcomes: Outcomes
) -> None:
    """Fail items that name no label set of the job, before they are fetched."""
    names = [label_set.name for label_set in label_sets]
    for position, choice in enumerate(choices):
        if choice not in names:
            what = f"no label set is called {choice[:60]!r}" if choice else "the item names no label set"
            outcomes.fail(
                position, ItemError(ErrorCode.BAD_URI, f"{what}: the job has {', '.join(names)}"[:300])
            )
