"""The rows of a page as columns of JSON values, within a budget of bytes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import pyarrow as pa

from clipfleet.parts.json_rows import json_dicts
from clipfleet.report.answers import Answers

MOST_ROWS_BYTES = 24_000_000
MOST_CHARACTERS = 2_000  # of a text that is shown
MOST_SCORES = 50  # of a row, the best ones
_DIGITS = 6
_FEW_VALUES = 0.5  # distinct ones, of all: then a column is written as numbers of its values


# What one label set or head says about a row: the labels that it has; the best labels with their scores.
Said = tuple[list[int], list[int], list[float | None]]


class PageRows:
    """Rows by `item_index`, each with what label sets and heads say about it."""

    def __init__(self, batches: Iterable[pa.RecordBatch], answers: Sequence[Answers]) -> None:
        self._answers = answers
        hidden = {name for one in answers for name in one.columns if name is not None}
        self.rows: dict[int, dict[str, Any]] = {}
        self.said: list[dict[int, Said]] = [{} for _ in answers]
        for batch in batches:
            shown = batch.select([name for name in batch.schema.names if name not in hidden])
            for row in json_dicts(shown):
                self.rows[row["item_index"]] = {name: _cut(value) for name, value in row.items()}
            for one, said in zip(answers, self.said, strict=True):
                said.update(_said(one, batch))

    def chosen(self, number: int, item_index: int) -> Collection[int]:
        """The labels that an item has, by the label set or head of this number."""
        return self.said[number].get(item_index, ((), (), ()))[0]

    def within_budget(self, wanted: Iterable[int], most_bytes: int = MOST_ROWS_BYTES) -> list[int]:
        """As many of these items as fit, in the order in which they are wanted."""
        kept, left = [], most_bytes
        for index in dict.fromkeys(wanted):
            if index not in self.rows:
                continue
            said = [one.get(index, ()) for one in self.said]
            left -= len(json.dumps([list(self.rows[index].values()), said]))
            if left < 0:
                break
            kept.append(index)
        return kept

    def columns(self, indexes: Sequence[int]) -> dict[str, Any]:
        """The rows of these items, by column: a list, or numbers of few values."""
        names = list(next(iter(self.rows.values()), {}))
        return {name: _column([self.rows[index].get(name) for index in indexes]) for name in names}

    def answers(self, number: int, indexes: Sequence[int]) -> dict[str, Any]:
        """What one label set or head says about these items."""
        said = [self.said[number].get(index, ([], [], [])) for index in indexes]
        return dict(zip(("chosen", "labels", "scores"), map(list, zip(*said, strict=True)), strict=False))


def _said(answers: Answers, batch: pa.RecordBatch) -> Mapping[int, Said]:
    rows = answers.rows_of(batch)
    if not rows.num_rows:
        return {}
    found = answers.of(rows)
    indexes = found.item_index.to_pylist()
    said: dict[int, Said] = {index: ([], [], []) for index in indexes}
    for row, label in zip(found.chosen_rows.to_pylist(), found.chosen_labels.to_pylist(), strict=True):
        said[indexes[row]][0].append(label)
    entries = (found.entry_rows, found.entry_labels, found.entry_scores)
    for row, label, score in zip(*(one.to_pylist() for one in entries), strict=True):
        _, labels, scores = said[indexes[row]]
        if len(labels) < MOST_SCORES:
            labels.append(label)
            scores.append(rounded(score))
    return said


def rounded(value: float | None) -> float | None:
    """A number as the page has it; None: none, or one that JSON lacks."""
    return round(value, _DIGITS) if value is not None and isfinite(value) else None


def _cut(value: Any) -> Any:
    """A value with its texts cut, and its numbers rounded."""
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        return f"{value[:MOST_CHARACTERS]}\u2026 ({len(value):,} characters)"
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, list):
        return [_cut(one) for one in value[:MOST_CHARACTERS]]
    if isinstance(value, dict):
        return {name: _cut(one) for name, one in value.items()}
    return value


def is_cut(text: object) -> bool:
    """Whether a text of a row is not whole."""
    return isinstance(text, str) and len(text) > MOST_CHARACTERS


def _column(values: list[Any]) -> Any:
    if any(isinstance(value, list | dict) for value in values):
        return values
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 1 + _FEW_VALUES * len(values) or not any(isinstance(one, str) for one in distinct):
        return values
    numbers = {value: number for number, value in enumerate(distinct)}
    return {"values": distinct, "numbers": [numbers[value] for value in values]}
