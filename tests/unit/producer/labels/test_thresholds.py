"""Which threshold is chosen from the probabilities of all rows."""

from __future__ import annotations

import numpy as np
import pytest

from clipfleet.labels.calibrating import Spread
from clipfleet.labels.thresholds import Evidence, threshold_for_miss, threshold_for_precision

RANDOM = np.random.default_rng(9)
P = np.concatenate([RANDOM.beta(0.3, 2, 3_000), RANDOM.beta(6, 0.5, 500)]).astype(np.float32)
UNSURE = Spread(intercept=-1.0, covariance=((0.02, 0.0), (0.0, 0.3)))


class TestPrecision:
    @pytest.mark.parametrize("target", [0.8, 0.95, 0.99])
    def test_exact_probabilities_have_the_lowest_threshold_that_keeps_it(self, target: float) -> None:
        keeping = [t for t in np.unique(P) if P[t <= P].astype(float).mean() >= target]

        threshold = threshold_for_precision(P, target)

        assert threshold is not None
        assert (threshold <= P).tolist() == (min(keeping) <= P).tolist()

    def test_equal_scores_fall_on_the_same_side(self) -> None:
        # The first of the two 0.5 would do: (0.95 + 0.9 + 0.5) / 3.
        assert threshold_for_precision([0.95, 0.9, 0.5, 0.5, 0.1], 0.75) == pytest.approx(0.75, abs=0.15)

    def test_none_where_no_row_is_probable_enough(self) -> None:
        assert threshold_for_precision([0.2, 0.6], 0.95) is None
        assert threshold_for_precision([], 0.95) is None

    def test_an_uncertain_calibration_raises_it(self) -> None:
        sure, unsure = threshold_for_precision(P, 0.9), threshold_for_precision(P, 0.9, spread=UNSURE)

        assert sure is not None
        assert unsure is not None
        assert unsure > sure

    def test_safety_costs_few_of_the_accepted(self) -> None:
        """Half of the allowed errors are avoided where 70 % of what is found remains, and not else."""
        certain = Spread(0.0, ((0.0, 0.0), (0.0, 0.0)))
        cheap = np.repeat(np.float32([0.99, 0.85]), [900, 350])
        dear = np.repeat(np.float32([0.99, 0.85]), [500, 350])

        assert threshold_for_precision(cheap, 0.93, spread=certain) == pytest.approx(0.92, abs=0.069)
        assert threshold_for_precision(dear, 0.93, spread=certain) == pytest.approx(0.5, abs=0.35)

    def test_rows_that_are_probably_wrong_are_no_filler(self) -> None:
        """With 1,000 certain rows, 20 improbable ones would still keep 0.95."""
        p = np.append(np.ones(1_000), np.linspace(0.02, 0.01, 20))
        slightly = Spread(0.0, ((1e-4, 0.0), (0.0, 1e-4)))

        threshold = threshold_for_precision(p, 0.95, spread=slightly)

        assert threshold is not None
        assert threshold > 0.02
        assert (threshold_for_precision(p, 0.95) or 1) <= np.float32(0.01)

    def test_marks_that_contradict_the_probabilities_raise_it(self) -> None:
        marks = np.linspace(0.7, 0.99, 60)
        wrong_below = Evidence(marks, marks > 0.9, np.ones(60))

        trusting, threshold = (threshold_for_precision(P, 0.9, evidence=e) for e in (None, wrong_below))

        assert trusting is not None
        assert threshold is not None
        assert trusting < 0.7
        assert np.mean(marks[marks >= threshold] > 0.9) > 0.75

    def test_marks_that_agree_change_nothing(self) -> None:
        marks = np.linspace(0.01, 0.99, 60)
        agreeing = Evidence(marks, marks > 0.5, 1 / (marks + 0.1))

        assert threshold_for_precision(P, 0.9, evidence=agreeing) == threshold_for_precision(P, 0.9)


class TestMiss:
    @pytest.mark.parametrize("most", [0.002, 0.02, 0.1])
    def test_exact_probabilities_have_the_highest_threshold_that_keeps_it(self, most: float) -> None:
        keeping = [t for t in np.unique(P)[1:] if P[t > P].astype(float).mean() <= most]

        threshold = threshold_for_miss(P, most)

        assert threshold is not None
        assert (threshold <= P).tolist() == (max(keeping) <= P).tolist()

    def test_an_uncertain_calibration_lowers_it(self) -> None:
        sure, unsure = threshold_for_miss(P, 0.05), threshold_for_miss(P, 0.05, spread=UNSURE)

        assert sure is not None
        assert unsure is not None
        assert unsure < sure

    def test_marks_that_contradict_the_probabilities_lower_it(self) -> None:
        marks = np.linspace(0.0, 0.4, 80)
        missed = Evidence(marks, marks > 0.2, np.ones(80))

        trusting, threshold = (threshold_for_miss(P, 0.1, evidence=e) for e in (None, missed))

        assert trusting is not None
        assert threshold is not None
        assert threshold < 0.27 < trusting

    def test_at_least_one_row_is_accepted(self) -> None:
        threshold = threshold_for_miss([0.001, 0.002, 0.003], 0.5)

        assert threshold is not None
        assert 0.002 < threshold <= np.float32(0.003)

    def test_none_where_even_the_least_probable_row_is_too_many(self) -> None:
        assert threshold_for_miss([0.3, 0.6], 0.02) is None
        assert threshold_for_miss([0.01, 0.01], 0.02) is None  # equal rows are all accepted
        assert threshold_for_miss([], 0.02) is None


@pytest.mark.parametrize("choose", [threshold_for_precision, threshold_for_miss])
class TestBoth:
    @pytest.mark.parametrize("seed", range(5))
    def test_a_threshold_is_the_same_number_in_float32(self, choose: object, seed: int) -> None:
        assert callable(choose)
        random = np.random.default_rng(seed)
        p = np.clip(random.normal(0.9, 1e-6, 50), 0, 1)  # many differ by a bit or two in float32

        threshold = choose(p, 0.9)

        if threshold is not None:
            assert float(np.float32(threshold)) == threshold

    @pytest.mark.parametrize(("value", "problem"), [(float("nan"), "nan, not a finite"), (1.5, "1.5, not b")])
    def test_what_is_no_probability_is_named(self, choose: object, value: float, problem: str) -> None:
        assert callable(choose)
        with pytest.raises(ValueError, match=f"probability at position 1 is {problem}"):
            choose([0.5, value], 0.9)
