"""A report as one JSON value, for the script of the page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from clipfleet import __version__
from clipfleet.contract.label_sets import Certificate, Claim, LabelSet
from clipfleet.labels.intervals import wilson
from clipfleet.labels.marks import MarkVerdict, Purpose
from clipfleet.marking.files import TO_MARK_COLUMNS
from clipfleet.report.building import MOST_ROWS, Report
from clipfleet.report.rows import is_cut, rounded
from clipfleet.report.tallies import BINS, CLOSE, Tally
from clipfleet.report.truth import NO_LABEL, share

_SHOWN_PAIRS = 30


class PageData:
    """The value, and the order in which items need images."""

    def __init__(self, report: Report) -> None:
        self._report = report
        sheets, examples, drawn = self._sheet_items(), self._example_items(), sorted(report.drawing.indexes)
        wanted = chain(drawn, sheets, examples, report.listed)
        self._indexes = sorted(report.page_rows.within_budget(wanted))
        self._positions = {index: position for position, index in enumerate(self._indexes)}
        # The most needed first, each once.
        self.image_order = [
            index
            for index in dict.fromkeys(chain(drawn, sheets, examples, self._indexes))
            if index in self._positions
        ]

    def value(self) -> dict[str, Any]:
        """Everything but images; items are positions in `rows`."""
        report = self._report
        listed = {*report.listed}
        in_list = [position for position, index in enumerate(self._indexes) if index in listed]
        failures = report.failures.summary()
        for code in failures["codes"]:
            code["items"] = self._at(code["items"])
        return {
            "about": self._about(),
            "notes": [*report.notes],
            "sets": [self._set(number) for number in range(len(report.tallies))],
            "focus": report.focus,
            "decisions": self._decisions(),
            "failures": failures,
            "moved": self._moved(),
            "marking": self._marking(),
            "rows": {
                "count": len(self._indexes),
                "items": self._indexes,
                "columns": report.page_rows.columns(self._indexes),
                "answers": [
                    report.page_rows.answers(number, self._indexes) for number in range(len(report.tallies))
                ],
                "listed": None if len(in_list) == len(self._indexes) else in_list,
                "is_sample": len(in_list) < report.rows,
                "most": MOST_ROWS,
            },
        }

    def _at(self, indexes: Sequence[int]) -> list[int]:
        return [self._positions[index] for index in indexes if index in self._positions]

    def _sheet_items(self) -> list[int]:
        samples = [sample for tally in self._report.tallies for sample in tally.samples]
        return sorted({index for sample in samples for index in sample.indexes()})

    def _example_items(self) -> list[int]:
        report = self._report
        found = {*report.failures.examples.indexes(), *(report.moves.shown() if report.moves else ())}
        if report.decisions is not None:
            found.update(report.decisions.examples.indexes())
        return sorted(found)

    def _about(self) -> dict[str, Any]:
        report, job = self._report, self._report.job
        found: dict[str, Any] = {
            "output": report.reader.uri, "rows": report.rows, "ok": report.ok,
            "failed": report.rows - report.ok, "fingerprint": report.fingerprint,
            "finished_at": _iso(report.finished_at), "made_at": _iso(datetime.now(UTC)),
            "clipfleet": __version__, "job_id": None,
        }  # fmt: skip
        if job is None:
            return found
        policy = None if job.policy is None else {"name": job.policy.name, "version": job.policy.version}
        return {
            **found, "job_id": job.job_id, "task": job.task.value, "model": job.model,
            "precision": job.precision.value, "decode": job.decode.value, "source": job.source.uri,
            "source_kind": job.source.kind, "created_at": _iso(job.created_at), "policy": policy,
        }  # fmt: skip

    def _set(self, number: int) -> dict[str, Any]:
        tally = self._report.tallies[number]
        names = tally.answers.numbers.names
        pairs = [[one, other, count] for (one, other), count in tally.pairs.most_common(_SHOWN_PAIRS)]
        truth = tally.truth
        confused = (
            [] if truth is None else [[*pair, n] for pair, n in truth.confused.most_common(_SHOWN_PAIRS)]
        )
        return {
            "name": tally.answers.name,
            "kind": tally.answers.kind,
            "rows": tally.rows,
            "has_thresholds": bool(tally.answers.thresholds),
            "may_be_none": tally.answers.may_be_none,
            "unlabelled": tally.unlabelled,
            "labels": [self._label(number, tally, label) for label in range(len(names))],
            "pairs": {"kind": "together" if tally.answers.is_multi else "close", "close": CLOSE,
                      "is_exact": tally.pairs_are_exact, "pairs": pairs},
            "truth": None if truth is None else {
                "column": truth.column, "rows": truth.rows, "unknown": truth.unknown, "confused": confused,
                "none": NO_LABEL,
            },
        }  # fmt: skip

    def _label(self, number: int, tally: Tally, label: int) -> dict[str, Any]:
        name, answers = tally.answers.numbers.names[label], tally.answers
        doubtful = tally.doubtful.of(label)
        own: dict[str, Any] = {} if tally.truth is None else tally.truth.figures(label)
        if number == self._report.focus and self._report.marked is not None:
            own["marked"] = self._precision_by_marks(number, label, name)
        if answers.label_set is not None:
            own.update(_proof(answers.label_set, name, self._is_here))
        return {
            "name": name,
            "count": tally.chosen[label],
            "threshold": answers.thresholds.get(name),
            "histogram": [tally.histogram[label, place] for place in range(BINS)],
            "doubtful": self._at([index for index, _ in doubtful]),
            "doubtful_scores": [rounded(score) for index, score in doubtful if index in self._positions],
            "uniform": self._at([index for index, _ in tally.uniform.of(label)]),
            **own,
        }

    def _is_here(self, one: Certificate) -> bool:
        job = self._report.job
        return job is not None and (one.job_id, one.model_fingerprint) == (
            job.job_id,
            self._report.fingerprint,
        )

    def _precision_by_marks(self, number: int, label: int, name: str) -> dict[str, Any] | None:
        """Of the rows that have the label: exact by certify marks, else estimated by weighted fit marks."""
        report, marked = self._report, self._report.marked
        assert marked is not None  # noqa: S101 - asked by the caller
        for purpose in (Purpose.CERTIFY, Purpose.FIT):
            items = [
                item
                for item in marked.of(purpose, name)
                if label in report.page_rows.chosen(number, item.item_index)
            ]
            if purpose is Purpose.CERTIFY and items:
                yes = sum(item.verdict is MarkVerdict.YES for item in items)
                return share(yes, len(items), "certify marks")
            clear = [item for item in items if item.verdict in (MarkVerdict.YES, MarkVerdict.NO)]
            if purpose is Purpose.FIT and clear:
                return _weighted(
                    [(item.verdict is MarkVerdict.YES, 1 / item.inclusion_probability) for item in clear]
                )
        return None

    def _decisions(self) -> list[dict[str, Any]] | None:
        if self._report.decisions is None:
            return None
        return [{**one, "items": self._at(one["items"])} for one in self._report.decisions.summary()]

    def _moved(self) -> dict[str, Any] | None:
        if self._report.moves is None:
            return None
        found = self._report.moves.summary()
        for column in found["columns"]:
            for move in column["moves"]:
                move["items"] = self._at(move["items"])
        return found

    def _marking(self) -> dict[str, Any]:
        """The samples with what an export of marks needs of each item."""
        drawing, report = self._report.drawing, self._report
        if drawing.drawn is None:
            return {"reason": drawing.reason, "samples": []}
        samples = [
            {
                "label": sample.label,
                "purpose": sample.purpose.value,
                "threshold": sample.threshold,
                "note": sample.note,
                "plan": list(sample.plan),
                "items": [
                    [self._positions[item.item_index], item.inclusion_probability, rounded(item.score)]
                    for item in sample.items
                    if item.item_index in self._positions
                ],
            }
            for sample in drawing.drawn.samples
        ]
        return {
            "reason": "",
            "set": report.tallies[report.focus].answers.name if report.focus is not None else "",
            "columns": list(TO_MARK_COLUMNS),
            "promises": drawing.drawn.promises,
            "left_out": drawing.drawn.left_out,
            "verdicts": [_verdict(label, one) for label, one in drawing.drawn.verdicts.items()],
            "samples": samples,
            # Rows whose id is shown cut: their marks name them by `item_index` alone.
            "cut_ids": [position for position, index in enumerate(self._indexes) if self._has_cut_id(index)],
        }

    def _has_cut_id(self, index: int) -> bool:
        return is_cut(self._report.page_rows.rows[index].get("item_id"))


def _weighted(marks: Sequence[tuple[bool, float]]) -> dict[str, Any]:
    """A weighted share with Wilson's interval at the effective number of marks (Kish)."""
    total = sum(weight for _, weight in marks)
    value = sum(weight for is_yes, weight in marks if is_yes) / total
    effective = max(1.0, total**2 / sum(weight**2 for _, weight in marks))
    low, high = wilson(min(value * effective, effective), effective)
    return {"value": value, "low": low, "high": high, "n": len(marks), "source": "fit marks (estimate)"}


