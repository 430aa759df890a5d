"""Figures of labels whose items were drawn with different probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from clipfleet.labels.intervals import wilson
from clipfleet.training.measuring import LabelAnswers, measure_labels, share

TRUTH = np.array([True, True, True, False, False])
SCORE = np.array([0.9, 0.8, 0.2, 0.7, 0.1], np.float32)


def answers(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> LabelAnswers:
    return LabelAnswers(np.arange(len(truth)), truth, score, weights)


def test_equal_weights_are_plain_counts() -> None:
    found = measure_labels([answers(TRUTH, SCORE, np.full(5, 7.0))], ["cat"])

    (row,) = found.classes
    assert (row.n, row.predicted) == (3, 3)
    assert row.recall == row.precision == row.f1 == found.metrics["f1"] == pytest.approx(2 / 3)
    assert row.recall_interval == found.intervals["precision"] == pytest.approx(wilson(2, 3))
    assert found.metrics["mean_average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found.notes == ()


def test_an_item_counts_for_those_that_were_not_drawn() -> None:
    found = measure_labels([answers(TRUTH, SCORE, np.array([1, 1, 4, 2, 1.0]))], ["cat"])

    (row,) = found.classes
    assert (row.n, row.predicted, row.recall, row.precision) == (3, 3, 2 / 6, 2 / 4)
    assert row.f1 == pytest.approx(2 * 2 / (6 + 4))
    assert row.average_precision == pytest.approx((1 + 1 + 4 * 6 / 8) / 6)
    assert row.recall_interval == pytest.approx(wilson(36 / 18 / 3, 36 / 18))
    assert any("not about the marks" in note for note in found.notes)


def test_labels_share_one_set_of_figures() -> None:
    none = answers(TRUTH, np.zeros(5, np.float32), np.ones(5))

    found = measure_labels([answers(TRUTH, SCORE, np.ones(5)), none], ["cat", "dog"])

    assert (found.metrics["recall"], found.metrics["precision"], found.items) == (2 / 6, 2 / 3, 5)
    assert found.classes[1].precision is None
    assert measure_labels([none], ["dog"]).metrics["precision"] is None


def test_figures_of_a_stratified_sample_are_those_of_all_rows() -> None:
    """Doubtful rows are drawn ten times as often; without weights the recall would be far too low."""
    random = np.random.default_rng(3)
    score = random.random(20_000).astype(np.float32)
    truth = random.random(20_000) < score
    drawn_with = np.where(np.abs(score - 0.5) < 0.1, 0.1, 0.01)
    true = float((truth & (score >= 0.5)).sum() / truth.sum())

    shares, covered, plain = [], 0, []
    for _ in range(400):
        drawn = random.random(20_000) < drawn_with
        one = answers(truth[drawn], score[drawn], 1 / drawn_with[drawn])
        recall, (low, high) = share(one.accepted[one.truth], one.weights[one.truth])
        shares.append(recall)
        covered += low <= true <= high
        plain.append(one.accepted[one.truth].mean())

    assert np.mean(shares) == pytest.approx(true, abs=0.005)
    assert np.mean(plain) < true - 0.05
    assert covered >= 0.93 * 400
