"""Commands that have a job go on: its failed rows, or all of it after the ledger was lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from clipfleet.client import Client, JobHandle
from clipfleet.commands.following import follow
from clipfleet.commands.options import AsJson, JobOrOutput, MaxErrorRate, Wait
from clipfleet.commands.results import is_output, known_job
from clipfleet.console import say, say_trouble
from clipfleet.errors import UsageError


def retry(
    job: JobOrOutput,
    codes: Annotated[
        str, typer.Option(help="only rows with these error codes, separated by commas (default: all)")
    ] = "",
    max_error_rate: MaxErrorRate = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Run the failed rows of an ended job again, in place."""
    started = time.monotonic()
    with Client(on_trouble=say_trouble) as client:
        handle = client.rebuild(job) if is_output(job) else known_job(client, job)
        named = [code.strip() for code in codes.split(",") if code.strip()]
        is_under_way = handle.retry(named, max_error_rate=max_error_rate)
        if not is_under_way:
            which = f" with {codes}" if codes else ""
            say(f"job {handle.job_id} has no failed rows{which}: nothing to retry")
        _follow(client, handle, wait=wait, as_json=as_json, started=started)


def rebuild(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="where the results are")],
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Put a job back that Redis has lost, as its output tells it, and let it go on."""
    if Path(output).is_file():
        raise UsageError(f"{output} is a file: give the folder of the results")
    started = time.monotonic()
    with Client(on_trouble=say_trouble) as client:
        _follow(client, client.rebuild(output), wait=wait, as_json=as_json, started=started)


def _follow(client: Client, job: JobHandle, *, wait: bool, as_json: bool, started: float) -> None:
    is_sealed = job.status().sealed
    if not is_sealed:
        say(
            f"not all items of job {job.job_id} are staged: the same submit with `--job-id {job.job_id}` "
            "goes on where it stopped",
            style="yellow",
        )
    follow(client, job, wait=wait and is_sealed, as_json=as_json, started=started)
