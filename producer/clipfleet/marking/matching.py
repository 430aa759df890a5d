"""Which rows marks are about, and what they say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import StoreVersion
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import UsageError
from clipfleet.labels.marks import (
    Mark,
    MarkVerdict,
    Purpose,
    count_unanswered,
    latest_verdicts,
    read_marks,
)
from clipfleet.results.rows import RowReader
from clipfleet.results.store_rows import SOURCE_KIND

_SAME = 1e-7  # between two thresholds, of which one may have been through float32
_COLUMNS = ("item_index", "item_id", "uri", "status", "content_hash")


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What names an item, for people and for marks."""

    item_index: int
    item_id: str
    uri: str
    is_ok: bool
    content_hash: str | None


@dataclass(frozen=True, slots=True)
class MarkedItem:
    """What all people together say about one label of an item; no verdict: they disagree."""

    item_index: int
    verdict: MarkVerdict | None
    inclusion_probability: float
    has_threshold: bool  # a mark says for which threshold the item was drawn


@dataclass(frozen=True, slots=True)
class MatchedMarks:
    """Marks by purpose and label, in the order of the output."""

    items: Mapping[tuple[Purpose, str], Sequence[MarkedItem]]
    void: Sequence[Mark] = ()  # of an image that has changed since, or of an item that its store has no more
    disagreements: Sequence[tuple[str, int]] = field(default=())  # label and item index
    unanswered: int = 0  # annotations of Label Studio without a choice

    def of(self, purpose: Purpose, label: str) -> Sequence[MarkedItem]:
        """The marked items of a label."""
        return self.items.get((purpose, label), ())


@dataclass(frozen=True, slots=True)
class PlacedMarks:
    """Marks with their items, in the order of the marks."""

    items: Sequence[tuple[ItemFacts, Mark]]
    void: Sequence[Mark]  # see `MatchedMarks`

    def matched(self) -> MatchedMarks:
        """Reduce them to one verdict per item and label."""
        latest = latest_verdicts([(item.item_index, mark) for item, mark in self.items])
        return _reduced(latest, self.void)


def match_marks(reader: RowReader, label_set: LabelSet, marks: Sequence[Mark], where: str) -> MatchedMarks:
    """Match marks to the rows of an output, and reduce them to one verdict per item and label.

    Args and errors: see `place_marks`.
    """
    return place_marks(reader, label_set, marks, where).matched()


def place_marks(
    reader: RowReader, label_set: LabelSet, marks: Sequence[Mark], where: str, *, are_stored: bool = False
) -> PlacedMarks:
    """Find the rows that marks are about, in one pass.

    Where rows are of a store, ids name the items: positions differ between versions, and items go.

    Args:
        reader: of the rows.
        label_set: whose labels the marks are about.
        marks: in the order of their files.
        where: name of the label set in messages.
        are_stored: they are kept beside the rows, which may have been replaced since: marks that do not fit
            are void.

    Raises:
        UsageError: a mark is about an unknown label or item, an item without scores, or another item id.
    """
    for mark in marks:
        if mark.label not in label_set.labels:
            raise UsageError(f"{mark.where}: there is no label {mark.label!r} in {where}")
    are_of_store = _are_of_store(reader)
    if are_of_store:
        marks = [mark.model_copy(update={"item_index": None}) if mark.item_id else mark for mark in marks]
    facts = find_items(reader, marks)
    placed: list[tuple[ItemFacts, Mark]] = []
    void: list[Mark] = []
    for mark in marks:
        if are_of_store and mark.item_id and not facts.has(mark.item_id):
            void.append(mark)
            continue
        try:
            item = facts.item_of(mark)
        except UsageError:
            if not are_stored:
                raise
            void.append(mark)
            continue
        if mark.content_hash and item.content_hash and mark.content_hash != item.content_hash:
            void.append(mark)
        else:
            placed.append((item, mark))
    return PlacedMarks(placed, void)


def _are_of_store(reader: RowReader) -> bool:
    """Whether rows are those of a store, or labels of them."""
    job = reader.job()
    return job is not None and (job.source.kind == SOURCE_KIND or isinstance(job.vectors, StoreVersion))


def read_matched_marks(
    reader: RowReader, label_set: LabelSet, where: str, paths: Sequence[Path], certified: Sequence[str] = ()
) -> MatchedMarks:
    """Read files of marks and match them, see `match_marks`.

    Args:
        reader: of the rows.
        label_set: whose labels the marks are about.
        where: name of the label set in messages.
        paths: the files.
        certified: labels whose certify marks must be of the thresholds of the label set.

    Raises:
        UsageError: a file is not one of marks, or does not match.
    """
    found = read_marks(paths, label_set.labels, label_set.name)
    _require_thresholds(found, label_set, certified)
    matched = match_marks(reader, label_set, found, where)
    return replace(matched, unanswered=count_unanswered(paths, label_set.labels, label_set.name))


def match_stored_marks(reader: RowReader, label_set: LabelSet, marks: Sequence[Mark]) -> MatchedMarks:
    """Match the marks that are kept beside the rows: those on this label set.

    Certify marks that were drawn for another threshold are left out: they test nothing.
    """
    fitting = [
        mark
        for mark in marks
        if mark.label_set == label_set.name
        and mark.label in label_set.labels
        and _is_of_threshold(mark, label_set)
    ]
    return place_marks(reader, label_set, fitting, reader.uri, are_stored=True).matched()


