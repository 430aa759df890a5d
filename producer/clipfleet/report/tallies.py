"""Exact figures of one label set or head: counts, histograms, pairs of labels, and samples of each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.report.answers import Answered, Answers
from clipfleet.report.samples import Smallest, uniform_keys
from clipfleet.report.truth import Truth

BINS = 20
CLOSE = 0.1  # two labels of a softmax whose scores differ by less are hard to tell apart
_MOST_PAIRS = 200_000  # that are counted at a time
_PAIR = 1 << 24  # numbers of two labels in one number


class Tally:
    """Figures of one label set or head, batch by batch."""

    def __init__(self, answers: Answers, per_label: int, truth: Truth | None = None) -> None:
        self.answers = answers
        self.truth = truth
        self.rows = 0  # ok rows that it answers for
        self.unlabelled = 0
        self.chosen: Counter[int] = Counter()  # rows by number of their label
        self.histogram: Counter[tuple[int, int]] = Counter()  # scores by number of the label and bin
        self.pairs: Counter[tuple[int, int]] = Counter()
        self.pairs_are_exact = True
        self.doubtful = Smallest((per_label + 1) // 2)
        self.uniform = Smallest(per_label // 2)

    @property
    def samples(self) -> tuple[Smallest, ...]:
        """What it keeps rows for."""
        return self.doubtful, self.uniform

    def add(self, batch: pa.RecordBatch) -> Iterator[int]:
        """Count a batch; iterate over the `item_index` of the rows that its samples take."""
        rows = self.answers.rows_of(batch)
        if not rows.num_rows:
            return
        found = self.answers.of(rows)
        if self.truth is not None:
            self.truth.add(rows, found)
        self.rows += len(found.item_index)
        self.unlabelled += pc.sum(pc.equal(found.chosen_sizes, 0)).as_py()
        self.chosen.update(_counted(found.chosen_labels))
        self._add_scores(found)
        margins = _Margins(found)
        self._add_pairs(found, margins)
        yield from self._add_samples(found, margins)

    def _add_scores(self, found: Answered) -> None:
        bins = pc.min_element_wise(
            pc.floor(pc.multiply(found.entry_scores, BINS)).cast(pa.int64(), safe=False), BINS - 1
        )
        both = pc.add(pc.multiply(found.entry_labels.cast(pa.int64()), BINS), pc.max_element_wise(bins, 0))
        for code, count in _counted(both).items():
            self.histogram[divmod(code, BINS)] += count

    def _add_pairs(self, found: Answered, margins: _Margins) -> None:
        if self.answers.is_multi:
            self.pairs.update(_together(found))
        elif not self.answers.thresholds:
            close = pc.less(margins.values, CLOSE)
            both = pc.add(
                pc.multiply(margins.first.filter(close).cast(pa.int64()), _PAIR),
                margins.second.filter(close).cast(pa.int64()),
            )
            for code, count in _counted(both).items():
                self.pairs[divmod(code, _PAIR)] += count
        if len(self.pairs) > _MOST_PAIRS:
            self.pairs = Counter(dict(self.pairs.most_common(_MOST_PAIRS // 2)))
            self.pairs_are_exact = False

    def _add_samples(self, found: Answered, margins: _Margins) -> Iterator[int]:
        indexes = found.item_index
        if self.answers.thresholds:
            names = self.answers.numbers.names
            limits = pa.array([self.answers.thresholds.get(name) for name in names], pa.float64())
            distance = pc.abs(pc.subtract(found.entry_scores, limits.take(found.entry_labels)))
            has = pc.is_valid(distance)
            yield from self.doubtful.add(
                found.entry_labels.filter(has), distance.filter(has),
                indexes.take(found.entry_rows.filter(has)), found.entry_scores.filter(has),
            )  # fmt: skip
        else:
            yield from self.doubtful.add(
                margins.first, margins.values, indexes.take(margins.rows), margins.scores
            )
        rows = indexes.take(found.chosen_rows)
        nothing = pa.nulls(len(rows), pa.float64())
        yield from self.uniform.add(found.chosen_labels, uniform_keys(rows), rows, nothing)


class _Margins:
    """How far the best score of each row is above the next one; rows with one score are left out."""

    def __init__(self, found: Answered) -> None:
        starts, at = [], 0
        several = []
        for row, size in enumerate(found.sizes.to_pylist()):
            if size > 1:
                starts.append(at)
                several.append(row)
            at += size
        one = pa.array(starts, pa.int64())
        two = pc.add(one, 1)
        self.rows = pa.array(several, pa.int64())
        self.first, self.second = found.entry_labels.take(one), found.entry_labels.take(two)
        self.scores = found.entry_scores.take(one)
        self.values = pc.subtract(self.scores, found.entry_scores.take(two))


def _counted(values: pa.Array) -> dict[int, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()}


def _together(found: Answered) -> Counter[tuple[int, int]]:
    """Pairs of labels that the same row has, the smaller number first."""
    several = pc.greater(found.chosen_sizes, 1).take(found.chosen_rows)
    by_row: dict[int, list[int]] = {}
    for row, code in zip(
        found.chosen_rows.filter(several).to_pylist(),
        found.chosen_labels.filter(several).to_pylist(),
        strict=True,
    ):
        by_row.setdefault(row, []).append(code)
    counts: Counter[tuple[int, int]] = Counter()
    for codes, rows in Counter(tuple(sorted({*row})) for row in by_row.values()).items():
        for number, one in enumerate(codes):
            for other in codes[number + 1 :]:
                counts[one, other] += rows
    return counts


class Decisions:
    """Rows by decision of a policy, with examples."""

    def __init__(self, column: str, examples: int) -> None:
        self._column = column
        self.names: list[str] = []
        self.counts: Counter[str] = Counter()
        self.examples = Smallest(examples)

    def add(self, batch: pa.RecordBatch) -> list[int]:
        """Count a batch; return the `item_index` of the rows that its sample takes."""
        column = batch[self._column]
        for entry in pc.value_counts(column).to_pylist():
            name = entry["values"] or "undecided"
            self.counts[name] += entry["counts"]
            if name not in self.names:
                self.names.append(name)
        filled = pc.fill_null(column, "undecided")
        codes = pc.index_in(filled, value_set=pa.array(self.names, pa.string()))
        indexes = batch["item_index"]
        return self.examples.add(
            codes, uniform_keys(indexes), indexes, pa.nulls(batch.num_rows, pa.float64())
        )

    def summary(self) -> list[dict[str, Any]]:
        """Each decision with its count and the `item_index` of its examples, the most severe first."""
        order = {name: number for number, name in enumerate(("flag", "review", "undecided", "allow"))}
        return [
            {
                "name": name,
                "count": self.counts[name],
                "items": [index for index, _ in self.examples.of(self.names.index(name))],
            }
            for name in sorted(self.names, key=lambda name: order.get(name, len(order)))
        ]
