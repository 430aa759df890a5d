"""Marks: what people say about items, one verdict on one label of one item. Computes no scores."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clipfleet.errors import UsageError, first_problem
from clipfleet.labels.label_studio import tasks_to_marks
from clipfleet.labels.written_files import read_text_file

MARK_COLUMNS = (
    "item_index", "item_id", "label", "verdict", "purpose", "inclusion_probability", "by", "at",
    "content_hash",
)  # fmt: skip
_OTHER_SEPARATORS = (";", "\t")
_RAREST = 1e-9  # probability of a draw, as of ten marks of ten billion rows; sums of 1 / less lose the others
_REQUIRED = ("item_index", "label", "verdict", "purpose", "inclusion_probability")


class MarkVerdict(StrEnum):
    """Whether an item shows a label; `skip`: the person cannot say."""

    YES = "yes"
    NO = "no"
    SKIP = "skip"


class Purpose(StrEnum):
    """What a mark is for: to choose thresholds, to test one, or to correct labels only.

    A correction is of an item that was not drawn: nothing follows from it for other items.
    """

    FIT = "fit"
    CERTIFY = "certify"
    CORRECT = "correct"


class Mark(BaseModel):
    """One verdict. The item is that of `item_index`, else of `item_id`, else of `uri`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    label: Annotated[str, Field(min_length=1)]
    verdict: MarkVerdict
    purpose: Purpose
    item_index: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    item_id: str | None = None
    uri: str | None = None
    # Of the item in the draw for this purpose and label; fit marks are weighted by its inverse.
    inclusion_probability: Annotated[float, Field(ge=_RAREST, le=1, allow_inf_nan=False)] | None = None
    by: str = ""
    at: datetime | None = None
    content_hash: str | None = None  # of the image that was looked at
    threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None  # of a certify draw
    label_set: str = ""  # name of the label set; empty: not said
    where: str = ""  # file and line, for messages

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value not in (None, "")}

    @field_validator("item_id", "uri", "by", "content_hash", "label_set", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("verdict", "purpose", mode="before")
    @classmethod
    def _without_case(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("at")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        """A time without a zone is UTC, so that times can be compared."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.item_index is None and not self.item_id and not self.uri:
            raise ValueError("item_index: it is missing")
        if self.purpose is Purpose.FIT and self.inclusion_probability is None:
            raise ValueError("inclusion_probability: it is missing, which a fit mark is weighted by")
        return self


def read_marks(paths: Iterable[Path], labels: Sequence[str], set_name: str = "") -> list[Mark]:
    """Read the marks of files, in order: `.csv`, `.jsonl`, or `.json` as Label Studio exports it.

    Rows with an empty verdict are no marks, unknown columns are ignored.

    Args:
        paths: the files.
        labels: of the label set; a Label Studio task without a label of its own answers for each.
        set_name: of the label set, see `tasks_to_marks`: marks that name another one are left out. Empty: all
            are read.

    Raises:
        UsageError: a file cannot be read, or a mark is invalid; the message begins with file and line.
    """
    found: list[Mark] = []
    for path in paths:
        match path.suffix.lower():
            case ".csv":
                values = _csv_rows(path)
            case ".jsonl":
                values = _json_rows(path)
            case ".json":
                values = tasks_to_marks(path, labels, set_name)
            case _:
                raise UsageError(
                    f"{path}: neither .csv nor .jsonl with marks, nor .json as Label Studio exports it"
                )
        found += _marks(values)
    return [mark for mark in found if not (set_name and mark.label_set) or mark.label_set == set_name]


def parse_marks(where: str, text: str) -> list[Mark]:
    """Read the marks of a text of JSON Lines.

    Raises:
        UsageError: a mark is invalid; the message begins with `where` and the line.
    """
    return _marks(_json_lines(where, text))


def _marks(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Mark]:
    return [_mark(where, values) for where, values in rows if values.get("verdict") not in (None, "")]


def count_unanswered(paths: Iterable[Path], labels: Sequence[str], set_name: str = "") -> int:
    """Annotations of Label Studio in which nothing is chosen, so that they are no marks.

    Raises:
        UsageError: a file cannot be read.
    """
    exports = [path for path in paths if path.suffix.lower() == ".json"]
    found = (values for path in exports for _, values in tasks_to_marks(path, labels, set_name))
    return sum(values["verdict"] == "" for values in found)


def is_marked(path: Path) -> bool:
    """Whether a `.csv` or `.jsonl` file of marks has a verdict.

    Raises:
        UsageError: it cannot be read, or has no marks' columns.
    """
    return any(values.get("verdict") not in (None, "") for values in _rows(path))


def is_of(path: Path, purpose: Purpose) -> bool:
    """Whether all rows of a `.csv` or `.jsonl` file, marked or not, are of one purpose.

    Raises:
        UsageError: it cannot be read, or has no marks' columns.
    """
    return all(values.get("purpose") == purpose for values in _rows(path))


def rows_to_mark(path: Path) -> Iterator[dict[str, Any]]:
    """All rows of a `.csv` or `.jsonl` file of marks, marked or not, as they are written.

    Raises:
        UsageError: it cannot be read, or has no marks' columns.
    """
    return _rows(path)


def latest_verdicts(marks: Sequence[tuple[int, Mark]]) -> list[tuple[int, Mark]]:
    """Reduce marks to one verdict per (item, label, by): the latest by `at`, then by position, wins.

    A mark without a time is older than those with one. A person who has marked an item for both purposes has
    one mark for each, both with the latest verdict.

    Args:
        marks: `item_index` and mark, in the order of the files.
    """
    oldest = datetime.min.replace(tzinfo=UTC)
    in_order = sorted(marks, key=lambda pair: pair[1].at or oldest)  # stable: the position decides
    verdicts = {(index, mark.label, mark.by): mark.verdict for index, mark in in_order}
    kept = {(index, mark.label, mark.by, mark.purpose): (index, mark) for index, mark in in_order}
    return [
        (index, mark.model_copy(update={"verdict": verdicts[index, mark.label, mark.by]}))
        for index, mark in kept.values()
    ]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    found = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    return (values for _, values in found)


def _mark(where: str, values: Mapping[str, Any]) -> Mark:
    try:
        return Mark.model_validate({**values, "where": where})
    except ValidationError as error:
        raise UsageError(f"{where}: {first_problem(error)}") from None


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(read_text_file(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in _REQUIRED if name not in header]
        separators = [one for one in _OTHER_SEPARATORS if len(header) == 1 and one in header[0]]
        if missing and separators:
            raise UsageError(
                f"{path}:1: its columns are separated by {separators[0]!r}: save it with ',' as the separator"
            )
        if missing:
            raise UsageError(
                f"{path}:1: there is no column {missing[0]!r}; `clipfleet sample` writes files to mark in"
            )
        while (row := next(reader, None)) is not None:
            where = f"{path}:{reader.line_num}"
            if len(row) > len(header):
                raise UsageError(f"{where}: {len(row)} values for {len(header)} columns")
            yield where, dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return _json_lines(str(path), read_text_file(path))


def _json_lines(name: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not JSON: {getattr(error, 'msg', 'nested too deeply')}") from None
        if not isinstance(values, dict):
            raise UsageError(f"{where}: a mark is a JSON object with {', '.join(_REQUIRED)}")
        missing = [name for name in _REQUIRED if name not in values]
        if missing:
            raise UsageError(f"{where}: {missing[0]}: it is missing")
        yield where, values