def _proof(label_set: LabelSet, label: str, is_here: Any) -> dict[str, Any]:
    """What a threshold was chosen for, and the certificate of this threshold."""
    promise = label_set.promises.get(label)
    fitting = [
        one
        for one in label_set.certificates
        if (one.label, one.threshold, one.label_set_hash)
        == (label, label_set.threshold(label), label_set.hash)
    ]
    one = next((one for one in reversed(fitting) if is_here(one)), fitting[-1] if fitting else None)
    found: dict[str, Any] = {}
    if promise is not None:
        found["promise"] = {"claim": promise.claim.value, "value": promise.value}
    if one is not None:
        last = one.looks[-1]
        found["certificate"] = {
            "claim": one.promise.claim.value, "value": one.promise.value, "verdict": one.verdict.value,
            "marks": last.marks, "wrong": last.wrong, "confidence": one.confidence, "output": one.output,
            "at": _iso(one.at), "is_here": is_here(one),
        }  # fmt: skip
        if one.promise.claim is Claim.PRECISION and is_here(one):
            found["certified_precision"] = share(last.marks - last.wrong, last.marks, "certify marks")
    return found


def _verdict(label: str, one: Any) -> dict[str, Any]:
    return {
        "label": label, "verdict": one.verdict.value, "marks": one.marks, "wrong": one.wrong,
        "more_marks": one.more_marks, "reason": one.reason, "population": one.population,
        "claim": one.promise.claim.value, "value": one.promise.value, "threshold": one.threshold,
        "confidence": one.terms.confidence,
    }  # fmt: skip


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat(timespec="seconds")
