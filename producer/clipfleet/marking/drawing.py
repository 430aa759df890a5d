"""Draws the items to mark next: for a fit, or along the one order of a certificate. Needs numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipfleet.contract.label_sets import Claim, LabelSet
from clipfleet.labels.marks import Purpose, is_of
from clipfleet.labels.sampling import certify_key, fit_key, stratified, uniform_order
from clipfleet.marking.files import remove, to_mark_text, write_text
from clipfleet.marking.matching import MatchedMarks, find_items
from clipfleet.marking.scored_rows import ScoredRows
from clipfleet.results.rows import RowReader

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draw:
    """Items of one label to mark, in order."""

    label: str
    purpose: Purpose
    threshold: float | None  # that is tested
    positions: Positions  # among the scored rows
    inclusion_probabilities: npt.NDArray[np.float64]


def draw_for_fit(rows: ScoredRows, label: str, n: int, marked: MatchedMarks) -> Draw:
    """Draw rows stratified by z, without those marked before.

    Only rows that have the label in their top k can be drawn.
    """
    scores = rows.scores(label)
    before = [item.item_index for item in marked.of(Purpose.FIT, label)]
    candidates = np.flatnonzero(scores.is_exact & ~np.isin(rows.item_index, before))
    positions, shares = stratified(
        scores.z[candidates], n, fit_key(rows.job.job_id, label), rows.item_index[candidates]
    )
    return Draw(label, Purpose.FIT, None, candidates[positions], shares)


def certify_order(rows: ScoredRows, label: str, label_set: LabelSet) -> Positions:
    """All rows that the promise of a label is about, in the order in which they are to be marked.

    Raises:
        UsageError: a row may be among them, but its top k does not have the label.
    """
    promise, accepted = label_set.promises.get(label), rows.accepted(label, label_set)
    is_miss = promise is not None and promise.claim is Claim.MISS
    population = np.flatnonzero(~accepted if is_miss else accepted)
    key = certify_key(rows.job.job_id, label, label_set.threshold(label), label_set.hash)
    return population[uniform_order(rows.item_index[population], key)]


def draw_for_certify(rows: ScoredRows, label: str, n: int, marked: MatchedMarks, label_set: LabelSet) -> Draw:
    """Draw the next n rows of the order that are not marked yet."""
    order = certify_order(rows, label, label_set)
    before = [item.item_index for item in marked.of(Purpose.CERTIFY, label)]
    return next_of_order(
        rows, label, label_set, order, np.flatnonzero(~np.isin(rows.item_index[order], before))[:n]
    )


def next_of_order(
    rows: ScoredRows, label: str, label_set: LabelSet, order: Positions, places: Positions
) -> Draw:
    """The rows at some places of the order; the sample is all of the order up to the last one."""
    share = (int(places[-1]) + 1) / len(order) if len(places) else 1.0
    return Draw(
        label, Purpose.CERTIFY, label_set.threshold(label), order[places], np.full(len(places), share)
    )


def rows_to_mark(
    reader: RowReader, rows: ScoredRows, draws: Sequence[Draw], label_set: LabelSet
) -> Iterator[dict[str, object]]:
    """What a person needs to mark the drawn rows: the columns of a mark, and `uri`, `score`, `threshold`."""
    drawn = {int(index) for draw in draws for index in rows.item_index[draw.positions]}
    facts = find_items(reader, indexes=drawn).by_index
    for draw in draws:
        scores = rows.scores(draw.label, label_set)
        for position, share in zip(
            draw.positions.tolist(), draw.inclusion_probabilities.tolist(), strict=True
        ):
            item = facts[int(rows.item_index[position])]
            yield {
                "item_index": item.item_index,
                "item_id": item.item_id,
                "label": draw.label,
                "verdict": "",
                "purpose": draw.purpose.value,
                "inclusion_probability": share,
                "by": "",
                "at": "",
                "content_hash": item.content_hash or "",
                "uri": item.uri,
                "score": round(float(scores.p[position]), 6) if scores.is_exact[position] else "",
                "threshold": "" if draw.threshold is None else draw.threshold,
            }


def write_to_mark(
    reader: RowReader, rows: ScoredRows, draws: Sequence[Draw], label_set: LabelSet, path: Path
) -> int:
    """Write the drawn rows to a `.csv` or `.jsonl`, and return their number.

    Without any, an earlier such file is removed.

    Raises:
        OutputUnavailableError: the file cannot be written; it is as before.
        UsageError: the earlier file is not one of marks.
    """
    count = sum(len(draw.positions) for draw in draws)
    if count:
        found = rows_to_mark(reader, rows, draws, label_set)
        write_text(path, to_mark_text(found, as_json=path.suffix.lower() == ".jsonl"))
    elif path.exists() and is_of(path, Purpose.CERTIFY):
        remove(path)
    return count
