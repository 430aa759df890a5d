"""What became of the objects of an output while its job ran, and what of that must not be. Pure.

A part appears once in each generation that writes it, whole, and never again; `_SUCCESS` comes after all that
it vouches for, and goes before any of that changes. What is left of a job does not show this: late writers
write the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from clipfleet.outputs import objects


class Act(StrEnum):
    """What happened to an object."""

    APPEARED = "appeared"  # new, or in the place of another one
    MODIFIED = "was written to where it is read"
    REMOVED = "was removed"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one object."""

    job_id: str  # whose output it is in
    name: str  # `objects.JOB_FILE` only where it replaced another job's
    act: Act
    content: str = ""  # hash of what appeared, where it is known
    is_conditional: bool = True  # the request named the version to replace, or none was needed


def wrong_changes(
    changes: Iterable[Change], parts: Mapping[str, int], taken: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """What should not have happened, as job and description.

    Args:
        changes: in the order in which they happened in each output.
        parts: how many parts each job may write; the changes of all others are not looked at.
        taken: those of them whose output another job had before. What happened there while it was that one's
            is not looked at.
    """
    by_job: dict[str, list[Change]] = {}
    for change in changes:
        by_job.setdefault(change.job_id, []).append(change)
    for job_id, of_job in by_job.items():
        if job_id not in parts:
            continue
        changes = list(_without_equal_ones(_since_it_was_taken(of_job) if job_id in taken else of_job))
        yield from ((job_id, words) for words in _of_parts(changes, parts[job_id]))
        yield from ((job_id, words) for words in _of_success(changes))


def _since_it_was_taken(changes: Sequence[Change]) -> Sequence[Change]:
    """What comes after the job file was replaced."""
    taken_at = [number for number, change in enumerate(changes) if change.name == objects.JOB_FILE]
    return changes[taken_at[-1] + 1 :] if taken_at else ()


def _without_equal_ones(changes: Iterable[Change]) -> Iterator[Change]:
    """Without parts that a retry has put over equal ones: a store that knows versions by content lets it."""
    content: dict[str, str] = {}
    is_retried = False
    for change in changes:
        is_retried = is_retried or (change.name, change.act) == (objects.SUCCESS, Act.REMOVED)
        is_equal = is_retried and change.content and content.get(change.name) == change.content
        content[change.name] = change.content
        if not (is_equal and change.act is Act.APPEARED and change.is_conditional):
            yield change


def _of_parts(changes: Iterable[Change], parts: int) -> Iterator[str]:
    appeared: set[str] = set()  # in this generation
    told = set()
    for change in changes:
        if (change.name, change.act) == (objects.SUCCESS, Act.REMOVED):  # with that a retry begins
            appeared.clear()
        if not change.name.startswith(objects.LAYOUT.part_prefix):
            continue
        if not change.is_conditional:
            told.add(f"{change.name} was put in place whatever was there")
        if change.act is Act.APPEARED and _chunk_id(change.name) >= parts:
            told.add(f"{change.name} appeared, of another job: this one has {parts} parts")
        if change.act is not Act.APPEARED:
            told.add(f"{change.name} {change.act}")
        elif change.name in appeared:
            told.add(f"{change.name} was put in place twice in one generation")
        appeared.add(change.name)
    yield from sorted(told)


def _chunk_id(part_name: str) -> int:
    return int(part_name.removeprefix(objects.LAYOUT.part_prefix).partition(".")[0])


def _of_success(changes: Iterable[Change]) -> Iterator[str]:
    has_manifest = is_marked = False
    for change in changes:
        if change.name == objects.SUCCESS:
            is_marked = change.act is not Act.REMOVED
            if is_marked and not has_manifest:
                yield f"{objects.SUCCESS} came before {objects.MANIFEST}"
            has_manifest = has_manifest and is_marked
        elif change.name == objects.MANIFEST:
            has_manifest = True
        elif change.name.startswith(objects.LAYOUT.part_prefix) and is_marked and change.act is Act.APPEARED:
            yield f"{change.name} appeared while {objects.SUCCESS} was there"
