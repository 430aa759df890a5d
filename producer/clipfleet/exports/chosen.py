"""The labels that a row has by one label set, for layouts that show labels and no columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipfleet.contract.columns import ACCEPTED_COLUMN, LABEL_COLUMNS, accepted_column, label_columns
from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.parts import extra_column_name


@dataclass(frozen=True, slots=True)
class ChosenLabels:
    """The labels of a label set, and the columns that they are in."""

    label_set: LabelSet
    columns: tuple[str, ...]  # in the order of `LABEL_COLUMNS`
    accepted: str | None
    chooser: str | None  # the column by which each row names its set

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns to read."""
        return (*self.columns, *(one for one in (self.accepted, self.chooser) if one is not None))

    def is_of(self, row: Mapping[str, Any]) -> bool:
        """Whether a row was labelled by this set."""
        return self.chooser is None or str(row[self.chooser]).strip() == self.label_set.name

    def of(self, row: Mapping[str, Any]) -> dict[str, float | None]:
        """The labels of a row with their scores: all that reach their thresholds, or the best one."""
        scores = dict(zip(row[self.columns[2]] or (), row[self.columns[3]] or (), strict=False))
        label = row[self.columns[0]]
        found = row.get(self.accepted) if self.accepted else None
        chosen = found if found is not None else [] if label is None else [label]
        return {one: scores.get(one) for one in chosen}


def chosen_labels(job: Job, sets: Sequence[LabelSet]) -> list[ChosenLabels]:
    """One for each label set.

    Args:
        job: of the rows.
        sets: those of the job, presets with their labels.
    """
    chooser = None if job.label_set_column is None else extra_column_name(job.label_set_column)
    named = {one.name for one in job.named_label_sets}
    found = []
    for one in sets:
        columns = label_columns(one.name) if one.name in named else LABEL_COLUMNS
        accepted = accepted_column(one.name) if one.name in named else ACCEPTED_COLUMN
        has_accepted = one.kind is LabelKind.MULTI and accepted in job.accepted_columns
        found.append(ChosenLabels(one, columns, accepted if has_accepted else None, chooser))
    return found
