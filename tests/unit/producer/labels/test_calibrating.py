"""From scores to probabilities: unbiased under weights, and thresholds that keep their promise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from clipfleet.contract.label_sets import LARGEST_SCORE, Claim, Promise, Verdict
from clipfleet.labels.calibrating import SMALLEST, Calibration, fit, logits, sigmoid
from clipfleet.labels.certifying import judge
from clipfleet.labels.sampling import certify_key, fit_key, stratified, uniform_order
from clipfleet.labels.thresholds import Evidence, threshold_for_precision

ROWS, MARKS, TARGET = 20_000, 60, 0.95
LABELS = ("cat", "dog", "fox", "owl", "elk")


class TestLogits:
    def test_they_are_the_inverse_of_the_sigmoid(self) -> None:
        x = np.linspace(-17, 17, 69)

        assert logits(sigmoid(x)) == pytest.approx(x, rel=1e-9)
        assert sigmoid([-1e9, 0, 1e9]).tolist() == [0, 0.5, 1]

    def test_0_and_1_are_clamped(self) -> None:
        end = np.log((1 - SMALLEST) / SMALLEST)

        assert logits([0, 1]) == pytest.approx([-end, end])

    def test_what_is_no_probability_is_named(self) -> None:
        with pytest.raises(ValueError, match="probability at position 2 is nan"):
            logits([0.1, 1, float("nan")])


def curve(slope: float, intercepts: list[float], seed: int, n: int = 4_000) -> Calibration:
    """A fit to marks of uniform draws from a logistic curve."""
    random = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(intercepts)), n)
    z = random.normal(-1, 3, len(label))
    is_yes = random.random(len(label)) < sigmoid(slope * z + np.asarray(intercepts)[label])
    return fit(z, label, is_yes, np.ones(len(label)), LABELS[: len(intercepts)])


class TestFit:
    def test_it_finds_the_curve_of_the_marks(self) -> None:
        found = curve(0.7, [-2.0, 0.0, 1.0], seed=1)

        assert found.slope == pytest.approx(0.7, abs=0.05)
        assert list(found.intercepts.values()) == pytest.approx([-2, 0, 1], abs=0.2)

    def test_its_spread_is_that_of_repeated_fits(self) -> None:
        found = [curve(0.7, [-2.0, 0.0], seed, 120) for seed in range(200)]

        estimates = np.array([[np.log(one.slope), one.intercepts["cat"]] for one in found])
        spreads = np.mean([one.spreads["cat"].covariance for one in found], axis=0)
        assert spreads == pytest.approx(np.cov(estimates.T), rel=0.3)

    def test_few_marks_are_shrunk_to_the_common_intercept_and_many_are_not(self) -> None:
        def distance(marks: int) -> float:
            z = np.tile([-3.0, -1, 1, 3], marks + 200)
            label = np.repeat([0, 1], [4 * marks, 800])
            is_yes = np.where(label == 1, z > 0, z > -2)
            found = fit(z, label, is_yes, np.ones(len(z)), ["few", "other"])
            return abs(found.intercepts["few"] - found.common)

        assert 0 < distance(1) < distance(5) < distance(100)

    def test_a_label_without_marks_has_the_common_intercept(self) -> None:
        found = fit([-1.0, 2, 0, 3, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0], np.ones(5), ["cat", "dog"])

        assert found.intercepts["dog"] == pytest.approx(found.common)
        cat, dog = (found.spreads[label].covariance[1][1] for label in ("cat", "dog"))
        assert dog > cat

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
    def test_marks_that_a_threshold_separates_have_a_fit(self, scale: float) -> None:
        z = scale * np.linspace(-1, 1, 40)

        found = fit(z, np.zeros(40), z > 0, np.ones(40), ["cat"])

        p = found.probabilities(z, "cat")
        assert 0 < found.slope < float("inf")
        assert np.all(np.diff(p) >= 0)
        assert np.isfinite(found.spreads["cat"].covariance).all()

    def test_only_ratios_of_weights_matter(self) -> None:
        z, is_yes = np.linspace(-3, 3, 30), np.arange(30) % 3 > 0
        weights = np.linspace(1, 50, 30)

        one, other = (fit(z, np.zeros(30), is_yes | (z > 1), w, ["cat"]) for w in (weights, 1e4 * weights))

        assert (one.slope, one.common) == pytest.approx((other.slope, other.common), rel=1e-5)

    @pytest.mark.parametrize(
        ("z", "is_yes", "weights", "problem"),
        [
            ([], [], [], "there are no marks"),
            ([1, 2], [1, 1], [1, 1], "all marks are yes"),
            ([1, 2], [0, 0], [1, 1], "all marks are no"),
            ([1, 2], [1, 0], [1, 1], "contradict the scores"),
            ([1, 1], [1, 0], [1, 1], "contradict the scores"),
            ([1, float("nan")], [0, 1], [1, 1], "score at position 1 is nan"),
            ([float("inf"), 1], [0, 1], [1, 1], "score at position 0 is inf"),
            ([1, 2], [0, 1], [1, 0], "weight at position 1 is 0.0, not above 0"),
            ([1, 2], [0, 1], [1], "differ in length"),
        ],
    )
    def test_what_has_no_fit(
        self, z: list[float], is_yes: list[int], weights: list[float], problem: str
    ) -> None:
        with pytest.raises(ValueError, match=problem):
            fit(z, [0] * len(z), is_yes, weights, ["cat"])


def test_doubtful_first_marks_leave_the_mean_probability_unbiased() -> None:
    """The curve is not logistic: a fit without weights is right for the marks and wrong for the rows."""
    random = np.random.default_rng(5)
    middles = np.array([1.0, 2.0, 5.0])
    z = random.normal(-2, 4, (ROWS, 3))
    is_yes = random.random((ROWS, 3)) < np.where(z > middles, 0.9, 0.12)
    doubt = np.clip(0.15 * np.exp(-np.abs(z - middles) / 1.5), 0.004, 1)  # inclusion probabilities
    truth = is_yes.mean(axis=0)

    weighted, unweighted = [], []
    for _ in range(60):
        row, label = np.nonzero(random.random((ROWS, 3)) < doubt)
        marks = z[row, label], label, is_yes[row, label]
        for found, weights in ((weighted, 1 / doubt[row, label]), (unweighted, np.ones(len(row)))):
            calibration = fit(*marks, weights, LABELS[:3])
            found.append([calibration.probabilities(z[:, i], LABELS[i]).mean() for i in range(3)])

    error = np.std(weighted, axis=0) / np.sqrt(60)
    assert np.mean(weighted, axis=0) == pytest.approx(truth, rel=0.04, abs=4 * error.max())
    assert np.all(np.abs(np.mean(unweighted, axis=0) / truth - 1) > 0.1)


def test_a_heavy_yes_among_the_lowest_scores_is_no_contradiction_and_the_mean_stays_unbiased() -> None:
    """Each draw counts: those that have such a yes are what makes the others unbiased."""
    random = np.random.default_rng(3)
    z = random.normal(-2, 4, 5_000)
    is_yes = random.random(len(z)) < np.where(z > 5, 0.6, 0.02)

    means, falling = [], 0
    for number in range(300):
        rows, shares = stratified(z, MARKS, f"draw {number}".encode())
        yes, weights = is_yes[rows], 1 / shares
        falling += np.cov(z[rows], yes, aweights=weights)[0, 1] <= 0
        means.append(fit(z[rows], np.zeros(MARKS), yes, weights, ["cat"]).probabilities(z, "cat").mean())

    assert falling >= 5
    assert np.mean(means) == pytest.approx(is_yes.mean(), abs=3 * np.std(means) / np.sqrt(len(means)))


@dataclass(frozen=True)
class World:
    """Synthetic embeddings: unit vectors of items near the text of their label, or near something else."""

    noise: float  # length of the noise beside a text vector of length 1
    shares: tuple[float, ...] = (0.1,) * 5  # of the labels; the rest, half of the items, shows none
    dimension: int = 128
    degrees: float | None = None  # of Student's t: heavy tails
    near: float = 0.0  # how much items without a label look like one
    scale: float = 100.0

    def scores(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The z of all rows and labels, and which of them are true."""
        random = np.random.default_rng(seed)
        texts, background, others = (
            unit(random.normal(size=(count, self.dimension))) for count in (5, 5, 30)
        )
        kinds = random.choice(6, ROWS, p=[*self.shares, 1 - sum(self.shares)])
        others = unit(others + self.near * texts[np.arange(30) % 5])
        shown = np.where((kinds < 5)[:, None], texts[kinds % 5], others[random.integers(30, size=ROWS)])
        shape = (ROWS, self.dimension)
        drift = random.normal(size=shape) if self.degrees is None else random.standard_t(self.degrees, shape)
        images = unit(shown + self.noise * drift / np.sqrt(self.dimension))
        others_logits = self.scale * images @ background.T
        z = self.scale * images @ texts.T - np.logaddexp.reduce(others_logits, axis=1)[:, None]
        return z, kinds[:, None] == np.arange(5)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def through_rows(z: np.ndarray, slope: float) -> np.ndarray:
    """The z that is computed back from the float32 scores in rows of a label set with this slope."""
    scores = np.minimum(sigmoid(slope * z), LARGEST_SCORE).astype(np.float32)
    return np.stack([logits(column) / slope for column in scores.T], axis=1)


