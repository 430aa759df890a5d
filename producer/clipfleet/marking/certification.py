"""Tests the thresholds of a label set on one output with certify marks. Needs numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import numpy.typing as npt

from clipfleet.contract.label_sets import Certificate, Claim, LabelSet, Look, Promise, Verdict
from clipfleet.errors import UsageError, usage_errors
from clipfleet.labels.certifying import Judgement, judge
from clipfleet.labels.marks import MarkVerdict, Purpose
from clipfleet.marking.drawing import Draw, Positions, certify_order, next_of_order
from clipfleet.marking.matching import MarkedItem, MatchedMarks
from clipfleet.marking.scored_rows import Flags, ScoredRows
from clipfleet.wording import counted

# Gaps in a sample, by the number of its marks.
_MOST_GAPS, _FEW_GAPS = 1.0, 0.25


@dataclass(frozen=True, slots=True)
class Terms:
    """What a certificate shall claim."""

    confidence: float = 0.95
    labels_jointly: int = 1  # that share delta


@dataclass(frozen=True, slots=True)
class LabelVerdict:
    """Result for one label."""

    label: str
    promise: Promise
    terms: Terms
    threshold: float
    verdict: Verdict
    marks: int
    wrong: int
    population: int  # rows that the promise is about
    population_hash: str
    looks: Sequence[Look]
    more_marks: int | None  # until it is certified at the present share of wrong ones; None: no number serves
    interval: tuple[float, float] | None  # of the precision or the miss
    reason: str
    to_mark: Draw  # the items that are still to be marked
    is_recorded: bool = True  # False: marks are missing, which say nothing on an earlier verdict


@dataclass(frozen=True, slots=True)
class Certification:
    """The tests of a label set on one output."""

    rows: ScoredRows
    label_set: LabelSet
    terms: Terms
    where: str  # name of the label set in messages

    def run(self, label: str, marked: MatchedMarks) -> LabelVerdict:
        """Test one label with all its certify marks; without any, its last look is judged again.

        Raises:
            UsageError: the label has no promise; the marks are not of the order of this threshold; looks were
                spent under other terms.
        """
        promise = self.label_set.promises.get(label)
        if promise is None:
            raise UsageError(
                f"{self.where}: {label!r} has no promise to test: choose its threshold with `clipfleet "
                "calibrate`, or add `promise: {claim: precision, value: 0.95}`"
            )
        order = certify_order(self.rows, label, self.label_set)
        items = {item.item_index: item for item in marked.of(Purpose.CERTIFY, label)}
        indexes = self.rows.item_index[order]
        before = self.certificate(label)
        has_changed = before is not None and before.population != _hash(indexes)
        is_marked = np.isin(indexes, list(items))
        gaps = self._gaps(label, is_marked, list(items.values()), has_changed=has_changed)
        wrong = [_is_wrong(items[index], promise) for index in indexes.tolist() if index in items]
        now = Look(marks=len(wrong), wrong=sum(wrong)) if wrong else None
        if before is None:
            found = self._verdict(label, promise, order, now, (), self.terms)
            return self._with_gaps(found, gaps, order, ()) if len(gaps) else found
        if now is None:
            return self._recorded_verdict(before, order, has_changed=has_changed)
        self._require_its_terms(before, now.marks, is_whole=not len(gaps) and not has_changed)
        is_whole = not len(gaps) or gaps[0] >= before.looks[-1].marks
        if is_whole and not has_changed and self._stands(before, wrong, len(order)):
            return self._recorded_verdict(before, order)
        found = self._verdict(label, promise, order, now, before.looks, self.terms)
        if not len(gaps):
            return found
        is_void = any(mark.label == label and mark.purpose is Purpose.CERTIFY for mark in marked.void)
        found = self._with_gaps(found, gaps, order, before.looks)
        reason = f"the rows have changed since its last look; {found.reason}" if has_changed else found.reason
        return replace(found, is_recorded=has_changed or is_void, reason=reason)

    def _with_gaps(
        self, found: LabelVerdict, gaps: Positions, order: Positions, looks: Sequence[Look]
    ) -> LabelVerdict:
        """The verdict while a sample has gaps, which spends no look."""
        return replace(
            found,
            verdict=Verdict.NOT_YET,
            looks=looks,
            more_marks=len(gaps),
            reason=f"{counted(len(gaps), 'item')} of its sample without a mark",
            to_mark=next_of_order(self.rows, found.label, self.label_set, order, gaps),
        )

    def _recorded_verdict(
        self, before: Certificate, order: Positions, *, has_changed: bool = False
    ) -> LabelVerdict:
        """The verdict that is on record, less one about other rows."""
        terms, last = Terms(before.confidence, before.labels_jointly), before.looks[-1]
        if has_changed:
            found = self._verdict(before.label, before.promise, order, None, before.looks, terms)
            return replace(
                found,
                verdict=Verdict.NOT_YET,
                reason=f"the rows have changed since it was tested with {counted(last.marks, 'mark')}",
            )
        found = self._verdict(before.label, before.promise, order, last, before.looks, terms)
        if found.verdict is before.verdict:
            return found
        reason = "by further or corrected marks, or void ones, that are not given here"
        return replace(found, verdict=before.verdict, reason=reason)

    def _verdict(
        self,
        label: str,
        promise: Promise,
        order: Positions,
        now: Look | None,
        looks: Sequence[Look],
        terms: Terms,
    ) -> LabelVerdict:
        """Judge all marks so far, the first ones of the order."""
        judged = self._judged(promise, now, looks, len(order), terms)
        marks = now.marks if now is not None else 0
        places = np.arange(marks, min(len(order), marks + (judged.more_marks or 0)))
        return LabelVerdict(
            label=label,
            promise=promise,
            terms=terms,
            threshold=self.label_set.threshold(label),
            verdict=judged.verdict,
            marks=marks,
            wrong=now.wrong if now is not None else 0,
            population=len(order),
            population_hash=_hash(self.rows.item_index[order]),
            looks=judged.looks,
            more_marks=judged.more_marks,
            interval=judged.interval,
            reason=judged.reason,
            to_mark=next_of_order(self.rows, label, self.label_set, order, places),
        )

    def _judged(
        self, promise: Promise, now: Look | None, looks: Sequence[Look], population: int, terms: Terms
    ) -> Judgement:
        marks, wrong = (now.marks, now.wrong) if now is not None else (0, 0)
        with usage_errors(f"{self.where}: "):
            return judge(promise, marks, wrong, looks, population, terms.confidence, terms.labels_jointly)

    def _stands(self, before: Certificate, wrong: Sequence[bool], population: int) -> bool:
        """Whether a label stays certified: further marks do not contradict its promise, and no mark of its
        look was corrected to a wrong one.
        """
        if before.verdict is not Verdict.CERTIFIED:
            return False
        last, now = before.looks[-1], Look(marks=len(wrong), wrong=sum(wrong))
        fresh = self._judged(before.promise, now, (), population, self.terms)
        return fresh.verdict is not Verdict.FAILED and sum(wrong[: last.marks]) <= last.wrong

    def certificate(self, label: str) -> Certificate | None:
        """The certificate of this threshold on this output; its looks are spent.

        Raises:
            UsageError: it is of another promise.
        """
        found = [one for one in self.label_set.certificates if one.label == label and self.is_here(one)]
        if not found:
            return None
        if found[-1].promise != self.label_set.promises.get(label):
            raise UsageError(
                f"{self.where}: {label!r} was tested for {_words(found[-1].promise)}: restore this promise, "
                "or choose another threshold"
            )
        return found[-1]

    def _require_its_terms(self, before: Certificate, marks: int, *, is_whole: bool) -> None:
        if (before.confidence, before.labels_jointly) != (self.terms.confidence, self.terms.labels_jointly):
            jointly = f", jointly for {before.labels_jointly} labels" if before.labels_jointly > 1 else ""
            raise UsageError(
                f"{self.where}: {before.label!r} was tested with confidence {before.confidence:g}{jointly}: "
                "repeat this, see `confidence=` and `jointly=`, or choose another threshold"
            )
        if is_whole and marks < before.looks[-1].marks:
            raise UsageError(
                f"{self.where}: {before.label!r} was tested with {before.looks[-1].marks} marks, and {marks} "
                "are given: give all files of marks"
            )

    def is_here(self, certificate: Certificate) -> bool:
        """Whether a certificate is about this output, model and label set."""
        return (
            certificate.job_id, certificate.model_fingerprint, certificate.label_set_hash,
            certificate.threshold,
        ) == (
            self.rows.job.job_id, self.rows.model_fingerprint, self.label_set.hash,
            self.label_set.threshold(certificate.label),
        )  # fmt: skip

    def recorded(self, results: Sequence[LabelVerdict], at: datetime) -> LabelSet:
        """The label set with the looks and verdicts of these results; the same one if none is new."""
        certificates = list(self.label_set.certificates)
        for result in results:
            before = self.certificate(result.label)
            looks = tuple(result.looks)
            is_spent = before is not None and before.looks == looks
            # A verdict is about the present rows; without one the looks are still about those before.
            is_old = is_spent and result.verdict is Verdict.NOT_YET
            population = before.population if before and is_old else result.population_hash
            is_same = before and (before.verdict, before.population) == (result.verdict, population)
            if not looks or not result.is_recorded or (is_spent and is_same):
                continue
            made = Certificate(
                label=result.label,
                threshold=result.threshold,
                promise=result.promise,
                confidence=result.terms.confidence,
                labels_jointly=result.terms.labels_jointly,
                looks=looks,
                verdict=result.verdict,
                output=self.rows.uri if self.rows.job.output_is_redis else self.rows.job.output,
                job_id=self.rows.job.job_id,
                model_fingerprint=self.rows.model_fingerprint,
                label_set_hash=self.label_set.hash,
                population=population,
                at=at,
            )
            if before is None:
                certificates.append(made)
            else:
                certificates[certificates.index(before)] = made
        return self.label_set.model_copy(update={"certificates": tuple(certificates)})

    def _gaps(
        self, label: str, is_marked: Flags, items: Sequence[MarkedItem], *, has_changed: bool
    ) -> Positions:
        """Places of the order that are not marked, before one that is.

        Few are an unfinished sample. Many are another order, sooner where no mark names its threshold; but
        where rows have changed since a test there may be any number.

        Raises:
            UsageError: the marks are no sample of this order.
        """
        there = np.flatnonzero(is_marked)
        gaps = np.flatnonzero(~is_marked[: there[-1] + 1]) if len(there) else there
        if has_changed:
            return gaps
        is_named = all(item.has_threshold for item in items)
        if len(there) < len(items) or len(gaps) > len(items) * (_MOST_GAPS if is_named else _FEW_GAPS):
            raise UsageError(
                f"the certify marks of {label!r} were drawn for another threshold, output or label set than "
                f"{self.label_set.threshold(label):.6g} of {self.where} on {self.rows.uri}, or before it had "
                "these rows: draw a new sample with `clipfleet sample`"
            )
        return gaps


def _is_wrong(item: MarkedItem, promise: Promise) -> bool:
    """Skips and disagreements are wrong."""
    right = MarkVerdict.NO if promise.claim is Claim.MISS else MarkVerdict.YES
    return item.verdict is not right


def _hash(indexes: npt.NDArray[np.int64]) -> str:
    """Short hash of a set of rows, of any order."""
    return hashlib.sha256(np.sort(indexes).astype("<i8").tobytes()).hexdigest()[:16]


def _words(promise: Promise) -> str:
    return f"{promise.claim} {promise.value:g}"
