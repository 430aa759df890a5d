"""The words about a job that has ended."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from clipfleet.contract.bottleneck import LimitingStep
from clipfleet.contract.jobs import Job, JobState, Task
from clipfleet.ledger.status import JobStatus
from clipfleet.terminal.console import with_options
from clipfleet.terminal.progress import rate_words
from clipfleet.terminal.up_around import afterwards

_MENTIONED_LOAD_SECONDS = 10.0  # the load of a shorter job is not worth a line


def headline(job: Job, snapshot: JobStatus, seconds: float | None) -> str:
    """How a job has ended just now, in one line, with the command that shows its rows.

    `seconds` is how long it took, None if that is not known.
    """
    if snapshot.state is JobState.FAILED and not snapshot.ok + snapshot.failed:
        noun = "text" if job.task is Task.EMBED_TEXT else "image" if job.vectors is None else "vector"
        return f"Job failed before any {noun} was processed: {with_options(snapshot.reason)}"
    if snapshot.state in (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS):
        lasted = ""
        if seconds is not None:
            lasted = f" in {seconds:.1f} s ({rate_words(snapshot.ran / max(seconds, 0.001))}/s)"
        return f"Done: {_counts(job, snapshot)}{lasted}.{_view(job, snapshot)}"
    end = "Job failed" if snapshot.state is JobState.FAILED else "Cancelled"
    end = "Stopped" if snapshot.has_stopped_itself else end
    return f"{end}: {_counts(job, snapshot)} of {snapshot.total:,}.{_view(job, snapshot)}"


def earlier_headline(job: Job, snapshot: JobStatus, *, nothing_was_run: bool) -> str:
    """How a job had ended before, in one line, with the command that shows its rows."""
    when = f" on {snapshot.finished_at:%Y-%m-%d %H:%M} UTC" if snapshot.finished_at else ""
    run = "; nothing was run" if nothing_was_run else ""
    if nothing_was_run and snapshot.state in (JobState.FAILED, JobState.CANCELLED):
        again = f"submit again with the same command and {_same_id(job.job_id)}"
        then = "" if snapshot.sealed else f", then {again}"
        run += f", continue it with `{afterwards('clipfleet', 'retry', job.job_id)}`{then}"
    state = snapshot.state.replace("_", " ")
    return f"Already {state}{when}{run}: {_counts(job, snapshot)}.{_view(job, snapshot)}"


def reason_lines(snapshot: JobStatus) -> Iterator[str]:
    """Why a job has ended early, and what else its submit has to do."""
    if snapshot.reason:
        yield f"reason: {with_options(snapshot.reason)}"
    if snapshot.has_stopped_itself and not snapshot.sealed:
        yield (
            "not all items are staged: after the retry, submit again with the same command and "
            f"{_same_id(snapshot.job_id)}"
        )


def unstaged_words(job_id: str) -> str:
    """That the submit of a job must be resumed."""
    return (
        f"not all items of job {job_id} are staged: submit again with the same command and {_same_id(job_id)}"
    )


def _same_id(job_id: str) -> str:
    return f"`--job-id {job_id}`"


def reason_is_said(snapshot: JobStatus) -> bool:
    """Whether `headline` contains the reason of the end."""
    return snapshot.state is JobState.FAILED and not snapshot.ok + snapshot.failed


def limit_lines(snapshot: JobStatus, seconds: float | None) -> Iterator[str]:
    """What limited the job, if its user can change it."""
    limit = snapshot.limit
    if limit is None:
        return
    if limit.step is not LimitingStep.LOAD:
        yield f"limited by {limit}"
    elif seconds is not None and seconds >= _MENTIONED_LOAD_SECONDS:
        yield f"{limit.text.capitalize()}; a larger job, or a running worker, will be faster"


def _counts(job: Job, snapshot: JobStatus) -> str:
    verb = "labelled" if job.task is Task.CLASSIFY else "embedded"
    verb = verb if job.vectors is None else "labelled again"
    return f"{snapshot.ok:,} {verb}, {snapshot.failed:,} failed"


def _view(job: Job, snapshot: JobStatus) -> str:
    if not snapshot.ok + snapshot.failed:
        return ""
    if job.output_is_redis:
        return f" View them: `{afterwards('clipfleet', 'results', job.job_id)}`"
    return f" View them: `{shlex.join(['clipfleet', 'results', job.output])}`"
