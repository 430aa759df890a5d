"""Chooses a threshold for each label of an output by its fit marks. Needs numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipfleet.contract.label_sets import LARGEST_SCORE, Claim, LabelSet, Promise
from clipfleet.errors import UsageError, usage_errors
from clipfleet.labels.calibrating import Calibration, fit
from clipfleet.labels.marks import MarkVerdict, Purpose
from clipfleet.labels.thresholds import Evidence, threshold_for_miss, threshold_for_precision
from clipfleet.marking.matching import MatchedMarks
from clipfleet.marking.scored_rows import Floats, ScoredRows

# A label without a threshold that keeps its promise is on the side where no promise is broken.
_ACCEPT_NONE, _ACCEPT_ALL = 1.0, 0.0


@dataclass(frozen=True, slots=True)
class ChosenThreshold:
    """What the fit marks say about one label. The shares are estimates, proven by nothing."""

    label: str
    marks: int  # that count: yes or no
    yes: int
    threshold: float
    problem: str  # why no threshold keeps the promise; empty: one does
    rows: int
    accepted: int  # rows at or above the threshold
    saturated: int  # rows that share the largest score
    accepted_marks: int
    accepted_yes: int
    precision: float | None  # expected among the rows accepted; None: there are none
    miss: float | None  # expected among the rest


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A label set with slope, intercepts and thresholds, and how they were chosen."""

    label_set: LabelSet
    labels: Sequence[ChosenThreshold]


@dataclass(frozen=True, slots=True)
class _FitMarks:
    """Fit marks of one label with a yes or a no."""

    positions: npt.NDArray[np.int64]  # among the scored rows
    is_yes: npt.NDArray[np.bool_]
    weights: Floats


def calibrate(rows: ScoredRows, marked: MatchedMarks, promise: Promise) -> Calibrated:
    """Fit slope and intercepts, and choose the threshold of each label for a promise.

    Skips and disagreements are left out. A label without marks, or whose promise no threshold keeps, gets a
    threshold of 1 (for `miss`: 0) and no promise. Certificates stay: each names its threshold, and its looks
    are spent should the same one be chosen again.

    Raises:
        UsageError: the marks cannot be fitted, or a row lacks a score that matters.
    """
    label_set = rows.label_set
    marks = {label: _fit_marks(rows, label, marked) for label in label_set.labels}
    calibration = _fitted(rows, marks)
    chosen = [_choose(rows, label, calibration, marks[label], promise) for label in label_set.labels]
    kept = {one.label: promise for one in chosen if not one.problem}
    values = {
        "slope": calibration.slope,
        "intercepts": dict(calibration.intercepts),
        "thresholds": {one.label: one.threshold for one in chosen},
        "promises": kept,
    }
    return Calibrated(LabelSet.model_validate({**dict(label_set), **values}), chosen)


def _fit_marks(rows: ScoredRows, label: str, marked: MatchedMarks) -> _FitMarks:
    clear = [
        item for item in marked.of(Purpose.FIT, label) if item.verdict in (MarkVerdict.YES, MarkVerdict.NO)
    ]
    by_index = np.argsort(rows.item_index, kind="stable")
    indexes = np.array([item.item_index for item in clear], np.int64)
    positions = by_index[np.searchsorted(rows.item_index, indexes, sorter=by_index)] if clear else indexes
    lacking = np.zeros(len(rows.item_index), np.bool_)
    lacking[positions] = ~rows.scores(label).is_exact[positions]
    rows.require_exact(label, lacking)
    return _FitMarks(
        positions,
        np.array([item.verdict is MarkVerdict.YES for item in clear], np.bool_),
        np.array([1 / item.inclusion_probability for item in clear], np.float64),
    )


def _fitted(rows: ScoredRows, marks: Mapping[str, _FitMarks]) -> Calibration:
    if not any(len(one.positions) for one in marks.values()):
        raise UsageError("there are no fit marks: draw items with `clipfleet sample`")
    with usage_errors("the fit marks cannot be fitted: "):
        return fit(
            np.concatenate([rows.scores(label).z[one.positions] for label, one in marks.items()]),
            np.repeat(np.arange(len(marks)), [len(one.positions) for one in marks.values()]),
            np.concatenate([one.is_yes for one in marks.values()]),
            np.concatenate([one.weights for one in marks.values()]),
            list(marks),
        )


def _choose(
    rows: ScoredRows, label: str, calibration: Calibration, marks: _FitMarks, promise: Promise
) -> ChosenThreshold:
    scores = rows.scores(label)
    p = calibration.probabilities(scores.z, label)
    is_miss = promise.claim is Claim.MISS
    threshold, problem = None, "it has no fit marks"
    if len(marks.positions):
        # An upper bound counts as it is for a miss, which it overstates; above a threshold it cannot.
        considered = p if is_miss else p[scores.is_exact]
        threshold = (threshold_for_miss if is_miss else threshold_for_precision)(
            considered,
            promise.value,
            spread=calibration.spreads[label],
            evidence=Evidence(p[marks.positions], marks.is_yes, marks.weights),
        )
        problem = "" if threshold is not None else f"no threshold reaches {promise.claim} {promise.value:g}"
    if threshold is None:
        threshold = _ACCEPT_ALL if is_miss else _ACCEPT_NONE
    else:
        threshold = min(threshold, LARGEST_SCORE)
        rows.require_exact(label, (p >= threshold) & ~scores.is_exact)
    accepted = np.minimum(p, LARGEST_SCORE).astype(np.float64) >= threshold
    of_marks = accepted[marks.positions]
    return ChosenThreshold(
        label=label,
        marks=len(marks.positions),
        yes=int(marks.is_yes.sum()),
        threshold=threshold,
        problem=problem,
        rows=len(p),
        accepted=int(accepted.sum()),
        saturated=rows.saturated(label),
        accepted_marks=int(of_marks.sum()),
        accepted_yes=int(marks.is_yes[of_marks].sum()),
        precision=_mean(p[accepted]),
        miss=_mean(p[~accepted]),
    )


def _mean(p: npt.NDArray[np.float32]) -> float | None:
    return float(p.mean(dtype=np.float64)) if len(p) else None
