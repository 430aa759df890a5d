"""Commands for existing jobs: status, pause, resume, cancel, retry, rebuild."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from clipfleet.commands.connecting import open_client
from clipfleet.commands.following import follow
from clipfleet.commands.options import AsJson, JobArgument, JobOrOutput, MaxErrorRate, Wait
from clipfleet.commands.results import is_output, known_job
from clipfleet.contract.jobs import JobState
from clipfleet.errors import UsageError
from clipfleet.ledger.status import JobStatus
from clipfleet.terminal.console import print_table, printable, say, with_options
from clipfleet.terminal.help import ROWS
from clipfleet.terminal.progress import missing_worker_words

if TYPE_CHECKING:
    from clipfleet.client import Client, JobHandle

_NUMBERS = ("items", "ok", "failed")


def status(job: JobArgument, as_json: AsJson = False) -> None:
    """Show the state, progress and bottleneck of a job."""
    with open_client() as client:
        snapshot = client.job(job).status()
        if as_json:
            typer.echo(json.dumps(_status_object(snapshot)))
            return
        for line in _status_lines(snapshot):
            typer.echo(printable(with_options(line)))
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
        typer.echo(json.dumps({"jobs": [_status_object(snapshot) for snapshot in snapshots]}))
        return
    if not snapshots:
        say("no jobs yet; submit one with `clipfleet classify FOLDER --labels cat,dog`")
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("job", "state", "items", "ok", "failed", "created (UTC)"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in _NUMBERS else "left")
    for snapshot in snapshots:
        table.add_row(
            Text(printable(snapshot.job_id)), snapshot.state, f"{snapshot.total:,}", f"{snapshot.ok:,}",
            f"{snapshot.failed:,}", _utc(snapshot.created_ms),
        )  # fmt: skip
    print_table(table)


def cancel(job: JobArgument, as_json: AsJson = False) -> None:
    """End a job early and keep the rows written so far."""
    _change(job, lambda handle: handle.cancel(), as_json=as_json)


def pause(job: JobArgument, as_json: AsJson = False) -> None:
    """Stop handing out chunks of a job; chunks in progress complete."""
    _change(job, lambda handle: handle.pause(), as_json=as_json)


def resume(job: JobArgument, as_json: AsJson = False) -> None:
    """Resume a paused job."""
    _change(job, lambda handle: handle.resume(), as_json=as_json)


def _change(job: str, change: Callable[[JobHandle], tuple[bool, JobState]], *, as_json: bool) -> None:
    with open_client() as client:
        changed, state = change(client.job(job))
    if as_json:
        typer.echo(json.dumps({"job_id": job, "state": state.value, "changed": changed}))
        return
    say(f"job {job} is {state}" + ("" if changed else " already"))


def _status_object(snapshot: JobStatus) -> dict[str, Any]:
    limit = snapshot.limit
    return asdict(snapshot) | {
        "state": snapshot.state.value,
        "lane": snapshot.lane.value,
        "limit": limit and asdict(limit),
    }


def _status_lines(snapshot: JobStatus) -> Iterator[str]:
    done = snapshot.ok + snapshot.failed
    yield f"job      {snapshot.job_id}"
    yield f"state    {snapshot.state}" + (f" ({snapshot.reason})" if snapshot.reason else "")
    yield f"items    {done:,} of {snapshot.total:,}{'' if snapshot.sealed else ' so far'}"
    yield f"rows     {snapshot.ok:,} ok, {snapshot.failed:,} failed"
    yield (
        f"chunks   {snapshot.done_chunks:,} of {snapshot.chunks:,} done, {snapshot.leased_chunks:,} running, "
        f"{snapshot.due_chunks:,} waiting to retry"
    )
    if snapshot.generation:
        yield f"retries  {snapshot.generation}"
    yield f"model    {snapshot.model}"
    yield f"created  {_utc(snapshot.created_ms)} UTC"
    if snapshot.limit:
        yield f"limit    {snapshot.limit}"
    for code, count in sorted(snapshot.codes.items(), key=lambda pair: -pair[1]):
        yield f"failed   {count:,} {code}"


def _utc(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S}"


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
        handle = client.rebuild(job) if is_output(job) else known_job(client, job)
        named = [code.strip() for code in codes.split(",") if code.strip()]
        is_under_way = handle.retry(named, max_error_rate=max_error_rate)
        if not is_under_way:
            which = f" with {codes}" if codes else ""
            say(f"job {handle.job_id} has no failed rows{which}: nothing to retry")
        _follow(client, handle, wait=wait, as_json=as_json, started=started)


def rebuild(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="folder or S3 prefix of the results")],
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Restore a job that Redis has lost from its output, and resume it."""
    if Path(output).is_file():
        raise UsageError(f"{output} is a file: give the folder of the results")
    started = time.monotonic()
    with open_client() as client:
        _follow(client, client.rebuild(output), wait=wait, as_json=as_json, started=started)


def _follow(client: Client, job: JobHandle, *, wait: bool, as_json: bool, started: float) -> None:
    is_sealed = job.status().sealed
    if not is_sealed:
        say(
            f"not all items of job {job.job_id} are staged: resume with the same submit command and "
            f"`--job-id {job.job_id}`",
            style="yellow",
        )
    follow(client, job, wait=wait and is_sealed, as_json=as_json, started=started)
