"""Label sets and heads on a device: the labels and scores of the CPU, for any number of images in a call."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import torch

from clipfleet.contract.heads import Activation, HeadKind
from clipfleet.contract.jobs import Lane, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.outcomes import Features
from clipfleet_worker.score.accepting import Decision
from clipfleet_worker.score.heads import DeviceHead
from clipfleet_worker.score.labelling import EncodedSet, label_items
from clipfleet_worker.score.text_matrices import TextMatrix
from tests.support.heads import head_file
from tests.support.jobs import make_job

T = TypeVar("T")

DIMENSION, ITEMS, FAILED = 512, 9_000, 7
SETS = (
    LabelSet(name="names", labels=tuple(f"name {number}" for number in range(1_000))),
    LabelSet(name="tags", labels=tuple(f"tag {number}" for number in range(40)), kind="multi"),
    LabelSet(name="faces", labels=("face",), none=True),
)
HEADS = (
    head_file(DIMENSION, 50, name="kinds"),
    head_file(DIMENSION, 64, 16, 9, name="nine", kind=HeadKind.MULTILABEL, activation=Activation.RELU),
    head_file(DIMENSION, 1, name="rating", kind=HeadKind.REGRESS),
)


class Direct:
    """Stands in for the thread of the device."""

    def call(self, work: Callable[[], T], lane: Lane) -> T:
        return work()


def unit(seed: int, rows: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def encoded(label_set: LabelSet, seed: int, device: str) -> EncodedSet:
    """Random directions; with thresholds, the background is further ones."""
    matrix = torch.from_numpy(unit(seed, len(label_set.labels))).to(device)
    decision = None
    if label_set.has_thresholds:
        others = torch.from_numpy(unit(seed + 100, len(label_set.background))).to(device)
        background = dict(zip(label_set.background, others, strict=True))
        decision = Decision.of(label_set, label_set.labels, background)
    return EncodedSet(label_set.name, TextMatrix(label_set.labels, matrix), decision)


def labels_on(device: str, items: slice = slice(None)) -> dict[str, list[Any]]:
    job = make_job(task=Task.CLASSIFY, label_sets=SETS, heads=tuple(one.of_job for one in HEADS))
    model = cast(LoadedModel, SimpleNamespace(device=device, logit_scale=100.0))
    sets = [encoded(one, seed, device) for seed, one in enumerate(SETS)]
    heads = [DeviceHead.of(one, device) for one in HEADS]
    places = np.flatnonzero(np.arange(ITEMS) % FAILED)[items]
    features = Features(ITEMS, places, unit(9, ITEMS)[places])
    found = label_items(cast(Batcher, Direct()), job, sets, heads, features, model)
    return {name: one.to_pylist() for name, one in found.items()}


@pytest.mark.figures
def test_they_are_those_of_the_cpu() -> None:
    on_device, on_cpu = labels_on("cuda"), labels_on("cpu")

    assert [*on_device] == [*on_cpu]
    for name, found in on_device.items():
        if "score" in name:
            numbers, expected = (
                np.array([one for one in column if one is not None], np.float64)
                for column in (found, on_cpu[name])
            )
            print(f"\n{name}: off by {np.abs(numbers - expected).max():.1e}", end="")
            np.testing.assert_allclose(numbers, expected, atol=1e-6, err_msg=name)
        else:
            assert found == on_cpu[name], name


def test_an_image_gets_the_same_in_any_call() -> None:
    whole, few = labels_on("cuda"), labels_on("cuda", slice(10, 13))

    for name, column in few.items():
        rows = [(row, whole[name][place]) for place, row in enumerate(column) if row is not None]
        assert all(row == expected for row, expected in rows), name
