"""Tests of a promise with certify marks: the exact binomial, in at most four looks. Pure, without numpy.

Sources: the p-value of "the promise does not hold" is the binomial distribution function at the number of
wrong marks (A. N. Angelopoulos et al., "Learn then Test", arXiv 2110.01052, for one hypothesis); look j
spends delta / 2^j, and all looks together less than delta (Bonferroni). The size of a look may depend on what
earlier looks saw. Counting the wrong marks by hand until they would pass is more looks than four, and voids
the confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from clipfleet.contract.label_sets import Claim, Look, Promise, Verdict
from clipfleet.labels.intervals import binomial_cdf, clopper_pearson
from clipfleet.wording import counted

MOST_LOOKS = 4
_ROUNDING = 1e-9  # relative: 1 wrong of 1 at 0.95 is a tie with delta, not below it


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the certify marks so far say about the promise of one threshold."""

    verdict: Verdict
    looks: tuple[Look, ...]  # those before, and this one where it was spent
    # Until it passes at the present share of wrong marks. 0: no more are needed; None: no number serves.
    more_marks: int | None
    interval: tuple[float, float] | None  # exact, two-sided, of precision or miss; None without marks
    reason: str  # a short clause for people


def level(look: int, confidence: float, labels_jointly: int = 1) -> float:
    """Largest p-value that passes look 1, 2, 3 or 4: `(1 - confidence) / labels_jointly / 2^look`.

    Raises:
        ValueError: there is no such look.
    """
    if not 1 <= look <= MOST_LOOKS:
        raise ValueError(f"there are {MOST_LOOKS} looks, not a look {look}")
    return (1 - confidence) / labels_jointly * 0.5**look


def allowed(promise: Promise) -> float:
    """Largest share of wrong marks that keeps a promise: 1 - precision, or the miss itself."""
    return 1 - promise.value if promise.claim is Claim.PRECISION else promise.value


def passes(promise: Promise, wrong: int, marks: int, level: float) -> bool:
    """Whether marks prove a promise: `binomial_cdf(wrong, marks, allowed(promise)) <= level`.

    Args:
        promise: that is tested.
        wrong: marks against it: not a yes above the threshold, or a yes below it.
        marks: all certify marks.
        level: see `level`.
    """
    return marks > 0 and binomial_cdf(wrong, marks, allowed(promise)) <= level


def can_pass(promise: Promise, marks: int, level: float) -> bool:
    """Whether that many marks prove a promise if none is wrong."""
    return passes(promise, 0, marks, level)


def keeps(promise: Promise, wrong: int, rows: int) -> bool:
    """Whether a promise is true of a population all of whose rows are marked."""
    if promise.claim is Claim.PRECISION:
        return (rows - wrong) / rows >= promise.value
    return wrong / rows <= promise.value


def marks_needed(promise: Promise, wrong: int, marks: int, level: float, most: int) -> int | None:
    """How many more marks until a promise passes, at the present share of wrong ones.

    The wrong marks among n are taken as `ceil(n * wrong / marks)`.

    Args:
        promise: that is tested.
        wrong: marks against it so far.
        marks: so far; 0 is taken as "none will be wrong".
        level: of the look that shall pass.
        most: rows of the population, with those marked.

    Returns:
        None: no number up to `most` serves.
    """
    share = Fraction(wrong, marks) if marks else Fraction(0)
    if share >= allowed(promise):
        return None
    if share == 0:
        return _more(promise, 0, marks, most, level, marks)

    def last(count: int) -> int:  # the most marks of which that many are wrong
        return min(most, int(count / share))

    def serves(count: int) -> bool:
        return passes(promise, count, last(count), level)

    few, many = ceil((marks + 1) * share), ceil(most * share)
    if many > few and serves(many - 1):  # of the last count there may be too few marks
        many -= 1
    if many < few or not serves(many):
        return None
    while few < many:
        middle = (few + many) // 2
        few, many = (few, middle) if serves(middle) else (middle + 1, many)
    return _more(promise, many, int((many - 1) / share), last(many), level, marks)


def _more(promise: Promise, wrong: int, low: int, high: int, level: float, marks: int) -> int | None:
    """The least number of marks above `low` and up to `high` that passes, less those so far."""
    low = max(low, marks)
    if high <= low or not passes(promise, wrong, high, level):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(promise, wrong, middle, level) else (middle, high)
    return high - marks


def judge(
    promise: Promise,
    marks: int,
    wrong: int,
    looks: Sequence[Look],
    population: int,
    confidence: float = 0.95,
    labels_jointly: int = 1,
) -> Judgement:
    """Test a promise with all certify marks so far; the same marks again give the same judgement.

    Args:
        promise: that is tested.
        marks: the first ones of the uniform order.
        wrong: of these: not a yes above the threshold, or a yes below it; skips and disagreements.
        looks: spent before, in order.
        population: rows that the promise is about: those accepted, for `miss` the rest.
        confidence: of the certificate, for all looks together.
        labels_jointly: labels that share delta; 1 for this label separately.

    Raises:
        ValueError: numbers that cannot be: more wrong than marks, or more marks than rows.
    """
    if not 0 <= wrong <= marks <= population:
        raise ValueError(f"{wrong} wrong of {marks} marks of {counted(population, 'row')} cannot be")
    now, before = Look(marks=marks, wrong=wrong) if marks else None, tuple(looks)
    is_new = now is not None and before[-1:] != (now,)
    interval = _interval(promise, wrong, marks, confidence) if marks else None
    if now and marks == population:
        kept = keeps(promise, wrong, population)
        return Judgement(
            Verdict.CERTIFIED if kept else Verdict.FAILED,
            (*before, now) if is_new else before,
            0 if kept else None,
            interval,
            f"all {counted(population, 'row')} are marked",
        )
    if now and is_new and len(before) < MOST_LOOKS:
        spends = can_pass(promise, marks, level(len(before) + 1, confidence, labels_jointly))
        before = (*before, now) if spends else before
    spent = len(before)
    is_look = now is not None and before[-1:] == (now,) and spent <= MOST_LOOKS
    if is_look and passes(promise, wrong, marks, level(spent, confidence, labels_jointly)):
        return Judgement(Verdict.CERTIFIED, before, 0, interval, f"look {spent} of {MOST_LOOKS} passes")
    if _excluded(promise, wrong, marks, (1 - confidence) / labels_jointly):
        return Judgement(Verdict.FAILED, before, None, interval, "the marks contradict the promise")
    if spent >= MOST_LOOKS:
        return Judgement(Verdict.FAILED, before, None, interval, f"all {MOST_LOOKS} looks are spent")
    more = marks_needed(promise, wrong, marks, level(spent + 1, confidence, labels_jointly), population)
    if more is None and population and (not marks or keeps(promise, wrong, marks)):
        more = population - marks
    reason = "at this share of wrong marks no number of marks serves" if more is None else "too few marks"
    return Judgement(Verdict.NOT_YET, before, more, interval, reason if population else "there are no rows")


def _excluded(promise: Promise, wrong: int, marks: int, delta: float) -> bool:
    """Whether so many wrong marks have a probability below delta where the promise just holds."""
    return binomial_cdf(marks - wrong, marks, 1 - allowed(promise)) < delta * (1 - _ROUNDING)


def _interval(promise: Promise, wrong: int, marks: int, confidence: float) -> tuple[float, float]:
    counts = marks - wrong if promise.claim is Claim.PRECISION else wrong
    return clopper_pearson(counts, marks, confidence)
