"""Progress of a job on stderr: a bar on a terminal, else a plain line at intervals."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Self

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from clipfleet.contract.bottleneck import Limit, LimitingStep
from clipfleet.contract.jobs import JobState
from clipfleet.ledger.status import JobStatus
from clipfleet.ledger.values import WorkerFacts
from clipfleet.terminal.console import printable, say, stderr, with_options
from clipfleet.terminal.pace import Pace

PLAIN_SECONDS = 10.0
NO_WORKER_SECONDS = 3.0  # grace period for a worker that starts with the job
REPEAT_SECONDS = 60.0
_NAMED_CODES = 3
_WHOLE_FROM = 10.0  # rows a second
_UNITS = (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


class JobProgress:
    """Shows progress: pass `update` to `JobHandle.wait`. Also warns if no worker can do the work."""

    def __init__(
        self,
        workers: Callable[[], Sequence[WorkerFacts]],
        *,
        quiet: bool = False,
        fills_a_store: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = workers
        self._fills_a_store = fills_a_store
        self._monotonic = monotonic
        self._started = self._said = monotonic()
        self.snapshots = 0  # shown so far
        self.latest: JobStatus | None = None  # shown last
        self._generation, self._done = 0, 0  # the most that was shown of this generation
        self._warned_at: float | None = None
        self._quiet = quiet
        self._pace = Pace()
        self._bar = None if quiet or not stderr.is_terminal else _Bar()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, status: JobStatus) -> None:
        """Show a snapshot."""
        now = self._monotonic()
        self.snapshots += 1
        status = self._steady(status)
        self.latest = status
        self._pace.note(now, status)
        if self._bar is not None:
            self._bar.show(status, pace_words(self._pace, now, status), self._pace.limit(status))
        elif not self._quiet and now - self._said >= PLAIN_SECONDS:
            self._said = now
            say(plain_line(status, pace_words(self._pace, now, status), self._pace.limit(status)))
        self._warn_if_no_worker(status, now - self._started)

    def _steady(self, status: JobStatus) -> JobStatus:
        """The snapshot, with a count that does not fall while chunks that were lost are processed again."""
        if status.generation != self._generation or status.state.is_final:
            self._generation, self._done = status.generation, 0
        self._done = max(self._done, status.done)
        return replace(status, settled=self._done - status.ok - status.failed)

    def _warn_if_no_worker(self, status: JobStatus, seconds: float) -> None:
        if status.state.is_final or status.leased_chunks or seconds < NO_WORKER_SECONDS:
            return
        now = self._monotonic()
        if self._warned_at is not None and now - self._warned_at < REPEAT_SECONDS:
            return
        problem = missing_worker_words(status, self._workers(), fills_a_store=self._fills_a_store)
        if problem:
            self._warned_at = now
            say(problem, style="yellow")


def missing_worker_words(
    status: JobStatus, workers: Sequence[WorkerFacts], *, fills_a_store: bool = False
) -> str | None:
    """Why no worker can run, or finish, a job, and the way out; None if nothing is known to prevent it."""
    if status.state is JobState.PAUSED:
        reason = f" ({with_options(status.reason)})" if status.reason else ""
        return f"job {status.job_id} is paused{reason}: resume it with `clipfleet resume {status.job_id}`"
    run = f"clipfleet-worker run --models {shlex.quote(status.model)}"
    if not workers:
        return no_worker_words(status.model)
    if not any(facts.serves(status.model) for facts in workers):
        served = ", ".join(sorted({model for facts in workers for model in facts.models}))
        return (
            f"no connected worker serves {status.model} (they serve: {served or 'nothing'}): "
            f"start one with `{run}`"
        )
    if fills_a_store and not any(facts.fills_stores for facts in workers):
        return (
            "no connected worker can commit to a store: install the extra where one runs, "
            "pip install 'clipfleet[worker,store]', and restart it"
        )
    if status.state is JobState.FINISHING and status.reason:
        return (
            f"job {status.job_id} could not be finished yet, it is tried again: {with_options(status.reason)}"
        )
    return None


def no_worker_words(models: str) -> str:
    """That no worker is connected, and the way out."""
    return (
        f"no worker is connected: start one with `clipfleet-worker run --models {models}` "
        "on a machine with this CLIPFLEET_REDIS_URL, or start everything here with `clipfleet-worker up`"
    )


class _Bar(Progress):
    """A bar with the counts of one job, and below it the failures and the bottleneck."""

    def __init__(self) -> None:
        self._below = ""
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            console=stderr,
        )
        self._job = self.add_task("", total=None, pace="")

    def show(self, status: JobStatus, pace: str, limit: Limit | None) -> None:
        """Draw a snapshot."""
        failed = failed_words(status) if status.failed else ""
        self._below = printable("; ".join(filter(None, (failed, _limit_words(status, limit)))))
        self.update(
            self._job,
            total=status.total or None,
            completed=status.done,
            description=status.state.value,
            pace=pace,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self._below:
            yield Text(self._below, style="dim", no_wrap=True, overflow="ellipsis")


def plain_line(status: JobStatus, pace: str, limit: Limit | None) -> str:
    """A snapshot in one line: counts, failures, pace and bottleneck."""
    so_far = "" if status.sealed else " so far"
    line = (
        f"{status.job_id} {status.state}: {status.done:,} of {status.total:,}{so_far}, {failed_words(status)}"
    )
    return "; ".join(filter(None, (f"{line}, {pace}" if pace else line, _limit_words(status, limit))))


def _limit_words(status: JobStatus, limit: Limit | None) -> str:
    """What limits a job that runs. Not its load, which `activity` shows, nor that of one that has ended."""
    is_shown = limit is not None and limit.step is not LimitingStep.LOAD and not status.state.is_final
    return str(limit) if is_shown else ""


def pace_words(pace: Pace, now: float, status: JobStatus) -> str:
    """What the job waits for; else rate and time left, `?` where unknown; empty if it is not running."""
    if status.state not in (JobState.SUBMITTING, JobState.RUNNING):
        return ""
    if status.activity:
        return printable(status.activity)
    rate, left = pace.rows_per_second(now), pace.seconds_left(now)
    return (
        f"{'?' if rate is None else rate_words(rate)}/s, {'?' if left is None else duration_words(left)} left"
    )


def failed_words(status: JobStatus) -> str:
    """Failed rows and their most frequent codes: `12 failed (8 not_found, 3 timeout, 1 empty)`."""
    most = sorted(status.codes.items(), key=lambda pair: (-pair[1], pair[0]))[:_NAMED_CODES]
    codes = ", ".join(f"{count:,} {code}" for code, count in most)
    return f"{status.failed:,} failed" + (f" ({codes})" if codes else "")


def rate_words(rate: float) -> str:
    """`1,234`, `7.5` or `0.03`."""
    return f"{rate:,.0f}" if rate >= _WHOLE_FROM else f"{rate:.2g}"


def duration_words(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min` or `3 d 4 h`."""
    whole = round(seconds)
    for unit, size, part, part_size in _UNITS:
        if whole >= size:
            rest = whole % size // part_size
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"