def _require_thresholds(marks: Sequence[Mark], label_set: LabelSet, labels: Sequence[str]) -> None:
    """Refuse certify marks that say that they were drawn for another threshold.

    Raises:
        UsageError: there is one.
    """
    for mark in marks:
        if mark.label in labels and not _is_of_threshold(mark, label_set):
            threshold = label_set.threshold(mark.label)
            raise UsageError(
                f"{mark.where}: drawn for another threshold of {mark.label!r}, {mark.threshold:.6g} and "
                f"not {threshold:.6g}: draw a new sample with `clipfleet sample`"
            )


def _is_of_threshold(mark: Mark, label_set: LabelSet) -> bool:
    """False for a certify mark that says that it was drawn for another threshold."""
    if mark.purpose is not Purpose.CERTIFY or mark.threshold is None:
        return True
    return abs(mark.threshold - label_set.threshold(mark.label)) <= _SAME


def _reduced(latest: Sequence[tuple[int, Mark]], void: Sequence[Mark]) -> MatchedMarks:
    said: dict[tuple[str, int], set[MarkVerdict]] = {}
    for index, mark in latest:
        said.setdefault((mark.label, index), set()).add(mark.verdict)
    verdicts = {key: _together(verdicts) for key, verdicts in said.items()}

    def place(pair: tuple[int, Mark]) -> tuple[str, str, int]:
        return pair[1].purpose.value, pair[1].label, pair[0]

    items: dict[tuple[Purpose, str], list[MarkedItem]] = {}
    for (purpose, label, index), same in groupby(sorted(latest, key=place), place):
        marks = [mark for _, mark in same]
        item = MarkedItem(
            index,
            verdicts[label, index],
            max(mark.inclusion_probability or 1.0 for mark in marks),
            has_threshold=any(mark.threshold is not None for mark in marks),
        )
        items.setdefault((Purpose(purpose), label), []).append(item)
    return MatchedMarks(items, void, sorted(key for key, verdict in verdicts.items() if verdict is None))


def _together(verdicts: set[MarkVerdict]) -> MarkVerdict | None:
    """A yes beside a no is none; a skip beside either does not count."""
    clear = verdicts - {MarkVerdict.SKIP}
    if len(clear) > 1:
        return None
    return next(iter(clear), MarkVerdict.SKIP)


class FoundItems:
    """Items that marks or draws name."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.by_index: dict[int, ItemFacts] = {}
        self._by_id: dict[str, list[ItemFacts]] = {}
        self._by_uri: dict[str, list[ItemFacts]] = {}

    def add(self, item: ItemFacts) -> None:
        """Add an item."""
        self.by_index[item.item_index] = item
        self._by_id.setdefault(item.item_id, []).append(item)
        self._by_uri.setdefault(item.uri, []).append(item)

    def has(self, item_id: str) -> bool:
        """Whether there is an item of this id."""
        return item_id in self._by_id

    def item_of(self, mark: Mark) -> ItemFacts:
        """The item of a mark.

        Raises:
            UsageError: there is none, or several, it has another id, or it has no scores.
        """
        if mark.item_index is not None:
            item = self.by_index.get(mark.item_index)
            if item is None:
                raise UsageError(f"{mark.where}: {self._uri} has no item {mark.item_index}")
        else:
            item = self._named(mark)
        if mark.item_id and mark.item_id != item.item_id:
            raise UsageError(
                f"{mark.where}: item {item.item_index} of {self._uri} has the id {item.item_id!r}, not "
                f"{mark.item_id!r}: are these the marks of another output?"
            )
        if not item.is_ok:
            raise UsageError(
                f"{mark.where}: item {item.item_index} of {self._uri} failed, so it has no scores"
            )
        return item

    def _named(self, mark: Mark) -> ItemFacts:
        found = self._by_id.get(mark.item_id or "", []) or self._by_uri.get(mark.uri or "", [])
        name = mark.item_id or mark.uri
        if not found:
            raise UsageError(f"{mark.where}: {self._uri} has no item {name!r}")
        if len(found) > 1:
            raise UsageError(
                f"{mark.where}: {self._uri} has {len(found)} items {name!r}: name one by its item_index"
            )
        return found[0]


def find_items(reader: RowReader, marks: Iterable[Mark] = (), indexes: Iterable[int] = ()) -> FoundItems:
    """Read the facts of the items that marks name, and of those with these indexes, in one pass."""
    listed = list(marks)
    wanted = {*indexes, *(mark.item_index for mark in listed if mark.item_index is not None)}
    nameless = [mark for mark in listed if mark.item_index is None]
    values = {
        "item_index": pa.array(wanted, pa.int64()),
        "item_id": pa.array({mark.item_id for mark in nameless if mark.item_id}, pa.string()),
        "uri": pa.array({mark.uri for mark in nameless if mark.uri}, pa.string()),
    }
    found = FoundItems(reader.uri)
    for batch in reader.read(list(_COLUMNS)).batches:
        matches = pa.array([False] * batch.num_rows, pa.bool_())
        for name, value_set in values.items():
            if len(value_set):
                matches = pc.or_(matches, pc.is_in(batch[name], value_set=value_set.cast(batch[name].type)))
        for row in batch.filter(matches).to_pylist():
            is_ok = row.pop("status") == ItemStatus.OK
            found.add(ItemFacts(**row, is_ok=is_ok))
    return found
