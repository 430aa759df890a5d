"""Removes records of decisions whose time has passed, with their verdicts. Decides by names only.

Policies stay: they are small and name nobody, and a submit relies on the one that it has found there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from clipfleet.moderation.log import RECORDS, VERDICTS, RecordFile, days
from clipfleet.outputs import Output

_VERDICT = re.compile(r"(?P<digest>[0-9a-f]{12})-(?P<generation>\d+)-(?P<index>\d+)-\d+-[0-9a-f]+\.json")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, or would be."""

    files: int  # of records
    decisions: int  # at most: by the ranges in the names of the files
    verdicts: int


def prune(output: Output, today: date, *, dry_run: bool = False) -> Pruned:
    """Remove the files of records whose last day is before `today`, and the verdicts on their decisions.

    Files without such a day stay for ever, and so does every object of another name. Safe beside writers and
    other prunes; what an interrupted one has left, the next one removes.
    """
    files = decisions = verdicts = 0
    for day in days(output):
        # Verdicts first: each was added to a record, which the later listing has, if it is still there.
        said = list(output.names(f"{VERDICTS}/{day}/"))
        names = list(output.names(f"{RECORDS}/{day}/"))
        found = [RecordFile.of_name(name) for name in names]
        known = [one for one in found if one is not None]
        over = [one for one in known if one.until is not None and one.until < f"{today:%Y%m%d}"]
        if not over:
            continue
        kept = [one for one in known if one not in over]
        stale = [name for name in said if _is_of(name, day, over) and not _is_of(name, day, kept)]
        files, verdicts = files + len(over), verdicts + len(stale)
        decisions += sum(one.last - one.first + 1 for one in over)
        if dry_run:
            continue
        for name in (
            *stale,
            *(one.name for one in over),
        ):  # verdicts first: records lead the next run to them
            output.remove(name)
        if len(over) == len(names):
            output.remove_folder(f"{RECORDS}/{day}")
            output.remove_folder(f"{VERDICTS}/{day}")
    return Pruned(files, decisions, verdicts)


def _is_of(name: str, day: str, files: list[RecordFile]) -> bool:
    found = _VERDICT.fullmatch(name.rpartition("/")[2])
    if found is None:
        return False
    one = found["digest"], int(found["generation"]), int(found["index"])
    return any(file.covers(day, *one) for file in files)