def best_recall(z: np.ndarray, is_yes: np.ndarray) -> float:
    """The largest recall of any threshold whose true precision is at least the target."""
    hits = np.cumsum(is_yes[np.argsort(-z)])
    return float(hits[hits / np.arange(1, len(z) + 1) >= TARGET].max(initial=0) / is_yes.sum())


WORLDS = {
    "trivial": World(0.3),
    "easy": World(1.5),
    "noisy": World(2.5),
    "noisier": World(2.8),
    "wide": World(4.0, dimension=512),
    "narrow": World(0.8, dimension=32),
    "heavy tails": World(1.3, degrees=3),
    "look-alikes": World(1.2, near=0.7),
    "rare and common": World(2.0, shares=(0.01, 0.02, 0.05, 0.12, 0.3)),
    "small logits": World(2.2, scale=10.0),
}


@dataclass(frozen=True)
class Fitted:
    """One draw of a world, and what 60 stratified fit marks a label make of it."""

    z: np.ndarray
    is_yes: np.ndarray
    p: list[np.ndarray]
    thresholds: list[float | None]


def fitted(world: World, seed: int, slope: float) -> Fitted:
    true_z, is_yes = world.scores(seed)
    z = through_rows(true_z, slope)
    draws = [stratified(z[:, i], MARKS, fit_key(f"job-{seed}", LABELS[i])) for i in range(5)]
    rows, label = np.concatenate([rows for rows, _ in draws]), np.repeat(np.arange(5), MARKS)
    weights = 1 / np.concatenate([probabilities for _, probabilities in draws])
    found = fit(z[rows, label], label, is_yes[rows, label], weights, LABELS)
    p = [found.probabilities(z[:, i], name) for i, name in enumerate(LABELS)]
    thresholds = []
    for i, name in enumerate(LABELS):
        own = draws[i][0]
        evidence = Evidence(p[i][own], is_yes[own, i], weights[label == i])
        thresholds.append(
            threshold_for_precision(p[i], TARGET, spread=found.spreads[name], evidence=evidence)
        )
    return Fitted(true_z, is_yes, p, thresholds)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_thresholds_keep_their_promise_and_are_certified(world: World) -> None:
    """60 stratified fit marks a label choose a threshold; 300 certify marks test it, in one look."""
    certified = []
    for seed in range(4):
        found = fitted(world, seed, slope=0.2)
        z, is_yes = found.z, found.is_yes
        for i, name in enumerate(LABELS):
            threshold = found.thresholds[i]
            assert threshold is not None
            accepted = np.flatnonzero(found.p[i] >= np.float32(threshold))

            assert is_yes[accepted, i].mean() >= 0.92
            assert is_yes[accepted, i].sum() / is_yes[:, i].sum() >= best_recall(z[:, i], is_yes[:, i]) / 2

            order = accepted[uniform_order(accepted, certify_key(f"job-{seed}", name, threshold, "hash"))]
            marks = order[:300]
            promise = Promise(claim=Claim.PRECISION, value=TARGET)
            wrong = int((~is_yes[marks, i]).sum())
            certified.append(judge(promise, len(marks), wrong, (), len(order)).verdict is Verdict.CERTIFIED)

    assert np.mean(certified) >= 0.7


def test_scores_that_saturate_lose_their_thresholds_and_a_smaller_slope_finds_them() -> None:
    """With slope 1 all rows whose z is above 16.6 share the largest score, look-alikes among them."""
    saturated, spread = (fitted(WORLDS["look-alikes"], 0, slope) for slope in (1.0, 0.2))

    share = np.mean(saturated.z > logits(LARGEST_SCORE))
    assert share > 0.1
    assert saturated.thresholds == [None] * 5
    assert None not in spread.thresholds
