"""Watch a run: the changes of outputs, and what customers found."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from clipfleet.outputs import objects
from ops.chaos.changes import Act, Change, wrong_changes
from ops.chaos.checker import Kind, Violation
from ops.chaos.customers import Customers
from ops.chaos.findings import Findings
from ops.chaos.watcher import FolderWatcher
from ops.chaos.workload import BEFORE
from tests.support.s3_front import Done, S3Front

_LOOK_SECONDS = 1.0  # between two looks at all changes
_PATIENCE_SECONDS = 240.0  # of a run that stops at the first violation, for one job


class Observer:
    """A context manager.

    Args:
        folder: of the outputs in folders; it exists.
        front: what all requests to the store pass.
        customers: whose outputs they are.
        findings: of the customers.
    """

    def __init__(self, folder: Path, front: S3Front, customers: Customers, findings: Findings) -> None:
        self._watcher = FolderWatcher(folder)
        self._front = front
        self._customers = customers
        self._findings = findings
        self._looks_at = 0.0

    def __enter__(self) -> Self:
        self._watcher.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.__exit__()

    def wrong_changes(self) -> list[tuple[str, str]]:
        """See `ops.chaos.changes.wrong_changes`."""
        parts = {plan.job_id: plan.chunks for plan in self._customers.plans}
        taken = {job_id.removesuffix(BEFORE) for job_id in self._customers.overwritten}
        changes = [*self._watcher.changes, *_in_store(self._front.done)]
        return list(wrong_changes(changes, parts, taken))

    def has_found_something(self) -> bool:
        """Whether anything is wrong already; not all of it shows before the end of the run."""
        if self._findings.found or self._customers.failures:
            return True
        if time.monotonic() < self._looks_at:
            return False
        self._looks_at = time.monotonic() + _LOOK_SECONDS
        self._findings.add(
            Violation(Kind.NOT_FINISHED, job_id, f"is not over after {_PATIENCE_SECONDS:g} s")
            for job_id in self._customers.waited_for(_PATIENCE_SECONDS)
        )
        return bool(self.wrong_changes())


def _in_store(done: Iterable[Done]) -> Iterator[Change]:
    has_job_file = set()
    for one in done:
        _, job_id, name = (*one.request.path.split("/", 2), "")[:3]
        act = Act.APPEARED if one.request.method == "PUT" else Act.REMOVED
        if name == objects.JOB_FILE and job_id not in has_job_file:
            has_job_file.add(job_id)
        elif name and (name == objects.JOB_FILE or "/" not in name):
            yield Change(job_id, name, act, one.content, one.request.is_conditional)
