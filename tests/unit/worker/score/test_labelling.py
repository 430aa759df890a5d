"""All label sets of a chunk in one call of the device; each item in the sets that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import torch

from clipfleet.contract.jobs import Lane, SourceDescription, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.outcomes import Features
from clipfleet_worker.score import labelling
from clipfleet_worker.score.accepting import Decision
from clipfleet_worker.score.labelling import EncodedSet, label_items
from clipfleet_worker.score.text_matrices import TextMatrix
from tests.support.failing import failing
from tests.support.jobs import make_job
from tests.unit.worker.score.test_ranking import unit_rows

T = TypeVar("T")


class Device:
    """Runs calls at once, and counts them."""

    def __init__(self) -> None:
        self.calls = 0

    def call(self, work: Callable[[], T], lane: Lane) -> T:
        self.calls += 1
        return work()


def encoded(label_set: LabelSet, seed: int) -> EncodedSet:
    """Random directions; with thresholds, the background is the first of them."""
    matrix = torch.from_numpy(unit_rows(seed, len(label_set.labels)))
    decision = None
    if label_set.has_thresholds:
        decision = Decision.of(label_set, label_set.labels, dict.fromkeys(label_set.background, matrix[0]))
    return EncodedSet(label_set.name, TextMatrix(label_set.labels, matrix), decision)


INSECTS = LabelSet(name="insects", labels=("ant", "bee", "cow"))
COLOURS = LabelSet(name="colours", labels=("red", "blue"), kind="multi")
SETS = (INSECTS, COLOURS)
# Items 1 and 4 of six have failed.
FEATURES = Features(6, np.array([0, 2, 3, 5]), unit_rows(9, 4))


def labels_of(device: Device, choices: list[str | None] | None = None) -> dict[str, Any]:
    column = None if choices is None else "of"
    source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("of",))
    job = make_job(task=Task.CLASSIFY, label_sets=SETS, label_set_column=column, source=source)
    sets = [encoded(label_set, seed) for seed, label_set in enumerate(SETS)]
    model = cast(LoadedModel, SimpleNamespace(device="cpu", logit_scale=9.0))
    named = None if choices is None else np.array(choices, object)
    found = label_items(cast(Batcher, device), job, sets, [], FEATURES, model, named)
    return {name: one.to_pylist() for name, one in found.items()}


def test_all_sets_are_scored_in_one_call() -> None:
    device = Device()

    found = labels_of(device)

    assert device.calls == 1
    assert found["label"] == found["label_insects"]
    assert [label is None for label in found["label"]] == [False, True, False, False, True, False]
    assert {*found["label"]} <= {None, *INSECTS.labels}
    assert {label for row in found["labels_colours"] for label in row or ()} == {*COLOURS.labels}
    assert [row is None for row in found["accepted_colours"]] == [row is None for row in found["label"]]
    assert found["accepted"] == [None] * 6  # of the first set, which has no thresholds


@pytest.mark.parametrize("scores", [1, 5, 12])
def test_slices_of_images_change_nothing(monkeypatch: pytest.MonkeyPatch, scores: int) -> None:
    whole = labels_of(Device())
    monkeypatch.setattr(labelling, "_SCORES_PER_CALL", scores)
    device = Device()

    assert labels_of(device) == whole
    assert device.calls == 4 // max(1, scores // 5)


def test_an_item_gets_the_labels_of_the_set_that_it_names() -> None:
    choices = ["colours", "insects", "insects", "colours", None, "insects"]

    found = labels_of(Device(), choices)

    assert set(found) == {"label", "score", "labels", "scores", "accepted"}  # of all sets together
    kinds = [None if row is None else {*row} <= {*COLOURS.labels} for row in found["labels"]]
    assert kinds == [True, None, False, True, None, False]
    assert [row is not None for row in found["accepted"]] == [True, False, False, True, False, False]


def test_a_set_that_no_item_names_is_not_scored() -> None:
    found = labels_of(Device(), ["insects"] * 6)

    assert found["accepted"] == [None] * 6


def test_too_little_memory_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "topk", failing(torch.OutOfMemoryError("CUDA out of memory")))

    with pytest.raises(MemoryError, match="out of memory"):
        labels_of(Device())
