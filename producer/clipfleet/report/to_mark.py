"""What to mark next: the fit and certify samples of label sets with thresholds. Needs numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from clipfleet.contract.label_sets import LabelSet, Verdict
from clipfleet.labels.certifying import MOST_LOOKS, level, marks_needed, passes
from clipfleet.labels.marks import MarkVerdict, Purpose
from clipfleet.marking.certification import Certification, LabelVerdict, Terms
from clipfleet.marking.drawing import Draw, draw_for_fit
from clipfleet.marking.matching import MatchedMarks
from clipfleet.marking.scored_rows import ScoredRows

MOST_LABELS = 100  # that samples are drawn for
MOST_CERTIFY = 600  # items of one label
_PLANNED_WRONG = 4  # wrong marks that the plan of a sample goes up to


@dataclass(frozen=True, slots=True)
class DrawnItem:
    """An item to mark."""

    item_index: int
    inclusion_probability: float
    score: float | None  # None: below those that the row has


@dataclass(frozen=True, slots=True)
class Sample:
    """The items of one label to mark for one purpose, in order."""

    label: str
    purpose: Purpose
    threshold: float | None  # that is tested
    items: Sequence[DrawnItem]
    note: str = ""
    plan: Sequence[dict[str, int]] = ()  # by number of wrong marks: the marks that prove the promise


@dataclass(frozen=True, slots=True)
class Drawn:
    """The samples of one label set, and what certify marks say so far."""

    samples: Sequence[Sample] = ()
    verdicts: dict[str, LabelVerdict] = field(default_factory=dict)
    promises: int = 0  # labels with one
    left_out: int = 0  # labels beyond the most

    @property
    def indexes(self) -> set[int]:
        """The items to mark."""
        return {item.item_index for sample in self.samples for item in sample.items}


def draw(test: Certification, labels: Sequence[str], marked: MatchedMarks, count: int) -> Drawn:
    """Draw what is still to be marked; the same marks draw the same items.

    A label with a promise gets a certify sample of the size that proves it if no mark is wrong, or, with
    certify marks, if they go on as they are. Others get a fit sample of `count` items, less those marked.

    Raises:
        UsageError: the certify marks are not of the order of the threshold, or a row lacks a score.
    """
    samples, verdicts = [], {}
    promised = [label for label in labels if label in test.label_set.promises]
    for label in labels[:MOST_LABELS]:
        if label in test.label_set.promises:
            verdict = verdicts[label] = test.run(label, marked)
            if verdict.verdict is Verdict.NOT_YET:
                samples.append(_certify_sample(test.rows, verdict))
        missing = count - len(_clear(marked, label))
        if label not in verdicts and missing > 0:
            found = draw_for_fit(test.rows, label, missing, marked)
            samples.append(_sample(test.rows, found))
    return Drawn(
        [one for one in samples if one.items], verdicts, len(promised), max(0, len(labels) - MOST_LABELS)
    )


def certification_of(rows: ScoredRows, label_set: LabelSet, where: str) -> Certification:
    """The test whose certify samples are drawn; nothing is recorded."""
    return Certification(rows, label_set, Terms(), where)


def _clear(marked: MatchedMarks, label: str) -> list[int]:
    clear = (MarkVerdict.YES, MarkVerdict.NO)
    return [item.item_index for item in marked.of(Purpose.FIT, label) if item.verdict in clear]


def _certify_sample(rows: ScoredRows, verdict: LabelVerdict) -> Sample:
    found = _sample(rows, verdict.to_mark)
    note = verdict.reason
    if len(found.items) > MOST_CERTIFY:
        note = f"{note}; the first {MOST_CERTIFY:,} of {len(found.items):,}"
    look = min(len(verdict.looks) + 1, MOST_LOOKS)
    plan = []
    for wrong in range(_PLANNED_WRONG + 1):
        limit = level(look, verdict.terms.confidence, verdict.terms.labels_jointly)
        marks = _least_marks(verdict, wrong, limit)
        if marks is None:
            break
        plan.append({"wrong": wrong, "marks": marks})
    return Sample(found.label, found.purpose, found.threshold, found.items[:MOST_CERTIFY], note, plan)


def _least_marks(verdict: LabelVerdict, wrong: int, limit: float) -> int | None:
    """The least number of marks that proves the promise with so many wrong ones."""
    if wrong == 0:
        return marks_needed(verdict.promise, 0, 0, limit, verdict.population)
    low, high = wrong, verdict.population
    if high < low or not passes(verdict.promise, wrong, high, limit):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(verdict.promise, wrong, middle, limit) else (middle + 1, high)
    return low


def _sample(rows: ScoredRows, drawn: Draw) -> Sample:
    scores = rows.scores(drawn.label)
    items = [
        DrawnItem(
            int(rows.item_index[position]),
            float(probability),
            float(scores.p[position]) if scores.is_exact[position] else None,
        )
        for position, probability in zip(
            drawn.positions.tolist(), drawn.inclusion_probabilities.tolist(), strict=True
        )
    ]
    return Sample(drawn.label, drawn.purpose, drawn.threshold, items)
