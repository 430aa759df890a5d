"""The truth of items, from a column of their source."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from clipfleet.contract.label_sets import LabelSet, short_hash
from clipfleet.contract.parts import ITEM_COLUMNS, PART_COLUMNS, extra_column_name
from clipfleet.errors import OutputDamagedError, UsageError
from clipfleet.results.rows import RowReader

BETWEEN_LABELS = "|"
NONE = "none"  # a truth of this name means no label, unless a label has it
_NUMBER = re.compile(r"\d{1,9}")
_SHOWN = 5


class Labels:
    """Names of the labels of an evaluation, by index; those of a preset may have duplicates."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        has_none: bool = False,
        is_multi: bool = False,
        said: str = "the labels",
        way_out: str = "",
    ) -> None:
        """`said` names the labels in messages, `way_out` is what to do where a truth is none of them."""
        self.names = tuple(names)
        self._said, self._way_out = said, way_out
        self.has_none = has_none  # an item may have no label
        self.is_multi = is_multi  # and any number of them
        self._indexes: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            self._indexes.setdefault(name, []).append(number)
        self._are_numbers = all(map(_NUMBER.fullmatch, names))

    @property
    def namesakes(self) -> list[list[int]]:
        """Indexes of labels that share their name."""
        return [indexes for indexes in self._indexes.values() if len(indexes) > 1]

    def truth_of(self, value: Any, where: str) -> list[int] | None:
        """Indexes of the labels that a value of the column means: names or indexes; empty: no label.

        None: the value is empty, and an item of this label set has a label, so its truth is not known.

        Raises:
            UsageError: one is neither, or there are more than an item of this label set has.
        """
        found = [self.index_of(one, where) for one in self._listed(value)]
        if not self.is_multi and len(found) > 1:
            raise UsageError(f"{where}: {value!r} are {len(found)} labels, and the label set allows one")
        return found if found or self.is_multi or self.has_none else None

    def answer(self, name: str, truth: Sequence[int], where: str) -> list[int]:
        """Indexes of a label of a row. Rows hold names: of labels that share one, it is the true one."""
        if name not in self._indexes:
            raise UsageError(f"{where}: its label {name!r} is not in the label set")
        indexes = self._indexes[name]
        return [one for one in indexes if one in truth] or indexes[:1]

    def _listed(self, value: Any) -> Iterator[Any]:
        if isinstance(value, str) and self.is_multi and value not in self._indexes:
            value = value.split(BETWEEN_LABELS)
        return (one for one in entries(value) if not self._means_none(one))

    def _means_none(self, text: Any) -> bool:
        may_be_none = (self.has_none or self.is_multi) and text not in self._indexes
        return may_be_none and isinstance(text, str) and text.lower() == NONE

    def index_of(self, value: Any, where: str) -> int:
        """Index of a label given by name, else by index; a number may be a name. Raises like `truth_of`."""
        text = text_of(value)
        indexes = self._indexes.get(text, [])
        if len(indexes) > 1:
            shared = " and ".join(map(str, indexes))
            raise UsageError(f"{where}: {value!r} is the name of labels {shared}: give the index")
        if indexes:
            return indexes[0]
        if not self._are_numbers and _NUMBER.fullmatch(text) and int(text) < len(self.names):
            return int(text)
        more = len(self.names) - _SHOWN
        shown = ", ".join(self.names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        problem = "is neither a label nor the index of one"
        if self._are_numbers:
            problem = "is not a label, and indexes are not read where all labels are numbers"
        raise UsageError(f"{where}: {value!r} {problem}; {self._said} are {shown}{self._way_out}")


def entries(value: Any) -> Iterator[Any]:
    """What a value of a truth column holds, of a list each entry: neither blank nor NaN."""
    for one in value if isinstance(value, list) else [value]:
        text = one.strip() if isinstance(one, str) else one
        is_nan = isinstance(text, float) and math.isnan(text)
        if text not in (None, "") and not is_nan:
            yield text


def text_of(value: Any) -> str:
    """Text of a name or an index; a column of whole numbers with gaps is one of floats."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def texts_of(reader: RowReader, label_set: LabelSet, way_out: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels and templates of a label set; those of a preset are stored with a finished output.

    Raises:
        UsageError: they are not stored there; the message ends with the way out.
        OutputDamagedError: they are no texts.
    """
    if label_set.preset is None:
        return label_set.labels, label_set.templates
    for stored in reader.label_sets() or ():
        if stored.get("preset") == label_set.preset:
            labels, templates = (tuple(stored.get(name) or ()) for name in ("labels", "templates"))
            if not labels or not templates or not all(isinstance(one, str) for one in (*labels, *templates)):
                raise OutputDamagedError(f"{reader.uri}: the stored labels of {label_set.preset} are damaged")
            return labels, templates
    raise UsageError(f"{reader.uri}: the labels of {label_set.preset} are not stored here: {way_out}")


def items_hash(ids: Sequence[str], values: Sequence[Any]) -> str:
    """Hash of items and of what the column says of them, whatever the labels of an evaluation are."""
    return short_hash([list(ids), [repr(value) for value in values]])


def data_hash(items: Iterable[tuple[str, object]]) -> str:
    """SHA-256 of items and of what is known of each, which the head that is fitted on them keeps.

    Args:
        items: id, and its label, or for several labels a list of pairs: the label, and whether it is shown.
    """
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, ensure_ascii=False).encode())
    return digest.hexdigest()


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
