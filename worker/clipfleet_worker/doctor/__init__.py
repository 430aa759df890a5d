"""Checks of everything that a worker with its settings needs, one file per kind. None repairs anything.

A check leaves nothing behind. Each has its own timeout, so that a server that accepts connections and never
answers does not block the other checks.
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
    WARNING = "warning"  # the worker works, but slower or less safely
    PROBLEM = "problem"  # jobs would fail, wait for ever or get lost


@dataclass(frozen=True, slots=True)
class Finding:
    """One line and its remedy; `examine` fills in `check`."""

    level: Level
    what: str
    remedy: str = ""  # of a warning or a problem: never empty
    check: str = ""


def fine(what: str) -> Finding:
    """Make a finding that needs no action."""
    return Finding(Level.OK, what)


def warning(what: str, remedy: str) -> Finding:
    """Make a finding of `Level.WARNING`."""
    return Finding(Level.WARNING, what, remedy)


def problem(what: str, remedy: str) -> Finding:
    """Make a finding of `Level.PROBLEM`."""
    return Finding(Level.PROBLEM, what, remedy)


@dataclass(frozen=True, slots=True)
class Check:
    """One check; every failure of the world becomes a finding, never an exception."""

    name: str  # one word
    limit_seconds: float  # timeout of each finding
    findings: Callable[[], Iterator[Finding]]  # lazily, in another thread


class CheckBroke(RuntimeError):  # noqa: N818 - its thread has printed the error
    """A check raised: a bug of ours."""


class _Mark(StrEnum):
    ENDED = "ended"
    BROKE = "broke"


def examine(checks: Sequence[Check]) -> Iterator[Finding]:
    """Run the checks one after the other, and yield their findings.

    Raises:
        CheckBroke: a check raised; its thread has printed the traceback.
    """
    for check in checks:
        for finding in _bounded(check):
            yield Finding(finding.level, finding.what, finding.remedy, check.name)


def _bounded(check: Check) -> Iterator[Finding]:
    found: SimpleQueue[Finding | _Mark] = SimpleQueue()
    # A daemon: a check that hangs does not delay the end of the program.
    thread = threading.Thread(target=_fill, args=(check, found), name=check.name, daemon=True)
    thread.start()
    while True:
        try:
            finding = found.get(timeout=check.limit_seconds)
        except Empty:
            yield problem(
                f"no answer within {check.limit_seconds:g} s",
                "find out what hangs; a worker would hang, too",
            )
            return
        if finding is _Mark.BROKE:
            thread.join()  # until the traceback is printed
            raise CheckBroke(f"the check {check.name} failed with an exception")
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
