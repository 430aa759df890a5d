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
from clipfleet.labels.marks import MarkVerdict, rows_to_mark
from clipfleet.moderation.decision_rows import KIND
from clipfleet.moderation.verdicts import RecordedVerdict, verdicts_of
from clipfleet.outputs import Output, open_output
from clipfleet.results.rows import RowReader

_DECISION_ID = DECISION_COLUMNS[1]


@dataclass(frozen=True, slots=True)
class MarkedSample:
    """The rows of a sample, some of which have a verdict by now."""

    rows: Sequence[Mapping[str, Any]]  # as the sample has them; one for each reviewer of an item
    missing: Sequence[str]  # decisions of the sample that nobody has judged for their label


def log_of(reader: RowReader) -> Output:
    """Where the decisions of some rows are recorded.

    Raises:
        UsageError: they are not.
    """
    job = reader.job()
    if job is not None and job.source.kind == KIND:
        return open_output(reader.uri)
    if job is None or job.decisions is None:
        raise UsageError(
            f"{reader.uri}: its decisions are not recorded: give the place that has them as `place=`, or "
            "moderate with an `output=` or `decisions=`"
        )
    return open_output(job.decisions.uri)


def marked_sample(reader: RowReader, log: Output, sample: Path, set_name: str | None) -> MarkedSample:
    """Fill the column `verdict` of a sample.

    Of several verdicts of one reviewer the latest counts; one on appeal takes the place of all before it.

    Args:
        reader: of the rows that the sample was drawn from.
        log: that holds their decisions.
        sample: a file of `clipfleet sample`.
        set_name: label set of the sample; None: the only one that has the label.

    Raises:
        UsageError: the file is no sample of these rows, or several sets have a label.
    """
    wanted = list(rows_to_mark(sample))
    ids = _decision_ids(reader, {_index_of(row, sample) for row in wanted}, sample)
    found: list[Mapping[str, Any]] = []
    missing: dict[str, None] = {}
    for row in wanted:
        decision_id = ids[_index_of(row, sample)]
        marks = list(_marks(verdicts_of(log, DecisionId.of_text(decision_id)), str(row["label"]), set_name))
        found += [{**row, **mark} for mark in marks] or [row]
        if not marks and not row.get("verdict"):
            missing[decision_id] = None
    return MarkedSample(found, [*missing])


def _marks(verdicts: Sequence[RecordedVerdict], label: str, set_name: str | None) -> Iterator[dict[str, str]]:
    """The columns of a mark for each reviewer whose verdict on the label counts."""
    by_set: dict[str, dict[str, tuple[MarkVerdict, RecordedVerdict]]] = {}
    for one in verdicts:
        for key, mark in one.marks.items():
            name, _, own = key.partition("/")
            if own == label and set_name in (None, name):
                said = by_set.setdefault(name, {})
                if one.is_appeal:
                    said.clear()
                said[one.by] = (mark, one)
    if len(by_set) > 1:
        raise UsageError(f"several sets have a label {label!r} ({', '.join(by_set)}): name one as `set=`")
    for said in by_set.values():
        for by, (mark, one) in said.items():
            found = {"verdict": mark.value, "by": by, "at": one.at.isoformat()}
            yield found | ({"content_hash": one.content_hash} if one.content_hash else {})


def _index_of(row: Mapping[str, Any], sample: Path) -> int:
    try:
        return int(row["item_index"])
    except (TypeError, ValueError):
        raise UsageError(
            f"{sample}: {row['item_index']!r} is not an item_index: give a file that `clipfleet sample` wrote"
        ) from None


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
