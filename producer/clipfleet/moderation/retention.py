"""Removes from a log what is kept no longer, by names only: that of a file has its last day."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from clipfleet.moderation.log import RECORDS, VERDICTS, RecordFile, all_record_files, record_files
from clipfleet.outputs import Output

_VERDICT = re.compile(r"(?P<digest>[0-9a-f]{12})-(?P<generation>\d+)-(?P<index>\d+)-\d+-[0-9a-f]+\.json")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, or would be."""

    record_files: int
    verdicts: int  # on their decisions


def prune(output: Output, today: date, *, is_dry: bool = False) -> Pruned:
    """Remove the files of records whose time is over, and the verdicts on their decisions.

    Policies stay: they are small, and other records may name them. Safe beside writers. Idempotent: verdicts
    go first, so that a prune that breaks off is completed by the next one.

    Args:
        output: that holds the log.
        today: files that are kept until a day before it are removed.
        is_dry: remove nothing.
    """
    now = f"{today:%Y%m%d}"
    over = [file for file in all_record_files(output) if file.until is not None and file.until < now]
    verdicts = [
        name for day in dict.fromkeys(file.day for file in over) for name in _verdicts(output, day, over)
    ]
    if not is_dry:
        for name in (*verdicts, *(file.name for file in over)):
            output.remove(name)
        for day in dict.fromkeys(file.day for file in over):
            if not any(record_files(output, day)):
                for folder in (RECORDS, VERDICTS):
                    output.remove_folder(f"{folder}/{day}")
    return Pruned(len(over), len(verdicts))


def _verdicts(output: Output, day: str, files: Sequence[RecordFile]) -> Iterator[str]:
    """Names of the verdicts on decisions of a day in some files."""
    spans: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for file in files:
        if file.day == day:
            spans.setdefault((file.digest, file.generation), []).append((file.first, file.last))
    for one in spans.values():
        one.sort()
    for name in output.names(f"{VERDICTS}/{day}/"):
        found = _VERDICT.fullmatch(name.rpartition("/")[2])
        if found is None:
            continue
        index = int(found["index"])
        some = spans.get((found["digest"], int(found["generation"])), [])
        place = bisect_right(some, (index, index + 1)) - 1
        if place >= 0 and some[place][0] <= index <= some[place][1]:
            yield name
