"""Takes marks from files, checks them against the rows of an output, and stores them there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import UsageError
from clipfleet.labels.label_studio import named_sets
from clipfleet.labels.marks import MARK_COLUMNS, Mark, MarkVerdict, count_unanswered, read_marks
from clipfleet.marking.matching import ItemFacts, place_marks
from clipfleet.marking.stored import StoredFile, add_marks, marks_place
from clipfleet.results.label_sets import label_sets_of
from clipfleet.results.rows import RowReader

_REQUIRED = ("item_index", "label", "verdict", "purpose", "inclusion_probability")


@dataclass(frozen=True, slots=True)
class ImportedMarks:
    """What an import has stored."""

    file: StoredFile
    marks: int
    items: int
    void: Sequence[Mark]  # not stored: of an image that has changed since, or of an item that is gone
    unanswered: int  # annotations of Label Studio without a choice


def import_marks(
    reader: RowReader, paths: Sequence[Path], set_name: str | None, now: datetime
) -> ImportedMarks:
    """Store the marks of files beside the rows that they are about. The same marks are stored once.

    Args:
        reader: of the rows.
        paths: see `read_marks`.
        set_name: label set of marks that name none; None: the only one of the job.
        now: the time of the import.

    Raises:
        UsageError: see `marks_place`, `read_marks` and `place_marks`; or there are no marks.
    """
    output = marks_place(reader)
    sets = {one.name: one for one in label_sets_of(reader)}
    if set_name is not None and set_name not in sets:
        raise UsageError(f"{reader.uri}: its job has no label set {set_name!r}; it has {', '.join(sets)}")
    found: dict[str, list[Mark]] = {name: [] for name in sets}
    unanswered = 0
    for path in paths:
        if path.suffix.lower() == ".json":
            marks, empty = _of_label_studio(path, sets, set_name, reader.uri)
            unanswered += empty
        else:
            marks = _of_rows(path, sets, set_name, reader.uri)
        for mark in marks:
            found[mark.label_set].append(mark)
    placed: list[tuple[ItemFacts, Mark]] = []
    void: list[Mark] = []
    for name, marks in found.items():
        if marks:
            of_set = place_marks(reader, sets[name], marks, f"the label set {name!r} of {reader.uri}")
            placed += of_set.items
            void += of_set.void
    if not placed:
        raise UsageError(
            f"{', '.join(map(str, paths))}: no marks that hold for {reader.uri}: nothing to store"
        )
    oldest = datetime.min.replace(tzinfo=UTC)
    placed.sort(key=lambda pair: pair[1].at or oldest)  # stable; the last line wins
    lines = [_line(item, mark) for item, mark in placed]
    file = add_marks(output, lines, int(now.timestamp() * 1000))
    items = {item.item_index for item, _ in placed}
    return ImportedMarks(file, len(lines), len(items), void, unanswered)


def _of_rows(path: Path, sets: dict[str, LabelSet], set_name: str | None, uri: str) -> list[Mark]:
    """The marks of a `.csv` or `.jsonl` file, each with the name of its label set."""
    found = []
    for mark in read_marks([path], ()):
        if mark.label_set and mark.label_set not in sets:
            raise UsageError(
                f"{mark.where}: {uri} has no label set {mark.label_set!r}; it has {', '.join(sets)}"
            )
        name = mark.label_set or _meant(sets, set_name, mark.where, uri)
        found.append(mark.model_copy(update={"label_set": name}))
    return found


def _of_label_studio(
    path: Path, sets: dict[str, LabelSet], set_name: str | None, uri: str
) -> tuple[list[Mark], int]:
    """The marks of an export, each with the name of its label set, and how many annotations are empty."""
    asked = named_sets(path)
    if asked is None:
        names = [_meant(sets, set_name, str(path), uri)]
    elif unknown := sorted(asked.difference(sets)):
        raise UsageError(
            f"{path}: its tasks ask for the label set {unknown[0]!r}, which {uri} does not have; it has "
            f"{', '.join(sets)}"
        )
    else:
        names = [name for name in sets if name in asked and set_name in (None, name)]
    found = []
    for name in names:
        # Where one label is chosen of a thousand, it alone says it all.
        chosen_only = asked is not None and not sets[name].has_thresholds
        for mark in read_marks([path], sets[name].labels, name):
            if mark.verdict is MarkVerdict.YES or not chosen_only:
                found.append(mark.model_copy(update={"label_set": name}))
    return found, sum(count_unanswered([path], sets[name].labels, name) for name in names)


def _meant(sets: dict[str, LabelSet], set_name: str | None, where: str, uri: str) -> str:
    """The label set of marks that name none."""
    if set_name is not None:
        return set_name
    if len(sets) > 1:
        raise UsageError(f"{where}: {uri} has several label sets: choose one with `set=`: {', '.join(sets)}")
    return next(iter(sets))


def _line(item: ItemFacts, mark: Mark) -> str:
    """A mark with what names its item, whatever named it before."""
    values = mark.model_dump(mode="json", include={*MARK_COLUMNS, "threshold", "label_set"})
    values |= {"item_index": item.item_index, "item_id": item.item_id, "uri": item.uri}
    values["content_hash"] = item.content_hash
    kept = {
        name: values[name]
        for name in ("label_set", *MARK_COLUMNS, "uri", "threshold")
        if name in _REQUIRED or values[name] not in (None, "")
    }
    return json.dumps(kept, ensure_ascii=False)
