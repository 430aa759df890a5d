"""The scores of a head on arrays are those that a worker computes on its device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipfleet.contract.heads import Activation, HeadKind
from clipfleet.heads import arithmetic
from clipfleet.heads.arithmetic import head_logits, head_scores
from clipfleet.heads.files import MEAN, STD, make_head
from clipfleet.labels.metrics import unit
from clipfleet_worker.score.heads import DeviceHead
from tests.support.heads import head_of, numbers_of

WIDTHS = (8, 6, 3)


@pytest.mark.parametrize("kind", [HeadKind.CLASSIFY, HeadKind.MULTILABEL])
@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("at_once", [8, 1000])
def test_scores_are_those_of_a_worker(
    kind: HeadKind, activation: Activation, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_NUMBERS_AT_ONCE", at_once)
    head = head_of(*WIDTHS, kind=kind, activation=activation)
    scaling = {MEAN: np.linspace(-1, 1, 8), STD: np.linspace(0.1, 1, 8)}
    file = make_head(head, numbers_of(head, *WIDTHS) | scaling)
    vectors = unit(np.random.default_rng(0).normal(size=(50, 8)))

    found = head_scores(file, vectors)

    theirs = DeviceHead.of(file, "cpu").score(torch.from_numpy(vectors).double())
    assert (found.dtype, found.shape) == (np.float32, (50, 3))
    np.testing.assert_allclose(found, theirs, rtol=1e-6)
    some = np.array([3, 4, 49])
    np.testing.assert_array_equal(head_scores(file, vectors, some), head_scores(file, vectors[some]))


def test_large_numbers_saturate() -> None:
    for kind, expected in ((HeadKind.CLASSIFY, [0, 1, 0]), (HeadKind.MULTILABEL, [0, 1, 0])):
        head = head_of(1, 3, kind=kind)
        file = make_head(head, {"0.weight": np.array([[-1e6], [1e6], [-1e4]]), "0.bias": np.zeros(3)})

        assert head_scores(file, np.ones((1, 1), np.float32)).tolist() == [expected]


def test_logits_order_labels_as_scores_do_and_where_those_are_0() -> None:
    head = head_of(1, 3)
    file = make_head(head, {"0.weight": np.array([[-1e6], [1e6], [-1e4]]), "0.bias": np.zeros(3)})

    assert head_logits(file, np.ones((1, 1), np.float32)).tolist() == [[-2e6, 0, -1.01e6]]


def test_no_vectors_have_no_scores() -> None:
    head = head_of(*WIDTHS)

    assert head_scores(make_head(head, numbers_of(head, *WIDTHS)), np.zeros((0, 8))).shape == (0, 3)
