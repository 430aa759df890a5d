"""Fills a sample with the verdicts of reviewers, so that decisions on real traffic test a threshold.

Only a drawn sample: what reviewers happened to look at would prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import DECISION_COLUMNS
from clipfleet.contract.policies import DecisionId
from clipfleet.errors import UsageError
from clipfleet.labels.marks import rows_to_mark
from clipfleet.moderation.verdicts import RecordedVerdict, label_key, latest_marks, verdicts_of
from clipfleet.outputs import Output
from clipfleet.results.rows import RowReader

_DECISION_ID = DECISION_COLUMNS[1]


@dataclass(frozen=True, slots=True)
class MarkedSample:
    """The rows of a sample, some of which have a verdict by now."""

    rows: Sequence[Mapping[str, Any]]  # as the sample has them; one for each reviewer of an item
    missing: Sequence[str]  # decisions of the sample that nobody has judged for their label


def marked_sample(reader: RowReader, log: Output, sample: Path, set_name: str | None) -> MarkedSample:
    """Fill the column `verdict` of a sample.

    Of several verdicts of one reviewer the latest counts, also one on appeal.

    Args:
        reader: of the rows that the sample was drawn from.
        log: that holds their decisions.
        sample: a file of `clipfleet sample`.
        set_name: label set of the sample; None: the only one that has the label.

    Raises:
        UsageError: the file is no sample of these rows, or several sets have a label.
    """
    wanted = list(rows_to_mark(sample))
    ids = _decision_ids(reader, {int(row["item_index"]) for row in wanted}, sample)
    found: list[Mapping[str, Any]] = []
    missing: dict[str, None] = {}
    for row in wanted:
        decision_id = ids[int(row["item_index"])]
        marks = list(_marks(verdicts_of(log, DecisionId.of_text(decision_id)), str(row["label"]), set_name))
        found += [{**row, **mark} for mark in marks] or [row]
        if not marks and not row.get("verdict"):
            missing[decision_id] = None
    return MarkedSample(found, [*missing])


def _marks(verdicts: Sequence[RecordedVerdict], label: str, set_name: str | None) -> Iterator[dict[str, str]]:
    """The columns of a mark for each reviewer, from the latest verdict that judges the label."""
    by_reviewer: dict[str, list[RecordedVerdict]] = {}
    for one in verdicts:
        by_reviewer.setdefault(one.by, []).append(one)
    for by, said in by_reviewer.items():
        latest = latest_marks(said)
        sets = [name for name, _, own in (key.partition("/") for key in latest) if own == label]
        if set_name is not None:
            sets = [name for name in sets if name == set_name]
        if len(sets) > 1:
            raise UsageError(
                f"several sets have a label {label!r} ({', '.join(sets)}): name one as `set_name=`"
            )
        for name in sets:
            mark, one = latest[label_key(name, label)]
            at, content_hash = one.at.isoformat(), one.content_hash or ""
            yield {"verdict": mark.value, "by": by, "at": at, "content_hash": content_hash}


def _decision_ids(reader: RowReader, indexes: set[int], sample: Path) -> dict[int, str]:
    schema = reader.read().schema
    if _DECISION_ID not in schema.names:
        raise UsageError(f"{reader.uri}: its rows have no decisions: give the output of `clipfleet moderate`")
    wanted = pa.array(sorted(indexes), pa.int64())
    found: dict[int, str] = {}
    for batch in reader.read(["item_index", _DECISION_ID]).batches:
        some = batch.filter(pc.is_in(batch["item_index"], wanted))
        found.update(zip(some["item_index"].to_pylist(), some[_DECISION_ID].to_pylist(), strict=True))
    unknown = indexes - set(found)
    if unknown:
        raise UsageError(f"{sample}: item {min(unknown)} is not among the rows of {reader.uri}")
    return found
