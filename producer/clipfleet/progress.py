"""Showing how a job goes: a bar on a terminal, a plain line now and then elsewhere. All on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clipfleet.console import say, stderr
from clipfleet.contract import JobState
from clipfleet.ledger import JobStatus, WorkerFacts

_PLAIN_SECONDS = 10.0
_NO_WORKER_SECONDS = 3.0  # a worker that starts with the job gets this long before anybody is told
_REPEAT_SECONDS = 60.0


class JobProgress:
    """Give `update` to `JobHandle.wait`; it also says when nobody is there to do the work."""

    def __init__(
        self,
        workers: Callable[[], Sequence[WorkerFacts]],
        *,
        quiet: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = workers
        self._monotonic = monotonic
        self._started = self._said = monotonic()
        self._complained: float | None = None
        self._quiet = quiet
        self._bar = None if quiet or not stderr.is_terminal else _bar()
        self._bar_task = self._bar.add_task("", total=None, rate="", failed="") if self._bar else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, status: JobStatus) -> None:
        """Show a snapshot."""
        done = status.ok + status.failed
        seconds = max(self._monotonic() - self._started, 0.001)
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(
                self._bar_task,
                total=status.total or None,
                completed=done,
                description=status.state.value,
                rate=f"{done / seconds:,.0f}/s",
                failed=f"{status.failed:,} failed" if status.failed else "",
            )
        elif not self._quiet and self._monotonic() - self._said >= _PLAIN_SECONDS:
            self._said = self._monotonic()
            say(
                f"{status.job_id} {status.state}: {done:,} of {status.total:,}, {status.failed:,} failed, "
                f"{done / seconds:,.0f}/s"
            )
        self._complain_if_nobody_works(status, seconds)

    def _complain_if_nobody_works(self, status: JobStatus, seconds: float) -> None:
        if status.state.is_final or status.leased_chunks or seconds < _NO_WORKER_SECONDS:
            return
        now = self._monotonic()
        if self._complained is not None and now - self._complained < _REPEAT_SECONDS:
            return
        problem = why_nobody_works(status, self._workers())
        if problem:
            self._complained = now
            say(problem, style="yellow")


def why_nobody_works(status: JobStatus, workers: Sequence[WorkerFacts]) -> str | None:
    """A line for people if nobody can work on a job, with the way out; None if all is well."""
    if status.state is JobState.PAUSED:
        reason = f" ({status.reason})" if status.reason else ""
        return f"job {status.job_id} is paused{reason}: `clipfleet resume {status.job_id}` lets it go on"
    if not workers:
        return (
            f"no worker is connected: start one with `clipfleet-worker run --models {status.model}` "
            "on a machine with this CLIPFLEET_REDIS_URL, or everything here with `clipfleet-worker up`"
        )
    if not any(facts.serves(status.model) for facts in workers):
        served = ", ".join(sorted({model for facts in workers for model in facts.models}))
        return (
            f"no connected worker serves {status.model} (they serve: {served or 'nothing'}): "
            f"start one with `clipfleet-worker run --models {status.model}`"
        )
    return None


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failed]}"),
        console=stderr,
    )
