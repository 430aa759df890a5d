"""All unfinished jobs on stderr: one live table on a terminal, else a plain line of each at intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from clipfleet.contract.jobs import JobState
from clipfleet.ledger.status import JobStatus, UnfinishedJobs
from clipfleet.ledger.values import WorkerFacts
from clipfleet.terminal.console import printable, say, stderr
from clipfleet.terminal.pace import Pace
from clipfleet.terminal.progress import (
    NO_WORKER_SECONDS,
    PLAIN_SECONDS,
    REPEAT_SECONDS,
    duration_words,
    failed_words,
    missing_worker_words,
    pace_words,
    plain_line,
)
from clipfleet.terminal.watched_jobs import HEAD_LINES, LINES_OF_A_JOB, WatchedJob, watched_table
from clipfleet.wording import counted

_PLAIN_JOBS = 20  # lines at a time, where stderr is no terminal
_PROBLEMS = 3  # lines below the table


class AllJobsProgress:
    """Shows all unfinished jobs: pass what `Client.unfinished` returns to `update`."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console = stderr,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shown: tuple[str, ...] = ()  # unfinished jobs as of the last look
        self._monotonic = monotonic
        self._quiet = quiet
        self._said_at = monotonic()
        self._warned_at: dict[str, float] = {}
        self._paces: dict[str, Pace] = {}
        self._jobs: list[WatchedJob] = []
        self._left_out = 0
        self._problems: list[str] = []
        self._console = console
        self._live: Live | None = None
        if console.is_terminal and not quiet:
            self._live = Live(console=console, auto_refresh=False, get_renderable=self._drawn)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.transient = not self.shown  # else the last table stays
            self._live.stop()

    def update(self, found: UnfinishedJobs, workers: Sequence[WorkerFacts]) -> list[JobStatus]:
        """Show a look at all jobs; returns those of the look before that have ended."""
        now = self._monotonic()
        running = [status for status in found.jobs if not status.state.is_final]
        ended = [status for status in found.jobs if status.state.is_final and status.job_id in self.shown]
        self._paces = {status.job_id: self._paces.get(status.job_id) or Pace() for status in running}
        self.shown = tuple(self._paces)
        self._jobs = [self._watched(status, workers, now) for status in running]
        self._left_out = found.left_out
        self._problems = _problems(running, workers)
        if not self._quiet:
            for status in ended:
                say(_end_line(status), style="green" if status.state is JobState.COMPLETED else "yellow")
        if self._live is not None:
            self._live.refresh()
        elif not self._quiet:
            self._say_lines(now)
        return ended

    def _watched(self, status: JobStatus, workers: Sequence[WorkerFacts], now: float) -> WatchedJob:
        pace = self._paces[status.job_id]
        pace.note(now, status)
        serving = sum(facts.serves(status.model) for facts in workers)
        return WatchedJob(status, pace.rows_per_second(now), pace.seconds_left(now), serving)

    def _drawn(self) -> RenderableType:
        if not self._jobs:
            return Text("")
        problems = self._problems[:_PROBLEMS]
        room = self._console.height - HEAD_LINES - len(problems) - 1  # for the line about the others
        jobs = self._jobs[: max(1, room // LINES_OF_A_JOB)]
        left_out = len(self._jobs) - len(jobs) + self._left_out
        lines = [(f"and {left_out:,} more: list them with `clipfleet jobs`", "dim")] if left_out else []
        lines += [(problem, "yellow") for problem in problems]
        return Group(
            watched_table(jobs, self._console.width),
            *(Text(printable(line), style, no_wrap=True, overflow="ellipsis") for line, style in lines),
        )

    def _say_lines(self, now: float) -> None:
        for problem in self._problems:
            if now - self._warned_at.get(problem, -REPEAT_SECONDS) >= REPEAT_SECONDS:
                self._warned_at[problem] = now
                say(problem, style="yellow")
        if now - self._said_at < PLAIN_SECONDS or not self._jobs:
            return
        self._said_at = now
        for job in self._jobs[:_PLAIN_JOBS]:
            pace, status = self._paces[job.status.job_id], job.status
            say(plain_line(status, pace_words(pace, now, status), pace.limit(status)))
        left_out = len(self._jobs[_PLAIN_JOBS:]) + self._left_out
        if left_out:
            say(f"and {counted(left_out, 'more job')}")


def _problems(jobs: Sequence[JobStatus], workers: Sequence[WorkerFacts]) -> list[str]:
    """Why nothing is done for jobs, each reason once."""
    idle = [
        status
        for status in jobs
        if not status.leased_chunks and status.asked_ms - status.created_ms >= NO_WORKER_SECONDS * 1000
    ]
    return list(dict.fromkeys(filter(None, (missing_worker_words(status, workers) for status in idle))))


def _end_line(status: JobStatus) -> str:
    lasted = "" if status.generation else f" in {duration_words(status.lasted_seconds)}"
    state = status.state.value.replace("_", " ")
    return f"{status.job_id} {state}{lasted}: {status.done:,} of {status.total:,}, {failed_words(status)}"
