"""How often the labels of rows are those of a column of their source. Reading the column needs numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from clipfleet.labels.extra import require_numpy
from clipfleet.labels.intervals import clopper_pearson
from clipfleet.report.answers import Answered, Answers
from clipfleet.results.rows import RowReader

NO_LABEL = -1


@dataclass(slots=True)
class Truth:
    """Labels of rows beside the true ones."""

    column: str
    read: Callable[[Any, str], Sequence[int] | None]  # a value and where it stands -> the true labels
    rows: int = 0  # with a truth
    unknown: int = 0  # without one
    chosen: Counter[int] = field(default_factory=Counter)  # rows with a truth that have the label
    right: Counter[int] = field(default_factory=Counter)
    true: Counter[int] = field(default_factory=Counter)
    confused: Counter[tuple[int, int]] = field(default_factory=Counter)  # true label and another one given

    def add(self, rows: pa.RecordBatch, found: Answered) -> None:
        """Count a batch.

        Raises:
            UsageError: a value of the column is no label.
        """
        labels: list[list[int]] = [[] for _ in range(rows.num_rows)]
        for row, label in zip(found.chosen_rows.to_pylist(), found.chosen_labels.to_pylist(), strict=True):
            labels[row].append(label)
        indexes = rows["item_index"].to_pylist()
        for index, given, value in zip(indexes, labels, rows[self.column].to_pylist(), strict=True):
            true = self.read(value, f"item {index}: the truth")
            if true is None:
                self.unknown += 1
            else:
                self._count(given, true)

    def _count(self, given: Sequence[int], true: Sequence[int]) -> None:
        self.rows += 1
        self.chosen.update(given)
        self.true.update(true)
        self.right.update({*given}.intersection(true))
        wrong = [label for label in given if label not in true]
        missed = [label for label in true if label not in given]
        # A wrong label is taken for one that is missing, else for those that the item shows.
        pairs = [(one, other) for one in missed or true or [NO_LABEL] for other in wrong]
        self.confused.update(pairs or [(one, NO_LABEL) for one in missed])

    def figures(self, label: int) -> dict[str, Any]:
        """Precision with its exact 95 % interval, and recall; None where they have no rows."""
        right, chosen, true = self.right[label], self.chosen[label], self.true[label]
        return {"precision": share(right, chosen, "truth"), "recall": right / true if true else None}


def share(count: int, n: int, source: str) -> dict[str, Any] | None:
    """A share with its exact 95 % interval; None: of nothing."""
    if not n:
        return None
    low, high = clopper_pearson(count, n)
    return {"value": count / n, "low": low, "high": high, "n": n, "source": source}


def truth_of(reader: RowReader, answers: Answers, column: str) -> Truth:
    """Read the truth of a label set from a column, as `clipfleet evaluate` does.

    Args:
        reader: of the rows.
        answers: whose labels the truth names.
        column: of the source.

    Raises:
        UsageError: there is no such column, or numpy is missing.
    """
    require_numpy("truth columns")
    from clipfleet.evaluation.truth import Labels, truth_column

    labels = Labels(answers.numbers.names, has_none=answers.kind == "none", is_multi=answers.is_multi)
    return Truth(truth_column(reader, column), labels.truth_of)
