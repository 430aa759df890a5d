"""Intervals of shares, compared with exact fractions and with their definitions."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from math import comb, pi, sqrt
from statistics import NormalDist

import pytest

from clipfleet.labels.intervals import binomial_cdf, clopper_pearson, wilson


def exact_cdf(k: int, n: int, p: Fraction) -> Fraction:
    return sum((comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)), Fraction(0))


class TestBinomialCdf:
    @pytest.mark.parametrize("p", [Fraction(1, 20), Fraction(1, 2), Fraction(49, 50)], ids=str)
    def test_it_is_the_sum_of_the_terms(self, p: Fraction) -> None:
        for n in (1, 2, 7, 30, 93):
            for k in range(n + 1):
                assert binomial_cdf(k, n, float(p)) == pytest.approx(float(exact_cdf(k, n, p)), rel=1e-11)

    def test_a_million_trials_far_below_the_mean(self) -> None:
        n, p = 1_000_000, Decimal("0.0001")
        with localcontext(prec=60):
            term = total = (1 - p) ** n
            for k in range(1, 51):
                term *= (n - k + 1) * p / (k * (1 - p))
                total += term

        assert binomial_cdf(50, n, float(p)) == pytest.approx(float(total), rel=1e-8)

    def test_a_million_trials_at_the_mean(self) -> None:
        """Of a fair coin, by symmetry; the middle term by Stirling's series."""
        n = 1_000_000
        middle = sqrt(2 / (pi * n)) * (1 - 1 / (4 * n))

        assert binomial_cdf(n // 2 - 1, n, 0.5) == pytest.approx((1 - middle) / 2, rel=1e-8)
        assert binomial_cdf(n // 2, n, 0.5) == pytest.approx((1 + middle) / 2, rel=1e-8)

    def test_the_ends(self) -> None:
        assert [binomial_cdf(k, 3, 0.5) for k in (-1, 3, 4)] == [0, 1, 1]
        assert [binomial_cdf(2, 3, p) for p in (0, 1)] == [1, 0]

    @pytest.mark.parametrize(("n", "p"), [(-1, 0.5), (3, 1.1), (3, float("nan"))])
    def test_what_is_no_distribution(self, n: int, p: float) -> None:
        with pytest.raises(ValueError, match="no binomial distribution"):
            binomial_cdf(0, n, p)


class TestClopperPearson:
    @pytest.mark.parametrize(("count", "n"), [(0, 20), (1, 20), (57, 60), (60, 60)])
    @pytest.mark.parametrize("confidence", [0.9, 0.95])
    def test_each_end_makes_the_count_just_improbable(self, count: int, n: int, confidence: float) -> None:
        low, high = clopper_pearson(count, n, confidence)

        at_least = 1 - exact_cdf(count - 1, n, Fraction(low))
        at_most = exact_cdf(count, n, Fraction(high))
        half = (1 - confidence) / 2
        assert low == 0 if count == 0 else float(at_least) == pytest.approx(half, rel=1e-6)
        assert high == 1 if count == n else float(at_most) == pytest.approx(half, rel=1e-6)

    def test_without_a_miss_it_is_a_root(self) -> None:
        assert clopper_pearson(59, 59, 0.9)[0] == pytest.approx(0.05 ** (1 / 59), rel=1e-8)


class TestWilson:
    @pytest.mark.parametrize(("count", "n"), [(0, 5), (2, 8), (190, 200)])
    @pytest.mark.parametrize("confidence", [0.8, 0.95])
    def test_the_share_is_just_z_standard_errors_from_each_end(
        self, count: int, n: int, confidence: float
    ) -> None:
        z = NormalDist().inv_cdf((1 + confidence) / 2)

        for end in wilson(count, n, confidence):
            assert abs(count / n - end) == pytest.approx(z * sqrt(end * (1 - end) / n), abs=1e-12)


@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
@pytest.mark.parametrize(
    ("count", "n", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1), (1, 2, 0)]
)
def test_what_has_no_interval(interval: object, count: int, n: int, confidence: float) -> None:
    assert callable(interval)
    with pytest.raises(ValueError, match=r"is no share|is not between 0 and 1"):
        interval(count, n, confidence)
