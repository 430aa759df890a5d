"""Metrics against the same definitions in plain Python, item by item, on small cases with equal scores."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from clipfleet.labels import metrics
from clipfleet.labels.comparing import bootstrap, mcnemar


def tied(seed: int, rows: int, columns: int) -> np.ndarray:
    """Scores from a handful of values, so that many are equal."""
    return np.random.default_rng(seed).integers(0, 4, (rows, columns)).astype(np.float32)


def order_of(scores: Sequence[float]) -> list[int]:
    """Indexes by descending score; of equal ones the first first."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


@pytest.fixture(params=range(5))
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=[1, 16_000_000], ids=["row by row", "at once"], autouse=True)
def slice_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a matrix is sliced, the result is the same."""
    monkeypatch.setattr(metrics, "_SCORES_AT_ONCE", request.param)


def one_hot(classes: int) -> np.ndarray:
    """A classifier whose scores are the features themselves."""
    return np.eye(classes, dtype=np.float32)


def test_classification(seed: int) -> None:
    items, classes = 40, 6
    scores = tied(seed, items, classes)
    truth = np.random.default_rng(seed + 100).integers(0, classes - 2, items)  # two classes have no item

    ranks = metrics.classify(scores, one_hot(classes), truth)

    orders = [order_of(row) for row in scores.tolist()]
    assert ranks.predicted.tolist() == [order[0] for order in orders]
    assert ranks.rank.tolist() == [order.index(true) for order, true in zip(orders, truth, strict=True)]
    for k in (1, 5):
        hits = sum(true in order[:k] for order, true in zip(orders, truth.tolist(), strict=True))
        assert metrics.share_within(ranks.rank, k) == pytest.approx(hits / items)
    recalls = []
    for one in {*truth.tolist()}:
        own = [order[0] == one for order, true in zip(orders, truth, strict=True) if true == one]
        recalls.append(sum(own) / len(own))
    found = metrics.mean_per_class_recall(truth, ranks.predicted, classes)
    assert found == pytest.approx(sum(recalls) / len(recalls))
    cells = metrics.confusion(truth, ranks.predicted, classes)
    pairs = [*zip(truth.tolist(), ranks.predicted.tolist(), strict=True)]
    assert {(true, guessed): count for true, guessed, count in cells} == {
        pair: pairs.count(pair) for pair in pairs
    }
    assert [count for _, _, count in cells] == sorted((count for _, _, count in cells), reverse=True)
    counts = metrics.class_counts(truth, ranks.predicted, classes)
    assert counts.right.tolist() == [pairs.count((one, one)) for one in range(classes)]
    assert (counts.true.sum(), counts.predicted.sum()) == (items, items)


def test_average_precision_with_distinct_scores(seed: int) -> None:
    items = 30
    scores = np.array(random.Random(seed).sample(range(1000), items), np.float32)
    truth = np.random.default_rng(seed).random(items) < 0.3

    precisions, positives = [], 0
    for place, item in enumerate(order_of(scores.tolist()), start=1):
        if truth[item]:
            positives += 1
            precisions.append(Fraction(positives, place))
    expected = float(sum(precisions) / max(positives, 1))

    assert metrics.average_precision(scores, truth) == pytest.approx(expected)
    (order,) = metrics.rankings(scores[:, None], one_hot(1))
    assert metrics.precision_of_ranking(truth[order]) == pytest.approx(expected)
    twice = np.full(items, 2)
    assert metrics.average_precision(scores, truth, twice) == pytest.approx(_weighted(scores, truth, twice))


def _weighted(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Precision of the items up to and with each one, weighted, averaged over the positives."""
    order = order_of(scores.tolist())
    above = [sum(weights[item] * truth[item] for item in order[: n + 1]) for n in range(len(order))]
    seen = [sum(weights[item] for item in order[: n + 1]) for n in range(len(order))]
    positive = [weights[item] * truth[item] for item in order]
    total = sum(a / s * p for a, s, p in zip(above, seen, positive, strict=True))
    return float(total / max(sum(positive), 1))


