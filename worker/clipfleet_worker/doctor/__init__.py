"""What a worker with these settings needs, looked at before it is needed: one file per kind.

A check finds, it mends nothing, and leaves nothing behind. Each has a time of its own, so that a server that
takes connections and never answers does not keep the others from being asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue


class Level(StrEnum):
    """What a finding means for a worker."""

    OK = "ok"
    WARNING = "warning"  # it works, less well or less safely
    PROBLEM = "problem"  # jobs would fail, wait for ever or be lost


@dataclass(frozen=True, slots=True)
class Finding:
    """One line, and what to do about it; `check` is filled in by `examine`."""

    level: Level
    what: str
    remedy: str = ""  # of a warning or a problem: never empty
    check: str = ""


def fine(what: str) -> Finding:
    """Nothing is to be done."""
    return Finding(Level.OK, what)


def warning(what: str, remedy: str) -> Finding:
    """See `Level`."""
    return Finding(Level.WARNING, what, remedy)


def problem(what: str, remedy: str) -> Finding:
    """See `Level`."""
    return Finding(Level.PROBLEM, what, remedy)


@dataclass(frozen=True, slots=True)
class Check:
    """Looks at one thing; whatever the world does to it becomes a finding, never an exception."""

    name: str  # one word
    limit_seconds: float  # after which it is left alone
    findings: Callable[[], Iterator[Finding]]  # in the order in which they are found; in a thread of its own


class CheckBroke(RuntimeError):  # noqa: N818 - what broke it was shown by its own thread
    """A check raised: a bug of ours."""


class _Mark(StrEnum):
    ENDED = "ended"
    BROKE = "broke"


def examine(checks: Sequence[Check]) -> Iterator[Finding]:
    """The findings of all checks, one check after the other.

    Raises:
        CheckBroke: a check raised; its thread has written the traceback.
    """
    for check in checks:
        for finding in _bounded(check):
            yield Finding(finding.level, finding.what, finding.remedy, check.name)


def _bounded(check: Check) -> Iterator[Finding]:
    found: SimpleQueue[Finding | _Mark] = SimpleQueue()
    # A daemon: a check that hangs does not keep the program from ending.
    thread = threading.Thread(target=_fill, args=(check, found), name=check.name, daemon=True)
    thread.start()
    while True:
        try:
            finding = found.get(timeout=check.limit_seconds)
        except Empty:
            yield problem(
                f"no answer within {check.limit_seconds:g} s",
                "find out what hangs there; a worker would hang, too",
            )
            return
        if finding is _Mark.BROKE:
            thread.join()  # until the traceback is written
            raise CheckBroke(f"the check {check.name} broke off")
        if isinstance(finding, _Mark):
            return
        yield finding


def _fill(check: Check, found: SimpleQueue[Finding | _Mark]) -> None:
    mark = _Mark.BROKE
    try:
        for finding in check.findings():
            found.put(finding)
        mark = _Mark.ENDED
    finally:
        found.put(mark)
