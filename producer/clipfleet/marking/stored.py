"""Marks that are kept beside the rows of an output, in files that are added and never changed.

    _marks/<unix ms>-<16 digits of the sha256>.jsonl   of one import

A later file has a higher number. No job removes them: neither a retry nor one that replaces the rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from clipfleet.errors import UsageError
from clipfleet.labels.marks import Mark, parse_marks
from clipfleet.outputs import Output
from clipfleet.results.part_rows import PartRows
from clipfleet.results.rows import RowReader

FOLDER = "_marks"
_NAME = re.compile(rf"{FOLDER}/(?P<ms>\d{{13,}})-(?P<digits>[0-9a-f]{{16}})\.jsonl")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of marks."""

    name: str  # relative to the output
    is_new: bool  # False: a file with the same marks was there already


def marks_place(reader: RowReader) -> Output:
    """The output beside whose rows marks are kept.

    Raises:
        UsageError: the rows are not those of a folder or an S3 prefix.
    """
    if not isinstance(reader, PartRows):
        raise UsageError(
            f"{reader.uri}: marks are stored beside the rows of a job in a folder or on S3: give the job an "
            "`output=`, or the files of marks to each command as `marks=`"
        )
    return reader.output


def stored_marks(reader: RowReader) -> list[Mark]:
    """All marks beside the rows, those of earlier imports first; none where they cannot be stored.

    Raises:
        UsageError: a file is not as it was written.
    """
    if not isinstance(reader, PartRows):
        return []
    found: list[Mark] = []
    for name in _names(reader.output):
        data = reader.output.read(name)
        where = f"{reader.uri}/{name}"
        try:
            found += parse_marks(where, (data or b"").decode())
        except UnicodeDecodeError:
            raise UsageError(f"{where}: not UTF-8 text") from None
    return found


def add_marks(output: Output, lines: Sequence[str], now_ms: int) -> StoredFile:
    """Add a file of marks, unless there is one with the same lines. Idempotent.

    Args:
        output: beside whose rows.
        lines: one JSON object each.
        now_ms: unix time; the number of the file is higher than those of all others, whatever their clocks.
    """
    data = "".join(f"{line}\n" for line in lines).encode()
    digits = hashlib.sha256(data).hexdigest()[:16]
    there = _names(output)
    for name in there:
        if name.endswith(f"-{digits}.jsonl"):
            return StoredFile(name, is_new=False)
    number = max([now_ms, *(_number(name) + 1 for name in there)])
    name = f"{FOLDER}/{number:013d}-{digits}.jsonl"
    return StoredFile(name, is_new=output.create(name, data))


def _names(output: Output) -> list[str]:
    return sorted(filter(_NAME.fullmatch, output.names(f"{FOLDER}/")), key=_number)


def _number(name: str) -> int:
    return int(name.rpartition("/")[2].partition("-")[0])
