"""Removes from a log what is kept no longer, by names only: that of a file has its last day."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from clipfleet.moderation.log import RECORDS, VERDICTS, RecordFile, days, record_files
from clipfleet.outputs import Output

_NO_INDEX = 1 << 63  # larger than any
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
    now, files, verdicts = f"{today:%Y%m%d}", 0, 0
    for day in days(output):
        found = list(record_files(output, day))
        over = {file: None for file in found if file.until is not None and file.until < now}
        if not over:
            continue
        # A chunk that was recorded on two days, as those of Redis may be, has a file that is kept longer.
        stale, kept = _Decisions([*over]), _Decisions([file for file in found if file not in over])
        names = [one for one in output.names(f"{VERDICTS}/{day}/") if stale.has(one) and not kept.has(one)]
        files, verdicts = files + len(over), verdicts + len(names)
        if is_dry:
            continue
        for name in (*names, *(file.name for file in over)):
            output.remove(name)
        if not any(record_files(output, day)):
            for folder in (RECORDS, VERDICTS):
                output.remove_folder(f"{folder}/{day}")
    return Pruned(files, verdicts)


class _Decisions:
    """The decisions in some files of one day, by the names of the files."""

    def __init__(self, files: Sequence[RecordFile]) -> None:
        self._spans: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for file in files:
            self._spans.setdefault((file.digest, file.generation), []).append((file.first, file.last))
        for spans in self._spans.values():
            spans.sort()

    def has(self, verdict_name: str) -> bool:
        """Whether a verdict is on one of them."""
        found = _VERDICT.fullmatch(verdict_name.rpartition("/")[2])
        if found is None:
            return False
        spans, index = self._spans.get((found["digest"], int(found["generation"])), []), int(found["index"])
        place = bisect_right(spans, (index, _NO_INDEX)) - 1
        return place >= 0 and index <= spans[place][1]
