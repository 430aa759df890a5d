"""What became of the objects of an output while its job ran, and what of that must not be. Pure.

A part appears once in each generation that writes it, whole, and never again; `_SUCCESS` comes after all that
it vouches for, and goes before any of that changes. What is left of a job does not show this: late writers
write the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from clipfleet import keys


class Act(StrEnum):
    """What happened to an object."""

    APPEARED = "appeared"  # new, or in the place of another one
    MODIFIED = "was written to where it is read"
    REMOVED = "was removed"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one object."""

    job_id: str  # whose output it is in
    name: str
    act: Act


def wrong_changes(changes: Iterable[Change]) -> Iterator[tuple[str, str]]:
    """What should not have happened, as job and description.

    Args:
        changes: in the order in which they happened in each output.
    """
    by_job: dict[str, list[Change]] = {}
    for change in changes:
        by_job.setdefault(change.job_id, []).append(change)
    for job_id, of_job in by_job.items():
        yield from ((job_id, words) for words in _of_parts(of_job))
        yield from ((job_id, words) for words in _of_success(of_job))


def _of_parts(changes: Iterable[Change]) -> Iterator[str]:
    appeared: set[str] = set()  # in this generation
    told = set()
    for change in changes:
        if (change.name, change.act) == (keys.SUCCESS, Act.REMOVED):  # with that a retry begins
            appeared.clear()
        if not change.name.startswith(keys.PART_PREFIX):
            continue
        if change.act is not Act.APPEARED:
            told.add(f"{change.name} {change.act}")
        elif change.name in appeared:
            told.add(f"{change.name} was put in place twice in one generation")
        appeared.add(change.name)
    yield from sorted(told)


def _of_success(changes: Iterable[Change]) -> Iterator[str]:
    has_manifest = is_marked = False
    for change in changes:
        if change.name == keys.SUCCESS:
            is_marked = change.act is not Act.REMOVED
            if is_marked and not has_manifest:
                yield f"{keys.SUCCESS} came before {keys.MANIFEST}"
            has_manifest = has_manifest and is_marked
        elif change.name == keys.MANIFEST:
            has_manifest = True
        elif change.name.startswith(keys.PART_PREFIX) and is_marked and change.act is Act.APPEARED:
            yield f"{change.name} appeared while {keys.SUCCESS} was there"
