"""Label a chunk's items: with every label set of the job, or each item with the set that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from clipfleet.contract.columns import (
    ACCEPTED_COLUMN,
    LABEL_COLUMNS,
    accepted_column,
    head_scores_column,
    label_columns,
)
from clipfleet.contract.jobs import ErrorCode, ItemError, Job, Lane
from clipfleet.contract.label_sets import LabelSet
from clipfleet_worker.encode.batches import Encoder
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.outcomes import Features
from clipfleet_worker.process.device import memory_errors
from clipfleet_worker.score.accepting import Acceptance, Decision, accept, background_prompts
from clipfleet_worker.score.heads import DeviceHead, head_columns_of, head_scores_of
from clipfleet_worker.score.label_columns import Columns, label_columns_of, placed
from clipfleet_worker.score.ranking import Ranking, rank
from clipfleet_worker.score.scoring_threads import Caller
from clipfleet_worker.score.text_matrices import Alive, TextMatrices, TextMatrix

if TYPE_CHECKING:
    import torch

# Scored at a time, so that other jobs' batches go in between: numbers of all images and labels, or of layers.
_SCORES_PER_CALL = 1 << 20
_MOST_IMAGES_PER_CALL = 2048  # fewer: threads wait for each other more often; more leave the caches
Choices: TypeAlias = np.ndarray  # object (items,): the name in an item's label set column, or None


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """A label set whose prompts are encoded."""

    name: str
    matrix: TextMatrix
    decision: Decision | None  # None: the set has no thresholds

    def score(self, images: torch.Tensor, logit_scale: float, top_k: int) -> Ranking | Acceptance:
        """The best labels of images, see `rank` and `accept`."""
        if self.decision is None:
            return rank(images, self.matrix.values, logit_scale, top_k)
        return accept(images, self.matrix.values, self.decision, logit_scale, top_k)


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


def label_items(
    caller: Caller,
    job: Job,
    encoded: Sequence[EncodedSet],
    heads: Sequence[DeviceHead],
    features: Features,
    model: LoadedModel,
    choices: Choices | None = None,
    *,
    lane: Lane = Lane.HIGH,
) -> dict[str, pa.Array]:
    """Label the items that are ok; return the columns of label sets and heads, of all items, by name.

    Args:
        caller: runs all products on the device, those of all label sets and heads together.
        job: the job, with its label sets and heads.
        encoded: its label sets, in their order.
        heads: likewise.
        features: of the items.
        model: of the job.
        choices: the names in the job's label set column, if it has one.
        lane: of the products. Those of a chunk of images are in the best one: they are short against its
            forward passes, and a chunk that ends makes room for others.
    """
    labels = sum(len(one.matrix.labels) for one in encoded) + sum(one.widest for one in heads)
    step = max(1, min(_MOST_IMAGES_PER_CALL, _SCORES_PER_CALL // max(1, labels)))
    of_sets: list[_Parts] = [[] for _ in encoded]
    of_heads: list[_Parts] = [[] for _ in heads]
    for start in range(0, len(features.positions), step):
        positions = features.positions[start : start + step]
        asked = _asked(encoded, positions, choices)
        values = features.values[start : start + step]
        scoring = partial(_score, values, encoded, asked, heads, model, job.top_k)
        by_set, by_head = caller.call(scoring, lane)
        for one, wanted, parts, found in zip(encoded, asked, of_sets, by_set, strict=True):
            if found is not None:
                parts.append((positions[wanted], label_columns_of(one.matrix.labels, found)))
        for head, parts, scores in zip(heads, of_heads, by_head, strict=True):
            all_scores = () if job.policy is None else (head_scores_of(scores),)
            parts.append((positions, (*head_columns_of(head.head, scores), *all_scores)))
    return _columns(job, of_sets, of_heads, features.items)


_Parts = list[tuple[np.ndarray, Columns]]


def _asked(encoded: Sequence[EncodedSet], positions: np.ndarray, choices: Choices | None) -> list[np.ndarray]:
    """Which of these items each label set is for, bool (items,)."""
    if choices is None:
        return [np.ones(len(positions), bool)] * len(encoded)
    return [choices[positions] == one.name for one in encoded]


def _score(
    values: np.ndarray,
    encoded: Sequence[EncodedSet],
    asked: Sequence[np.ndarray],
    heads: Sequence[DeviceHead],
    model: LoadedModel,
    top_k: int,
) -> tuple[list[Ranking | Acceptance | None], list[np.ndarray]]:
    """Some items by every label set, None for a set that none of them asks for; and the scores of heads."""
    import torch

    with torch.inference_mode(), memory_errors():
        images = torch.from_numpy(values).to(model.device).double()
        by_set = [
            one.score(_those(images, wanted), model.logit_scale, top_k) if wanted.any() else None
            for one, wanted in zip(encoded, asked, strict=True)
        ]
        return by_set, [head.score(images) for head in heads]


def _those(images: torch.Tensor, wanted: np.ndarray) -> torch.Tensor:
    import torch

    return images if wanted.all() else images[torch.from_numpy(wanted).to(images.device)]


def _columns(
    job: Job, of_sets: Sequence[_Parts], of_heads: Sequence[_Parts], items: int
) -> dict[str, pa.Array]:
    """Columns by name; those without any item are left out."""
    names = (*LABEL_COLUMNS, ACCEPTED_COLUMN)
    found: dict[str, pa.Array] = {}
    if job.label_set_column is not None:
        of_sets = [[one for parts in of_sets for one in parts]]
    by_set = [placed(parts, items) for parts in of_sets]
    for columns in by_set[:1]:
        found.update(zip(names, columns, strict=False))
    for label_set, columns in zip(job.named_label_sets, by_set, strict=False):
        own = (*label_columns(label_set.name), accepted_column(label_set.name))
        found.update(zip(own, columns, strict=False))
    for head, parts in zip(job.heads, of_heads, strict=True):
        columns = placed(parts, items)
        found.update(zip(head.columns, columns, strict=False))
        if columns and (name := head_scores_column(head.name)) in job.head_scores_columns:
            found[name] = columns[-1]
    return found


def choices_of(items: pa.Table, job: Job) -> Choices | None:
    """The label set that each item names; None if the job has no column for it."""
    if job.label_set_column is None:
        return None
    values = items[job.label_set_column].to_pylist()
    return np.array([None if value is None else str(value).strip() for value in values], object)


def unknown_choices(label_sets: Sequence[LabelSet], choices: Choices) -> dict[int, ItemError]:
    """The errors of items that name no label set of the job, by position."""
    names = [label_set.name for label_set in label_sets]
    found: dict[int, ItemError] = {}
    for position, choice in enumerate(choices):
        if choice not in names:
            what = f"no label set is called {choice[:60]!r}" if choice else "the item names no label set"
            detail = f"{what}: the job has {', '.join(names)}"[:300]
            found[position] = ItemError(ErrorCode.BAD_URI, detail)
    return found