def test_only_the_ratios_of_weights_matter_for_average_precision(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, truth, weights = random.random(30), random.random(30) < 0.3, random.random(30)

    found = metrics.average_precision(scores, truth, weights)

    assert metrics.average_precision(scores, truth, weights * 1e-3) == pytest.approx(found)


def test_a_class_without_positives_has_an_average_precision_of_0() -> None:
    assert metrics.average_precision(np.array([0.3, 0.1]), np.array([False, False])) == 0.0


def test_retrieval(seed: int) -> None:
    images, dimension = 7, 3
    own = np.random.default_rng(seed).integers(1, 4, images)  # captions of each image
    image_of_text = np.repeat(np.arange(images), own)
    image_vectors = tied(seed, images, dimension)
    text_vectors = tied(seed + 50, len(image_of_text), dimension)

    ranks = metrics.retrieve(image_vectors, text_vectors, image_of_text)

    scores = text_vectors @ image_vectors.T
    for k in (1, 2, 5):
        hits = [
            int(image) in order_of(row)[:k] for row, image in zip(scores.tolist(), image_of_text, strict=True)
        ]
        assert metrics.share_within(ranks.image_of_text, k) == pytest.approx(sum(hits) / len(hits))
        found = [
            any(image_of_text[text] == image for text in order_of(column)[:k])
            for image, column in enumerate(scores.T.tolist())
        ]
        assert metrics.share_within(ranks.text_of_image, k) == pytest.approx(sum(found) / images)


def test_auroc_counts_pairs_and_equal_scores_half(seed: int) -> None:
    scores, positive = tied(seed, 30, 1)[:, 0], np.arange(30) % 3 == 0

    pairs = [(a, b) for a in scores[positive] for b in scores[~positive]]

    expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert metrics.auroc(scores, positive) == pytest.approx(expected)
    assert math.isnan(metrics.auroc(scores, np.ones(30, bool)))


def test_a_classifier_is_the_normalised_mean_of_normalised_prompts() -> None:
    prompts = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0], [10.0, 0.0]])

    found = metrics.zero_shot_classifier(prompts, 2)

    mean = np.array([0.3, 0.9])  # of (0.6, 0.8) and (0, 1)
    np.testing.assert_allclose(found, [mean / np.hypot(*mean), [1.0, 0.0]], rtol=1e-6)


def test_weights_are_multiplicities(seed: int) -> None:
    """What bootstrap draws means the same as the items repeated so often."""
    draws = np.random.default_rng(seed)
    truth, predicted, weights = (draws.integers(0, 3, 20) for _ in range(3))
    repeated_truth, repeated = np.repeat(truth, weights), np.repeat(predicted, weights)

    assert metrics.mean_per_class_recall(truth, predicted, 3, weights) == pytest.approx(
        metrics.mean_per_class_recall(repeated_truth, repeated, 3)
    )
    assert metrics.share_within(predicted, 1, weights) == pytest.approx(metrics.share_within(repeated, 1))


# The first two by hand: 2 * (1 + 10) / 2**10, and 2 / 2**5; the last from R: binom.test(40, 100).
@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [(1, 9, 22 / 1024), (5, 0, 2 / 32), (3, 3, 1.0), (0, 0, 1.0), (40, 60, 0.0569)],
)
def test_mcnemar_is_the_exact_binomial_test(only_first: int, only_second: int, p_value: float) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True] * 5)
    second = np.array([False] * only_first + [True] * only_second + [True] * 5)

    found = mcnemar(first, second)

    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p_value == pytest.approx(p_value, abs=5e-5)


def test_a_bootstrap_interval_of_a_share_is_as_wide_as_its_standard_error() -> None:
    hits = np.arange(400) % 4 == 0

    low, high = bootstrap(lambda weights: float((hits * weights).sum() / weights.sum()), 400)

    reach = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert (low, high) == pytest.approx((0.25 - reach, 0.25 + reach), abs=0.006)
    assert bootstrap(lambda weights: float((hits * weights).sum() / weights.sum()), 400) == (low, high)
    assert all(map(math.isnan, bootstrap(lambda _: math.nan, 5)))


def test_the_interval_of_a_ranking_is_around_its_value() -> None:
    """Copies of an item stand together, which raises the precision in each resample."""
    draws = np.random.default_rng(0)
    scores, truth = draws.random((600, 80)), draws.random((600, 80)) < 0.05

    def statistic(weights: np.ndarray) -> float:
        each = zip(scores.T, truth.T, strict=True)
        return float(np.mean([metrics.average_precision(one, true, weights) for one, true in each]))

    low, high = bootstrap(statistic, 600, resamples=60)

    assert low < statistic(np.ones(600, int)) < high
