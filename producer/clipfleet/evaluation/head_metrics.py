"""Metrics of a head by its kind, from its scores or from what rows have of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np

from clipfleet.contract.heads import Head
from clipfleet.errors import UsageError
from clipfleet.evaluation.accepting import AcceptedRows, measure_accepted
from clipfleet.evaluation.measuring import (
    RANKING_RESAMPLES,
    TOO_FEW_CLASSES,
    classification_measured,
    share_interval,
)
from clipfleet.evaluation.outcome import PROBE, Interval, Measured
from clipfleet.evaluation.truth import NONE
from clipfleet.labels.comparing import bootstrap
from clipfleet.labels.metrics import TOP_FIVE, Ranks, auroc, ranks_of

Array = np.ndarray

_ITEMS_AT_ONCE = 4096
_ONE_LABEL = "acc5 is null: rows have one label of a head; evaluate the file of the head on vectors"


@dataclass(frozen=True, slots=True)
class HeadAnswers:
    """What a head says of some items."""

    best: Array  # int (items,): the chosen label; the number of labels where none was accepted
    best_score: Array  # float32 (items,): of the chosen label, else of the best
    accepted: Array  # bool (items, labels); of kind classify nothing is accepted
    # Float32 (items, labels); of kind classify what orders the labels. None: rows have the best one only.
    scores: Array | None

    @classmethod
    def of(cls, head: Head, scores: Array) -> Self:
        """The answers that rows would have, see `head_columns_of` of the worker; `scores` as the field."""
        limits = np.array([np.inf if one is None else one for one in map(head.threshold, head.labels)])
        best, accepted = np.empty(len(scores), np.int64), np.empty(scores.shape, bool)
        has_any = np.empty(len(scores), bool)
        for start in range(0, len(scores), _ITEMS_AT_ONCE):
            part = slice(start, start + _ITEMS_AT_ONCE)
            accepted[part] = np.greater_equal(scores[part].astype(np.float64), limits)
            has_any[part] = accepted[part].any(axis=1)
            choosable = np.where(accepted[part] | ~has_any[part, None], scores[part], -np.inf)
            best[part] = choosable.argmax(axis=1)
        best_score = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        return cls(np.where(has_any, best, len(head.labels)), best_score, accepted, scores)

    def kept(self, mask: Array) -> HeadAnswers:
        """Those of some items."""
        if mask.all():
            return self
        scores = None if self.scores is None else self.scores[mask]
        return HeadAnswers(self.best[mask], self.best_score[mask], self.accepted[mask], scores)

    def over(self, places: Sequence[int], labels: int) -> HeadAnswers:
        """The same with other labels, at whose places its own are; the others never win."""
        target = np.asarray(places, np.int64)
        scores = None
        if self.scores is not None:
            scores = np.full((len(self.best), labels), -np.inf, np.float32)
            scores[:, target] = self.scores
        accepted = np.zeros((len(self.best), labels), bool)
        accepted[:, target] = self.accepted
        return HeadAnswers(np.append(target, labels)[self.best], self.best_score, accepted, scores)


def measure_choice(answers: HeadAnswers, truth: Array, names: Sequence[str]) -> Measured:
    """Measure the labels that a head of kind classify chooses; `truth` is int (items,)."""
    if answers.scores is None:
        ranks = Ranks(answers.best, np.where(answers.best == truth, 0, len(names)))
        notes = [_ONE_LABEL]
    else:
        is_known = np.isfinite(np.take_along_axis(answers.scores, truth[:, None], axis=1)[:, 0])
        rank = np.where(is_known, ranks_of(answers.scores, truth), len(names))
        ranks = Ranks(answers.scores.argmax(axis=1), rank)
        notes = [TOO_FEW_CLASSES] if len(names) < TOP_FIVE else []
    return _of_probe(classification_measured(ranks, truth, names, notes))


def measure_labels(answers: HeadAnswers, truth: Array, names: Sequence[str]) -> Measured:
    """Measure the labels that a head of kind multilabel accepts; `truth` is bool (items, labels)."""
    return _of_probe(measure_accepted(_accepted_rows(answers, truth), names, has_none=False))


def measure_number(answers: HeadAnswers, truth: Array, head: Head) -> Measured:
    """Measure the numbers of a head of kind regress against true ones, float64 (items,).

    Where all true ones are 0 or 1, the head decides whether an image shows its label: how well the numbers
    separate both is measured, and with a threshold what is accepted.
    """
    label = head.labels[0]
    is_decision = bool(np.isin(truth, (0, 1)).all())
    if is_decision and head.threshold(label) is not None:
        found = measure_accepted(_accepted_rows(answers, truth[:, None] == 1), (label,), has_none=True)
        metrics = {name: value for name, value in found.metrics.items() if name != "acc5"}
        notes = tuple(note for note in found.notes if not note.startswith("acc5"))
        return replace(found, metrics=metrics, notes=notes)
    statistics: dict[str, Callable[[Array], float]] = {
        "mean_absolute_error": partial(_weighted, _mean_absolute_error, answers.best_score, truth),
        "pearson": partial(_weighted, _pearson, answers.best_score, truth),
        "spearman": partial(_weighted, _spearman, answers.best_score, truth),
    }
    if is_decision:
        statistics = {"auroc": partial(_weighted, _auroc, answers.best_score, truth)}
    return _numbers_measured(statistics, len(truth))


def _numbers_measured(statistics: Mapping[str, Callable[[Array], float]], items: int) -> Measured:
    metrics: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    for name, statistic in statistics.items():
        value = statistic(np.ones(items, np.int64))
        metrics[name] = None if math.isnan(value) else value
        if metrics[name] is None:
            continue
        if name == "auroc":
            intervals[name] = share_interval(statistic, items, RANKING_RESAMPLES)
        else:
            intervals[name] = bootstrap(statistic, items, resamples=RANKING_RESAMPLES)
    null = [name for name, value in metrics.items() if value is None]
    have = "has" if len(null) == 1 else "have"
    notes = (
        [f"{' and '.join(null)} {have} no value: all numbers, or all true ones, are equal"] if null else []
    )
    resampled = {name: one for name, one in statistics.items() if name not in null}
    return Measured(metrics, intervals, items, notes=tuple(notes), resampled=resampled)


def true_number(value: Any, label: str, where: str) -> float | None:
    """The true number of a value of a column; the label means 1, `none` 0. None: it is empty.

    Raises:
        UsageError: it is neither.
    """
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "" or (isinstance(text, float) and math.isnan(text)):
        return None
    if isinstance(text, str) and text in (label, NONE):
        return float(text == label)
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{where}: {value!r} is no number, and neither {label!r} nor {NONE!r}")
    return number


def _accepted_rows(answers: HeadAnswers, truth: Array) -> AcceptedRows:
    return AcceptedRows(truth, answers.accepted, answers.best, answers.best_score, answers.scores)


def _of_probe(found: Measured) -> Measured:
    """The same, with the names that CLIP_benchmark gives the metrics of a linear probe."""
    return replace(
        found,
        metrics={f"{PROBE}{name}": value for name, value in found.metrics.items()},
        intervals={f"{PROBE}{name}": value for name, value in found.intervals.items()},
        resampled={f"{PROBE}{name}": one for name, one in found.resampled.items()},
        notes=tuple(
            f"{PROBE}{note}" if note.partition(" ")[0] in found.metrics else note for note in found.notes
        ),
    )


def _weighted(
    statistic: Callable[[Array, Array], float], found: Array, truth: Array, weights: Array
) -> float:
    return statistic(np.repeat(found.astype(np.float64), weights), np.repeat(truth, weights))


def _mean_absolute_error(found: Array, truth: Array) -> float:
    return float(np.abs(found - truth).mean())


def _pearson(found: Array, truth: Array) -> float:
    if np.ptp(found) == 0 or np.ptp(truth) == 0:  # the rounding of their mean would correlate
        return math.nan
    first, second = found - found.mean(), truth - truth.mean()
    below = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / below if below else math.nan


def _spearman(found: Array, truth: Array) -> float:
    return _pearson(_mean_ranks(found), _mean_ranks(truth))


def _mean_ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Array = (last - (counts - 1) / 2)[place]
    return means


def _auroc(found: Array, truth: Array) -> float:
    return auroc(found, truth == 1)
