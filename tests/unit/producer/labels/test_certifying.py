"""What certify marks prove: the rules of looks, and how often a promise that does not hold is certified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import ceil, comb, sqrt

import numpy as np
import pytest

from clipfleet.contract.label_sets import Claim, Look, Promise, Verdict
from clipfleet.labels.certifying import (
    MOST_LOOKS,
    Judgement,
    can_pass,
    judge,
    level,
    marks_needed,
    passes,
)
from clipfleet.labels.sampling import certify_key, uniform_order

PRECISION = Promise(claim=Claim.PRECISION, value=0.95)
MISS = Promise(claim=Claim.MISS, value=0.05)
MANY = 5_000


def sum_passes(wrong: int, marks: int, level: float) -> bool:
    return sum(comb(marks, i) * 0.05**i * 0.95 ** (marks - i) for i in range(wrong + 1)) <= level


class TestPasses:
    # Least marks that prove a precision with 95 % confidence in one look, with 0, 1, 2, 3 wrong.
    @pytest.mark.parametrize(
        ("precision", "least"),
        [
            (0.8, (14, 22, 30, 37)),
            (0.9, (29, 46, 61, 76)),
            (0.95, (59, 93, 124, 153)),
            (0.98, (149, 236, 313, 386)),
            (0.99, (299, 473, 628, 773)),
        ],
    )
    def test_known_sizes(self, precision: float, least: tuple[int, ...]) -> None:
        promise = Promise(claim=Claim.PRECISION, value=precision)

        for wrong, marks in enumerate(least):
            assert passes(promise, wrong, marks, 0.05)
            assert not passes(promise, wrong, marks - 1, 0.05)

    def test_a_miss_is_the_same_test_of_the_rest(self) -> None:
        assert [passes(MISS, 1, marks, 0.05) for marks in (92, 93)] == [False, True]

    def test_nothing_passes_without_marks(self) -> None:
        assert not can_pass(PRECISION, 0, 1)


def test_looks_halve_delta_and_labels_share_it() -> None:
    assert [level(look, 0.95) for look in (1, 2, 3, 4)] == pytest.approx([0.025, 0.0125, 0.00625, 0.003125])
    assert level(1, 0.9, labels_jointly=5) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="4 looks"):
        level(5, 0.95)


class TestMarksNeeded:
    @pytest.mark.parametrize(
        ("wrong", "marks"), [(0, 0), (0, 10), (1, 100), (2, 72), (3, 80), (5, 300), (4, 90), (40, 1000)]
    )
    @pytest.mark.parametrize("look", [1, 4])
    @pytest.mark.parametrize("most", [150, 330, 2_000])
    def test_it_is_the_first_size_that_passes_at_this_share(
        self, wrong: int, marks: int, look: int, most: int
    ) -> None:
        share = Fraction(wrong, max(marks, 1))
        sizes = (
            size
            for size in range(marks + 1, most + 1)
            if sum_passes(ceil(size * share), size, level(look, 0.95))
        )
        first = next(sizes, None)

        found = marks_needed(PRECISION, wrong, marks, level(look, 0.95), most)
        assert found == (None if first is None else first - marks)

    def test_no_number_serves_at_the_allowed_share(self) -> None:
        assert marks_needed(PRECISION, 5, 100, 0.025, 10**9) is None

    def test_it_never_exceeds_the_population(self) -> None:
        needed = marks_needed(PRECISION, 1, 100, 0.025, MANY)
        assert needed is not None
        assert marks_needed(PRECISION, 1, 100, 0.025, 100 + needed) == needed
        assert marks_needed(PRECISION, 1, 100, 0.025, 99 + needed) is None


class TestJudge:
    def test_enough_right_marks_are_certified_in_one_look(self) -> None:
        found = judge(PRECISION, 72, 0, (), MANY)

        assert (found.verdict, found.looks, found.more_marks) == (
            Verdict.CERTIFIED,
            (Look(marks=72, wrong=0),),
            0,
        )
        assert found.interval == pytest.approx((0.025 ** (1 / 72), 1.0))

    def test_a_look_that_cannot_pass_is_not_spent(self) -> None:
        found = judge(PRECISION, 71, 0, (), MANY)

        assert (found.verdict, found.looks, found.more_marks) == (Verdict.NOT_YET, (), 1)

    def test_the_same_marks_again_are_no_new_look(self) -> None:
        first = judge(PRECISION, 100, 2, (), MANY)

        assert first.looks == (Look(marks=100, wrong=2),)
        assert judge(PRECISION, 100, 2, first.looks, MANY) == first

    def test_the_named_number_of_marks_certifies_in_the_next_look(self) -> None:
        first = judge(PRECISION, 100, 2, (), MANY)
        assert first.more_marks is not None
        marks = 100 + first.more_marks

        second = judge(PRECISION, marks, ceil(marks * 2 / 100), first.looks, MANY)

        assert first.verdict is Verdict.NOT_YET
        assert (second.verdict, len(second.looks)) == (Verdict.CERTIFIED, 2)

    def test_four_looks_are_all(self) -> None:
        looks = tuple(Look(marks=marks, wrong=4) for marks in (100, 110, 120, 130))

        for marks, wrong in ((130, 4), (500, 4)):  # 4 of 500 would pass
            found = judge(PRECISION, marks, wrong, looks, MANY)
            assert (found.verdict, found.looks, found.more_marks) == (Verdict.FAILED, looks, None)

    @pytest.mark.parametrize(
        ("marks", "wrong", "verdict"),
        # At precision 0.95: 7 or more wrong of 60 have a probability of 0.030, 6 or more of 0.079.
        [
            (60, 7, Verdict.FAILED),
            (60, 6, Verdict.NOT_YET),
            (1, 1, Verdict.NOT_YET),
            (20, 10, Verdict.FAILED),
        ],
    )
    def test_marks_that_contradict_the_promise_fail(self, marks: int, wrong: int, verdict: Verdict) -> None:
        found = judge(PRECISION, marks, wrong, (), MANY)

        assert (found.verdict, found.more_marks, found.looks) == (verdict, None, ())

    @pytest.mark.parametrize(
        ("promise", "rows", "wrong", "verdict"),
        [
            (PRECISION, 100, 5, Verdict.CERTIFIED),
            (PRECISION, 100, 6, Verdict.FAILED),
            (MISS, 20, 1, Verdict.CERTIFIED),
            (MISS, 20, 2, Verdict.FAILED),
        ],
    )
    def test_the_truth_is_known_once_all_rows_are_marked(
        self, promise: Promise, rows: int, wrong: int, verdict: Verdict
    ) -> None:
        spent = tuple(Look(marks=marks, wrong=1) for marks in (15, 16, 17, 18))

        found = judge(promise, rows, wrong, spent, rows)

        assert (found.verdict, found.looks[-1]) == (verdict, Look(marks=rows, wrong=wrong))
        assert judge(promise, rows, wrong, found.looks, rows) == found

    def test_few_rows_are_all_to_be_marked(self) -> None:
        assert judge(PRECISION, 0, 0, (), 30).more_marks == 30
        assert judge(PRECISION, 20, 1, (), 30).more_marks == 10
        assert judge(PRECISION, 10, 1, (), 30).more_marks is None

    def test_no_rows_have_no_certificate(self) -> None:
        found = judge(PRECISION, 0, 0, (), 0)

        assert (found.verdict, found.more_marks, found.reason) == (
            Verdict.NOT_YET,
            None,
            "there are no rows",
        )

    def test_labels_that_share_delta_need_more(self) -> None:
        assert judge(PRECISION, 72, 0, (), MANY, labels_jointly=5).more_marks == 104 - 72  # 0.95^104 < 0.005

    @pytest.mark.parametrize(("marks", "wrong", "rows"), [(3, 4, 10), (11, 0, 10), (3, -1, 10)])
    def test_numbers_that_cannot_be(self, marks: int, wrong: int, rows: int) -> None:
        with pytest.raises(ValueError, match="cannot be"):
            judge(PRECISION, marks, wrong, (), rows)


Strategy = Callable[[Promise, np.ndarray], Judgement]


def as_told(promise: Promise, wrong: np.ndarray) -> Judgement:
    """Mark what `more_marks` says, until there is a verdict."""
    found = judge(promise, 0, 0, (), len(wrong))
    marks = 0
    while found.verdict is Verdict.NOT_YET and found.more_marks:
        marks += found.more_marks
        found = judge(promise, marks, int(wrong[:marks].sum()), found.looks, len(wrong))
    return found


def at_every_chance(promise: Promise, wrong: np.ndarray) -> Judgement:
    """Look after each mark: a look is spent as soon as it can pass."""
    looks: tuple[Look, ...] = ()
    for marks in range(1, len(wrong)):
        if not can_pass(promise, marks, level(len(looks) + 1, 0.95)):
            continue  # `judge` spends no look: see above
        found = judge(promise, marks, int(wrong[:marks].sum()), looks, len(wrong))
        looks = found.looks
        if found.verdict is Verdict.CERTIFIED or len(looks) == MOST_LOOKS:
            break
    return found


def in_doubling_steps(promise: Promise, wrong: np.ndarray) -> Judgement:
    looks: tuple[Look, ...] = ()
    for marks in (100, 200, 400, 800):
        found = judge(promise, marks, int(wrong[:marks].sum()), looks, len(wrong))
        looks = found.looks
        if found.verdict is Verdict.CERTIFIED:
            break
    return found


def samples(wrong_rows: int, orders: int) -> Iterator[np.ndarray]:
    """For 10 sets of wrong rows each: which rows are wrong, in the order in which they are marked."""
    random = np.random.default_rng(16)
    for number in range(orders):
        order = uniform_order(np.arange(MANY), certify_key(f"job-{number}", "cat", 0.5, "hash"))
        for _ in range(10):
            wrong = np.zeros(MANY, bool)
            wrong[random.choice(MANY, wrong_rows, replace=False)] = True
            yield wrong[order]


@pytest.mark.parametrize("strategy", [as_told, at_every_chance, in_doubling_steps])
@pytest.mark.parametrize("promise", [PRECISION, MISS], ids=["precision", "miss"])
def test_a_promise_that_just_fails_is_seldom_certified(promise: Promise, strategy: Strategy) -> None:
    """2,000 certifications with up to four looks, where one right row more would keep the promise."""
    runs = 2_000

    found = [strategy(promise, wrong) for wrong in samples(MANY // 20 + 1, runs // 10)]

    certified = sum(one.verdict is Verdict.CERTIFIED for one in found)
    assert len(found) == runs
    assert 0 < certified / runs <= 0.05 + 2 * sqrt(0.05 * 0.95 / runs)
    assert max(len(one.looks) for one in found) > 1


@pytest.mark.parametrize("promise", [PRECISION, MISS], ids=["precision", "miss"])
def test_200_marks_certify_what_is_clearly_better(promise: Promise) -> None:
    """With 1 % wrong where 5 % are allowed, in one look."""
    found = [judge(promise, 200, int(wrong[:200].sum()), (), MANY) for wrong in samples(MANY // 100, 100)]

    assert sum(one.verdict is Verdict.CERTIFIED for one in found) / len(found) >= 0.75
