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
from clipfleet_worker.encode.batches import Encoder
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.device import memory_errors
from clipfleet_worker.score.accepting import Decision, accept, background_prompts
from clipfleet_worker.score.ranking import rank
from clipfleet_worker.score.text_matrices import Alive, TextMatrices, TextMatrix

_IMAGES_PER_CALL = 256  # ranked at a time, so that other jobs' batches go in between


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """A label set whose prompts are encoded."""

    name: str
    matrix: TextMatrix
    decision: Decision | None  # None: the set has no thresholds


def encode_label_set(
    matrices: TextMatrices, model: Encoder, label_set: LabelSet, lane: Lane, alive: Alive
) -> EncodedSet:
    """Encode a label set, with its background if it has thresholds. See `TextMatrices.get`."""
    matrix = matrices.get(model, label_set, lane, alive)
    if not label_set.has_thresholds:
        return EncodedSet(label_set.name, matrix, None)
    prompts = LabelSet(name="background", labels=background_prompts(label_set), templates=("{}",))
    background = matrices.get(model, prompts, lane, alive, "background prompt")
    by_prompt = dict(zip(background.labels, background.values, strict=True))
    with memory_errors():
        return EncodedSet(label_set.name, matrix, Decision.of(label_set, matrix.labels, by_prompt))


class ItemLabels:
    """The content of the label columns by item; None for an item without labels, see `part_schema`."""

    def __init__(self, items: int) -> None:
        self.labels: list[list[str] | None] = [None] * items  # the best ones, by score, descending
        self.scores: list[list[float] | None] = [None] * items  # of `labels`
        self.best: list[str | None] = [None] * items
        self.best_scores: list[float | None] = [None] * items
        self.accepted: list[list[str] | None] = [None] * items  # None: the set has no thresholds

    def put(
        self, positions: Sequence[int], labels: Sequence[str], indices: np.ndarray, scores: np.ndarray
    ) -> None:
        """Set the best labels of some items: positions in `labels` and scores, both (items, k)."""
        for position, best, of_item in zip(positions, indices.tolist(), scores.tolist(), strict=True):
            self.labels[position] = [labels[index] for index in best]
            self.scores[position] = of_item
            self.best[position], self.best_scores[position] = labels[best[0]], of_item[0]

    def decide(
        self,
        positions: Sequence[int],
        labels: Sequence[str],
        accepted: Sequence[Sequence[int]],
        best_scores: np.ndarray,
    ) -> None:
        """Set the accepted labels of some items, see `Acceptance`; the best of them is the label."""
        for position, indices, score in zip(positions, accepted, best_scores.tolist(), strict=True):
            self.accepted[position] = [labels[index] for index in indices]
            self.best[position] = labels[indices[0]] if indices else None
            self.best_scores[position] = score


@dataclass(frozen=True, slots=True)
class ChunkLabels:
    """The content of a part's label columns."""

    chosen: ItemLabels  # of the job's first label set, or of the one that an item names
    by_set: Mapping[str, ItemLabels] = field(default_factory=dict)  # see `Job.named_label_sets`


def label_items(
    batcher: Batcher,
    job: Job,
    encoded: Sequence[EncodedSet],
    outcomes: Outcomes,
    logit_scale: float,
    choices: Sequence[str | None] | None = None,
) -> ChunkLabels:
    """Label the items that are ok.

    Args:
        batcher: runs the ranking on the device.
        job: the job, with its label sets.
        encoded: its label sets, in their order.
        outcomes: of all items, ended.
        logit_scale: the model's.
        choices: the names in the job's label set column, if it has one.
    """

    def fill(table: ItemLabels, positions: Sequence[int], one: EncodedSet) -> None:
        labels, values, decision = one.matrix.labels, one.matrix.values, one.decision
        for start in range(0, len(positions), _IMAGES_PER_CALL):
            some = positions[start : start + _IMAGES_PER_CALL]
            features = np.array([outcomes.features[position] for position in some], dtype=np.float32)
            # Always in the best lane: it is short, and a chunk that ends makes room for others.
            if decision is None:
                ranking = batcher.call(partial(rank, features, values, logit_scale, job.top_k), Lane.HIGH)
                table.put(some, labels, ranking.label_indices, ranking.scores)
            else:
                accepting = partial(accept, features, values, decision, logit_scale, job.top_k)
                acceptance = batcher.call(accepting, Lane.HIGH)
                table.put(some, labels, acceptance.label_indices, acceptance.scores)
                table.decide(some, labels, acceptance.accepted, acceptance.best_scores)

    good = [position for position, feature in enumerate(outcomes.features) if feature is not None]
    if choices is None:
        tables = [ItemLabels(len(outcomes.features)) for _ in encoded]
        for table, one in zip(tables, encoded, strict=True):
            fill(table, good, one)
        names = [label_set.name for label_set in job.named_label_sets]
        return ChunkLabels(tables[0], dict(zip(names, tables, strict=bool(names))))
    chosen = ItemLabels(len(outcomes.features))
    for one in encoded:
        fill(chosen, [position for position in good if choices[position] == one.name], one)
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
