"""Commands for existing jobs and workers: status, jobs, workers, pause, resume, cancel, retry, rebuild."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.connecting import open_client
from clipfleet.commands.following import follow
from clipfleet.commands.naming import find_job, is_file, restored_job
from clipfleet.commands.options import AsJson, JobOrOutput, MaxErrorRate, Wait
from clipfleet.contract.brief import JobBrief
from clipfleet.contract.jobs import JobState
from clipfleet.errors import UsageError
from clipfleet.terminal.console import print_table, printable, say, terminal_width, with_options
from clipfleet.terminal.help import ROWS
from clipfleet.terminal.lists import job_lines, job_object, job_table, worker_object, worker_table
from clipfleet.terminal.program import EXIT_FAILED
from clipfleet.terminal.progress import missing_worker_words, no_worker_words
from clipfleet.terminal.summary import unstaged_words

if TYPE_CHECKING:
    from clipfleet.client import Client, JobHandle


def status(job: JobOrOutput, as_json: AsJson = False) -> None:
    """Show what a job does, its state, progress and bottleneck."""
    with open_client() as client:
        handle = find_job(client, job)
        snapshot = replace(handle.status(), brief=JobBrief.of(handle.job))
        if as_json:
            typer.echo(json.dumps(job_object(snapshot)))
            return
        for line in job_lines(snapshot):
            typer.echo(printable(line))
        problem = None if snapshot.state.is_final else missing_worker_words(snapshot, client.workers())
    if problem and not snapshot.leased_chunks:
        say(problem, style="yellow")


def jobs(
    limit: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="number of jobs to show", rich_help_panel=ROWS)
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List the newest jobs."""
    with open_client() as client:
        snapshots = client.jobs(limit)
    if as_json:
        typer.echo(json.dumps({"jobs": [job_object(snapshot) for snapshot in snapshots]}))
        return
    if not snapshots:
        say("no jobs yet; submit one with `clipfleet classify FOLDER --labels cat,dog`")
        return
    print_table(job_table(snapshots, terminal_width()))


def workers(as_json: AsJson = False) -> None:
    """List the connected workers."""
    with open_client() as client:
        connected = client.workers()
    if as_json:
        typer.echo(json.dumps({"workers": [worker_object(facts) for facts in connected]}))
        return
    if not connected:
        say(no_worker_words("MODEL"))
        return
    print_table(worker_table(connected))


def cancel(job: JobOrOutput, as_json: AsJson = False) -> None:
    """End a job early and keep the rows written so far."""
    _change(job, lambda handle: handle.cancel(), as_json=as_json)


def pause(job: JobOrOutput, as_json: AsJson = False) -> None:
    """Stop handing out chunks of a job; chunks in progress complete."""
    _change(job, lambda handle: handle.pause(), as_json=as_json)


def resume(job: JobOrOutput, as_json: AsJson = False) -> None:
    """Resume a paused job."""
    _change(job, lambda handle: handle.resume(), as_json=as_json)


def _change(job: str, change: Callable[[JobHandle], tuple[bool, JobState]], *, as_json: bool) -> None:
    with open_client() as client:
        handle = find_job(client, job)
        changed, state = change(handle)
        reason = handle.status().reason if state is JobState.FINISHING else ""
    if as_json:
        typer.echo(json.dumps({"job_id": handle.job_id, "state": state.value, "changed": changed}))
        return
    tried = f": its finish has failed, and is tried again ({with_options(reason)})" if reason else ""
    say(f"job {handle.job_id} is {state}" + ("" if changed else " already") + tried)


def retry(
    job: JobOrOutput,
    codes: Annotated[
        str,
        typer.Option(
            help="retry only rows with these comma-separated error codes (default: all)", rich_help_panel=ROWS
        ),
    ] = "",
    max_error_rate: MaxErrorRate = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Retry the failed rows of an ended job, in place."""
    started = time.monotonic()
    with open_client() as client:
        handle = restored_job(client, job)
        is_joined = not handle.had_ended  # a retry in progress
        named = [code.strip() for code in codes.split(",") if code.strip()]
        is_under_way = handle.retry(named, max_error_rate=max_error_rate)
        if not is_under_way:
            which = f" with {codes}" if codes else ""
            say(f"job {handle.job_id} has no failed rows{which}: nothing to retry")
        _follow(client, handle, wait=wait, as_json=as_json, started=None if is_joined else started)


def rebuild(job: JobOrOutput, wait: Wait = True, as_json: AsJson = False) -> None:
    """Restore a job that Redis has lost from its output, and resume it."""
    if is_file(job):
        raise UsageError(f"{job} is a file: give the folder of the results")
    started = time.monotonic()
    with open_client() as client:
        handle = restored_job(client, job)
        is_joined = handle.status().ran > 0
        _follow(client, handle, wait=wait, as_json=as_json, started=None if is_joined else started)


def _follow(client: Client, job: JobHandle, *, wait: bool, as_json: bool, started: float | None) -> None:
    """Follow a job, unless it cannot end because its submit was interrupted."""
    if not job.status().sealed:
        say(unstaged_words(job.job_id), style="yellow")
        if wait:
            raise typer.Exit(EXIT_FAILED)
    follow(client, job, wait=wait, as_json=as_json, started=started)
