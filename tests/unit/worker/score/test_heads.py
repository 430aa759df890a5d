"""Heads on the device against torch modules, and the columns that their scores become."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load

from clipfleet.contract.heads import Activation, HeadKind, HeadOutput
from clipfleet.heads.files import MEAN, STD, make_head
from clipfleet_worker.score.heads import DeviceHead, head_columns_of
from tests.support.heads import head_file, head_of, numbers_of
from tests.unit.worker.score.test_ranking import unit_rows

OUTPUTS = {HeadKind.CLASSIFY: torch.nn.Softmax(dim=1), HeadKind.MULTILABEL: torch.nn.Sigmoid()}


@pytest.mark.parametrize("kind", [HeadKind.CLASSIFY, HeadKind.MULTILABEL])
@pytest.mark.parametrize("widths", [(32, 3), (32, 64, 16, 3)])
def test_scores_are_those_of_torch(widths: tuple[int, ...], kind: HeadKind) -> None:
    file = head_file(*widths, kind=kind, activation=Activation.RELU)
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers[:-1])
    module.load_state_dict(load(file.data))
    features = torch.from_numpy(unit_rows(1, 20))

    found = DeviceHead.of(file, "cpu").score(features.double())

    with torch.no_grad():
        np.testing.assert_allclose(found, OUTPUTS[kind](module(features)).numpy(), atol=1e-5)
    assert found.dtype == np.float32


def test_its_sizes_are_those_of_its_layers() -> None:
    found = DeviceHead.of(head_file(32, 64, 16, 3), "cpu")

    assert found.widest == 64
    assert found.nbytes == 8 * (32 * 64 + 64 + 64 * 16 + 16 + 16 * 3 + 3)


def test_inputs_are_standardised_where_the_head_says_so() -> None:
    head = head_of(32, 1, kind=HeadKind.REGRESS)
    numbers = numbers_of(head, 32, 1)
    mean, std = unit_rows(2, 1)[0], np.abs(unit_rows(3, 1)[0]) + 0.1
    features = unit_rows(1, 20)

    found = DeviceHead.of(make_head(head, {**numbers, MEAN: mean, STD: std}), "cpu")

    expected = ((features - mean) / std) @ numbers["0.weight"].T + numbers["0.bias"]
    np.testing.assert_allclose(
        found.score(torch.from_numpy(features).double()), expected, rtol=1e-4, atol=1e-5
    )


SCORES = np.array([[0.2, 0.9, 0.6], [0.1, 0.3, 0.4], [0.7, 0.5, 0.8]], np.float32)


def test_the_best_of_several() -> None:
    label, score = head_columns_of(head_of(8, 3), SCORES)

    assert label.to_pylist() == ["kind 1", "kind 2", "kind 2"]
    np.testing.assert_array_equal(score.to_numpy(), SCORES.max(axis=1))


def test_any_number_of_labels_from_their_thresholds_on() -> None:
    thresholds = {"kind 2": float(np.float32(0.8))}
    head = head_of(8, 3, kind=HeadKind.MULTILABEL, thresholds=thresholds)

    label, score, accepted = head_columns_of(head, SCORES)

    assert label.to_pylist() == ["kind 1", None, "kind 2"]
    np.testing.assert_array_equal(score.to_numpy(), np.float32([0.9, 0.4, 0.8]))
    assert accepted.to_pylist() == [["kind 1"], [], ["kind 2", "kind 0", "kind 1"]]


def test_the_label_is_the_best_accepted_one_also_below_one_that_is_not() -> None:
    head = head_of(8, 3, kind=HeadKind.MULTILABEL, thresholds={"kind 2": 0.9})

    label, score, accepted = head_columns_of(head, SCORES)

    assert label.to_pylist() == ["kind 1", None, "kind 0"]
    np.testing.assert_array_equal(score.to_numpy(), np.float32([0.9, 0.4, 0.7]))
    assert accepted.to_pylist() == [["kind 1"], [], ["kind 0", "kind 1"]]


@pytest.mark.parametrize(("threshold", "labels"), [(None, [None, None]), (5.5, [None, "rating"])])
def test_a_number_is_labelled_from_its_threshold_on_if_it_has_one(
    threshold: float | None, labels: list[str | None]
) -> None:
    thresholds = {} if threshold is None else {"rating": threshold}
    head = head_of(
        8, 1, kind=HeadKind.REGRESS, output=HeadOutput.NONE, labels=("rating",), thresholds=thresholds
    )

    label, score = head_columns_of(head, np.array([[4.25], [6.5]], np.float32))

    assert label.to_pylist() == labels
    assert score.to_pylist() == [4.25, 6.5]
