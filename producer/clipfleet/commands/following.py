"""Following a job until it ends, and the exit code for how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from clipfleet.commands.connecting import open_client
from clipfleet.commands.options import AsJson, JobArgument
from clipfleet.contract.jobs import JobState
from clipfleet.ledger.status import JobStatus
from clipfleet.terminal.console import say, say_trouble
from clipfleet.terminal.program import EXIT_FAILED, EXIT_INTERRUPTED
from clipfleet.terminal.progress import JobProgress, missing_worker_words, rate_words

if TYPE_CHECKING:
    from clipfleet.client import Client, JobHandle

EXIT_SOME_FAILED, EXIT_CANCELLED = 3, 4


def watch(job: JobArgument, as_json: AsJson = False) -> None:
    """Follow a job until it ends; the exit code reports how."""
    with open_client() as client:
        follow(client, client.job(job), wait=True, as_json=as_json)


def follow(
    client: Client, job: JobHandle, *, wait: bool, as_json: bool, started: float | None = None
) -> None:
    """Print the progress of a job, and exit with the code for how it ended.

    Seconds count from `started`, or from the submit without it (`watch`). For a job that had ended before,
    they are how long it took.
    """
    had_ended = job.had_ended
    with interruptible(
        f"stopped watching: the job keeps running; watch it again with `clipfleet watch {job.job_id}`, "
        f"or end it with `clipfleet cancel {job.job_id}`"
    ):
        if not as_json:
            say(f"job {job.job_id} -> {job.output}")
        if wait:
            with JobProgress(client.workers, quiet=as_json) as progress:
                snapshot = job.wait(on_progress=progress.update, on_trouble=say_trouble)
            had_ended = had_ended or (started is None and progress.snapshots == 1)
        else:
            snapshot = job.status()
    # The ledger does not record when a retry began.
    lasted = None if snapshot.generation else snapshot.lasted_seconds
    seconds = lasted if started is None or had_ended else time.monotonic() - started
    if as_json:
        summary = {
            "job_id": job.job_id,
            "state": snapshot.state.value,
            "total": snapshot.total,
            "ok": snapshot.ok,
            "failed": snapshot.failed,
            "output": job.output,
            "seconds": seconds and round(seconds, 3),
            "already_ended": had_ended,
            "limit": snapshot.limit and asdict(snapshot.limit),
        }
        typer.echo(json.dumps(summary))
        if snapshot.reason:
            say(f"reason: {snapshot.reason}", style="red")
    else:
        if had_ended:
            say(_already(snapshot) + ("; nothing was run" if job.had_ended else ""))
        _say_summary(client, job, snapshot, None if had_ended else seconds)
    raise typer.Exit(_exit_code(snapshot) if wait else 0)


@contextmanager
def interruptible(what_then: str) -> Iterator[None]:
    """End the program on Ctrl-C, with a line about what happens to the job."""
    try:
        yield
    except KeyboardInterrupt:
        say(what_then)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _already(snapshot: JobStatus) -> str:
    state = snapshot.state.replace("_", " ")
    when = f" on {snapshot.finished_at:%Y-%m-%d %H:%M} UTC" if snapshot.finished_at else ""
    return f"already {state}{when}"


def _say_summary(client: Client, job: JobHandle, snapshot: JobStatus, seconds: float | None) -> None:
    if not snapshot.state.is_final:
        say(f"submitted {snapshot.total:,} items; follow the job with `clipfleet watch {job.job_id}`")
        problem = missing_worker_words(snapshot, client.workers())
        if problem:
            say(problem, style="yellow")
        return
    style = "green" if snapshot.state is JobState.COMPLETED else "yellow"
    rows = snapshot.ok + snapshot.failed
    lasted = ""
    if seconds is not None:
        lasted = f" in {seconds:.1f} s ({rate_words(snapshot.ran / max(seconds, 0.001))}/s)"
    say(f"{snapshot.state}: {snapshot.ok:,} ok, {snapshot.failed:,} failed{lasted}", style=style)
    if snapshot.reason:
        say(f"reason: {snapshot.reason}", style="red")
    if snapshot.limit:
        say(f"limited by {snapshot.limit}")
    examples = job.failure_examples() if snapshot.codes else {}
    for code, count in sorted(snapshot.codes.items(), key=lambda pair: -pair[1]):
        example = f", for example: {examples[code]}" if code in examples else ""
        say(f"  {code}: {count:,}{example}")
    if rows:
        say(f"view the rows with `clipfleet results {job.job_id if job.job.output_is_redis else job.output}`")


def _exit_code(snapshot: JobStatus) -> int:
    match snapshot.state:
        case JobState.COMPLETED:
            return 0
        case JobState.COMPLETED_WITH_ERRORS:
            return EXIT_SOME_FAILED
        case JobState.CANCELLED:
            return EXIT_FAILED if snapshot.has_stopped_itself else EXIT_CANCELLED
        case _:
            return EXIT_FAILED
