"""Violations that are found during a run."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ops.chaos.checker import JobLeft, Kind, Sources, Violation, check_job
from ops.chaos.history import History
from ops.chaos.values import References
from ops.chaos.workload import JobPlan

# Only the end of the run shows these: what is under way then, or what workers died of, is not known yet.
_AT_THE_END = (Kind.SCRATCH, Kind.GIVEN_UP)


class Findings:
    """Violations so far. Usable from any thread."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._found: list[Violation] = []
        self._lock = threading.Lock()

    def add(self, violations: Iterable[Violation]) -> None:
        """Note them; one that is known is not noted again."""
        for violation in violations:
            with self._lock:
                if violation in self._found:
                    continue
                self._found.append(violation)
            self._history.note(
                "violation", kind=violation.kind, where=violation.where, detail=violation.detail
            )

    @property
    def found(self) -> list[Violation]:
        """All of them."""
        with self._lock:
            return list(self._found)


class Inspector:
    """Checks a job as soon as its customer sees its end."""

    def __init__(self, sources: Sources, references: References) -> None:
        self._sources = sources
        self._references = references

    def look_at(self, plan: JobPlan, left: JobLeft) -> list[Violation]:
        """What is wrong with a job that has just ended."""
        found = check_job(plan, left, self._sources, self._references)
        return [violation for violation in found if violation.kind not in _AT_THE_END]
