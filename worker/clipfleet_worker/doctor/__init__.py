"""What a worker with these settings needs, looked at before it is needed: the protocol, one file per kind.

A check finds, it mends nothing, and leaves nothing behind. Each has a time of its own, so that a server that
takes connections and never answers does not keep the others from being asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import Protocol


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


class Check(Protocol):
    """Looks at one thing; whatever the world does to it becomes a finding, never an exception."""

    @property
    def name(self) -> str:
        """One word."""
        ...

    @property
    def limit_seconds(self) -> float:
        """After which it is left alone."""
        ...

    def findings(self) -> Iterator[Finding]:
        """What is found, in the order in which it is found; runs in a thread of its own."""
        ...


_Item = Finding | None


def examine(checks: Sequence[Check]) -> Iterator[Finding]:
    """The findings of all checks, one check after the other.

    Raises:
        BaseException: what a check raised, a bug of ours.
    """
    for check in checks:
        for finding in _bounded(check):
            yield Finding(finding.level, finding.what, finding.remedy, check.name)


def _bounded(check: Check) -> Iterator[Finding]:
    found: SimpleQueue[_Item] = SimpleQueue()
    ended: Future[None] = Future()
    # A daemon: a check that hangs does not keep the program from ending.
    threading.Thread(target=_fill, args=(check, found.put, ended), name=check.name, daemon=True).start()
    try:
        while (finding := found.get(timeout=check.limit_seconds)) is not None:
            yield finding
    except Empty:
        yield problem(
            f"no answer within {check.limit_seconds:g} s",
            "find out what hangs there; a worker would hang, too",
        )
    else:
        ended.result()


def _fill(check: Check, put: Callable[[_Item], None], ended: Future[None]) -> None:
    try:
        for finding in check.findings():
            put(finding)
        ended.set_result(None)
    except BaseException as error:
        ended.set_exception(error)  # raised again by who waits
    finally:
        put(None)
