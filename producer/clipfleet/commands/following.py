"""Following a job until it ends, and the exit code for how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from clipfleet.commands.estimates import estimate_words
from clipfleet.contract.jobs import JobState
from clipfleet.errors import ClipfleetError
from clipfleet.ledger.status import JobStatus
from clipfleet.terminal.console import say, say_trouble
from clipfleet.terminal.interrupted import words_after_watching
from clipfleet.terminal.program import EXIT_FAILED, EXIT_INTERRUPTED
from clipfleet.terminal.progress import JobProgress, missing_worker_words
from clipfleet.terminal.summary import earlier_headline, headline, limit_lines, reason_is_said, reason_lines
from clipfleet.terminal.up_around import afterwards
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.client import Client, JobHandle
    from clipfleet.results.estimate import Estimate

EXIT_SOME_FAILED, EXIT_CANCELLED = 3, 4


def follow(
    client: Client, job: JobHandle, *, wait: bool, as_json: bool, started: float | None = None
) -> None:
    """Print the progress of a job, and exit with the code for how it ended.

    Seconds count from `started`, or from the submit without it: for a job that ran or had ended before.
    """
    had_ended = job.had_ended
    progress = JobProgress(client.workers, quiet=as_json)
    with interruptible(lambda: words_after_watching(job.job_id, progress.latest)):
        if not as_json:
            say(f"job {job.job_id} -> {job.output}")
        if wait:
            with progress:
                snapshot = job.wait(on_progress=progress.update, on_trouble=say_trouble)
            had_ended = had_ended or (started is None and progress.snapshots == 1)
        else:
            snapshot = job.status()
    # The ledger does not record when a retry began.
    lasted = None if snapshot.generation else snapshot.lasted_seconds
    seconds = lasted if started is None or had_ended else time.monotonic() - started
    estimate = _estimate(job) if wait else None
    has_rows = snapshot.state.is_final and snapshot.done_chunks > 0
    decisions = _decisions(job) if has_rows else None
    if as_json:
        summary = {
            "job_id": job.job_id,
            "state": snapshot.state.value,
            "total": snapshot.total,
            "ok": snapshot.ok,
            "failed": snapshot.failed,
            "codes": dict(snapshot.codes),
            "output": job.output,
            "seconds": seconds and round(seconds, 3),
            "already_ended": had_ended,
            "limit": snapshot.limit and asdict(snapshot.limit),
            "estimate": estimate and asdict(estimate),
            **({} if decisions is None else {"decisions": decisions}),
        }
        typer.echo(json.dumps(summary))
        for line in reason_lines(snapshot):
            say(line, style="red")
    else:
        _say_summary(client, job, snapshot, seconds, had_ended=had_ended)
        if decisions is not None:
            say(", ".join(f"{status} {count:,}" for status, count in decisions.items()))
        if estimate is not None:
            say(estimate_words(estimate))
    raise typer.Exit(exit_code(snapshot) if wait else 0)


@contextmanager
def interruptible(words: Callable[[], str]) -> Iterator[None]:
    """End the program on Ctrl-C, with a line about what happens to the job."""
    try:
        yield
    except KeyboardInterrupt:
        say(words())
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _estimate(job: JobHandle) -> Estimate | None:
    try:
        return job.estimate()
    except ClipfleetError as error:  # such as rows that have expired: the job has ended well all the same
        say_trouble(f"no estimate for all items: {error}")
        return None


def _decisions(job: JobHandle) -> dict[str, int] | None:
    """The items of a moderation job by decision; None of other jobs, or if its rows cannot be read."""
    if job.job.policy is None:
        return None
    try:
        return job.decisions()
    except ClipfleetError as error:
        say_trouble(f"the decisions cannot be counted: {error}")
        return None


def _say_summary(
    client: Client, job: JobHandle, snapshot: JobStatus, seconds: float | None, *, had_ended: bool
) -> None:
    if not snapshot.state.is_final:
        watch = afterwards("clipfleet", "watch", job.job_id)
        say(f"submitted {counted(snapshot.total, 'item')}; follow the job with `{watch}`")
        problem = missing_worker_words(snapshot, client.workers())
        if problem:
            say(problem, style="yellow")
        return
    style = "green" if snapshot.state is JobState.COMPLETED else "yellow"
    if had_ended:
        say(earlier_headline(job.job, snapshot, nothing_was_run=job.had_ended), style=style)
    else:
        say(headline(job.job, snapshot, seconds), style=style)
    if had_ended or not reason_is_said(snapshot):
        for line in reason_lines(snapshot):
            say(line, style="red")
    for line in () if had_ended else limit_lines(snapshot, seconds):
        say(line)
    examples = job.failure_examples() if snapshot.codes else {}
    for code, count in sorted(snapshot.codes.items(), key=lambda pair: -pair[1]):
        example = f", for example: {examples[code]}" if code in examples else ""
        say(f"  {code}: {count:,}{example}")


def exit_code(snapshot: JobStatus) -> int:
    """The exit code for how a job has ended."""
    match snapshot.state:
        case JobState.COMPLETED:
            return 0
        case JobState.COMPLETED_WITH_ERRORS:
            return EXIT_SOME_FAILED
        case JobState.CANCELLED:
            return EXIT_FAILED if snapshot.has_stopped_itself else EXIT_CANCELLED
        case _:
            return EXIT_FAILED
