"""Thresholds and verdicts as tables, sentences and JSON objects. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from clipfleet.contract.label_sets import Claim, Promise, Verdict
from clipfleet.terminal.console import printable

if TYPE_CHECKING:
    from clipfleet.marking.calibration import ChosenThreshold
    from clipfleet.marking.certification import Certification, LabelVerdict
    from clipfleet.marking.matching import MatchedMarks

_UNKNOWN = "-"


def threshold_table(chosen: Sequence[ChosenThreshold], promise: Promise) -> Table:
    """One line per label: its fit marks, and what is expected of its threshold."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("label", no_wrap=True)
    share = "precision" if promise.claim is Claim.PRECISION else "missed"
    for heading in ("marks", "threshold", f"{share} (estimate)", "accepted", "yes among accepted marks"):
        table.add_column(heading, no_wrap=True, justify="right")
    for one in chosen:
        estimate = one.precision if promise.claim is Claim.PRECISION else one.miss
        table.add_row(
            Text(printable(one.label)),
            str(one.marks),
            _UNKNOWN if one.problem else f"{one.threshold:.4f}",
            _UNKNOWN if one.problem or estimate is None else f"{estimate:.3f}",
            f"{one.accepted / one.rows:.1%}" if one.rows else _UNKNOWN,
            f"{one.accepted_yes} of {one.accepted_marks}",
        )
    return table


def threshold_object(one: ChosenThreshold) -> dict[str, Any]:
    """A chosen threshold as `--json` prints it."""
    return {
        "label": one.label,
        "marks": one.marks,
        "yes": one.yes,
        "threshold": one.threshold,
        "problem": one.problem or None,
        "rows": one.rows,
        "accepted": one.accepted,
        "saturated": one.saturated,
        "accepted_marks": one.accepted_marks,
        "accepted_yes": one.accepted_yes,
        "estimated_precision": one.precision,
        "estimated_miss": one.miss,
    }


def what_does_not_count(marked: MatchedMarks) -> dict[str, Any]:
    """Void marks, disagreements and annotations without an answer as `--json` prints them."""
    return {
        "void": [{"mark": mark.where, "label": mark.label} for mark in marked.void],
        "disagreements": [{"label": label, "item_index": index} for label, index in marked.disagreements],
        "unanswered": marked.unanswered,
    }


def certify_sentences(test: Certification, results: Sequence[LabelVerdict]) -> Iterator[str]:
    """One line per label, and what the confidence is about."""
    for one in results:
        elsewhere = _elsewhere(test, one)
        if elsewhere and not one.looks and not one.marks:
            yield f"{printable(one.label)}: {elsewhere}"
        else:
            yield f"{printable(one.label)}: {_verdict(one)}" + (f"; {elsewhere}" if elsewhere else "")
    groups: dict[int, list[str]] = {}
    for one in results:
        groups.setdefault(one.terms.labels_jointly, []).append(printable(one.label))
    for jointly, labels in groups.items():
        whose = f"{', '.join(labels)}: " if len(groups) > 1 else ""
        if jointly == 1:
            about = "each label separately: the confidence holds for each, not for all together (--jointly)"
        else:
            about = f"jointly: the confidence holds for all {jointly} labels tested together"
        yield whose + about


def certify_object(
    test: Certification, results: Sequence[LabelVerdict], marked: MatchedMarks
) -> dict[str, Any]:
    """The results of a test as `--json` prints them."""
    return {
        "output": test.rows.uri,
        "job_id": test.rows.job.job_id,
        "model_fingerprint": test.rows.model_fingerprint,
        "label_set_hash": test.label_set.hash,
        "labels": [
            {
                "label": one.label,
                "verdict": one.verdict.value,
                "threshold": one.threshold,
                "confidence": one.terms.confidence,
                "labels_jointly": one.terms.labels_jointly,
                "promise": one.promise.model_dump(mode="json"),
                "n": one.marks,
                "k": one.wrong,
                "rows": one.population,
                "looks": [look.model_dump() for look in one.looks],
                "more_marks": one.more_marks,
                "interval": one.interval,
                "reason": one.reason,
                "elsewhere": _elsewhere(test, one) or None,
            }
            for one in results
        ],
        **what_does_not_count(marked),
    }


def _verdict(one: LabelVerdict) -> str:
    match one.verdict:
        case Verdict.CERTIFIED:
            promise = f"{one.promise.claim} {'>=' if one.promise.claim is Claim.PRECISION else '<='}"
            at = (
                f"{promise} {one.promise.value:g} at threshold {one.threshold:.6g}, confidence "
                f"{one.terms.confidence:g}"
            )
            return f"certified (n={one.marks}, k={one.wrong}): {at}"
        case Verdict.NOT_YET if one.more_marks:
            return f"not yet: mark {one.more_marks:,} more (n={one.marks}, k={one.wrong}; {one.reason})"
        case _:
            return f"{one.verdict}: {one.reason} (n={one.marks}, k={one.wrong})"


def _elsewhere(test: Certification, one: LabelVerdict) -> str:
    """Where else the label is certified, if it is not here."""
    if one.verdict is Verdict.CERTIFIED:
        return ""
    found = [
        certificate
        for certificate in test.label_set.certificates
        if certificate.label == one.label
        and certificate.verdict is Verdict.CERTIFIED
        and certificate.label_set_hash == test.label_set.hash
        and not test.is_here(certificate)
    ]
    return f"certified on {found[-1].output}, {found[-1].at:%Y-%m-%d}; not here" if found else ""
