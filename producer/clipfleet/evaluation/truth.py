"""The truth of items, from a column of their source."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipfleet.contract.parts import ITEM_COLUMNS, PART_COLUMNS, extra_column_name
from clipfleet.errors import UsageError
from clipfleet.results.rows import RowReader

BETWEEN_LABELS = "|"
NONE = "none"  # a truth of this name means no label, unless a label has it
_NUMBER = re.compile(r"\d{1,9}")
_SHOWN = 5


class Labels:
    """Names of the labels of an evaluation, by index; all different."""

    def __init__(self, names: Sequence[str], *, has_none: bool = False, is_multi: bool = False) -> None:
        self.names = tuple(names)
        self.has_none = has_none  # an item may have no label
        self.is_multi = is_multi  # and any number of them
        self._index = {name: number for number, name in enumerate(names)}

    def truth_of(self, value: Any, where: str) -> list[int]:
        """Indexes of the labels that a value of the column means: names or indexes; empty for none.

        Raises:
            UsageError: one is neither, or there are more or fewer than an item of this label set has.
        """
        found = [self.index_of(one, where) for one in self._listed(value)]
        if not self.is_multi and len(found) > 1:
            raise UsageError(f"{where}: {value!r} are {len(found)} labels, and the label set allows one")
        if not (self.is_multi or self.has_none or found):
            raise UsageError(f"{where} is empty, and the label set has no `none`")
        return found

    def _listed(self, value: Any) -> Iterator[Any]:
        if isinstance(value, str) and self.is_multi and value not in self._index:
            value = value.split(BETWEEN_LABELS)
        for one in value if isinstance(value, list) else [value]:
            text = one.strip() if isinstance(one, str) else one
            is_nan = isinstance(text, float) and math.isnan(text)
            if text not in (None, "") and not is_nan and not self._means_none(text):
                yield text

    def _means_none(self, text: Any) -> bool:
        may_be_none = (self.has_none or self.is_multi) and text not in self._index
        return may_be_none and isinstance(text, str) and text.lower() == NONE

    def index_of(self, value: Any, where: str) -> int:
        """Index of a label given by name or by index. Raises like `truth_of`."""
        if isinstance(value, str):
            if value in self._index:
                return self._index[value]
            value = int(value) if _NUMBER.fullmatch(value) else value
        if isinstance(value, int | float) and not isinstance(value, bool) and value in range(len(self.names)):
            return int(value)
        more = len(self.names) - _SHOWN
        shown = ", ".join(self.names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        raise UsageError(
            f"{where}: {value!r} is neither a label nor the index of one; the labels are {shown}"
        )


def truth_column(reader: RowReader, name: str) -> str:
    """Name of a source's column in the rows.

    Raises:
        UsageError: there is none; the message names those there.
    """
    present = reader.read().schema.names
    by_lower: dict[str, str] = {column.lower(): column for column in present}
    for wanted in (extra_column_name(name), extra_column_name(name.lower())):
        if wanted.lower() in by_lower and wanted.lower() not in ITEM_COLUMNS:
            return by_lower[wanted.lower()]
    job = reader.job()
    others = job.source.extra_columns if job is not None else _extra(present)
    raise UsageError(
        f"{reader.uri}: the source has no column {name!r}; it has {', '.join(others) or 'none at all'}"
    )


def _extra(names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in PART_COLUMNS]


def matrix_of(found: Sequence[Sequence[int]], labels: int) -> np.ndarray:
    """Indexes of labels by item as bool (items, labels)."""
    matrix = np.zeros((len(found), labels), bool)
    for number, indexes in enumerate(found):
        matrix[number, list(indexes)] = True
    return matrix
