"""`clipfleet watch`: one job until it ends, or all jobs until none is left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.connecting import open_client
from clipfleet.commands.following import exit_code, follow, interruptible
from clipfleet.commands.naming import find_job
from clipfleet.commands.options import AsJson, SomeJobOrOutput
from clipfleet.errors import RedisUnavailableError, UsageError
from clipfleet.terminal.all_jobs import AllJobsProgress
from clipfleet.terminal.console import say, say_trouble
from clipfleet.terminal.help import ROWS
from clipfleet.terminal.interrupted import words_after_watching_all
from clipfleet.terminal.lists import job_object

if TYPE_CHECKING:
    from clipfleet.client import Client
    from clipfleet.ledger.status import UnfinishedJobs
    from clipfleet.ledger.values import WorkerFacts

_TICK_SECONDS = 1.0  # chunks in progress report as often


def watch(
    job: SomeJobOrOutput = None,
    all_jobs: Annotated[
        bool,
        typer.Option("--all", help="all jobs that have not ended, until none is left", rich_help_panel=ROWS),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Follow a job until it ends; the exit code reports how."""
    if all_jobs == (job is not None):
        raise UsageError(
            "--all watches all jobs: leave it out, or the job"
            if all_jobs
            else "name a job, or watch all of them with `clipfleet watch --all`"
        )
    with open_client() as client:
        if job is not None:
            follow(client, find_job(client, job), wait=True, as_json=as_json)
        follow_all(client, as_json=as_json)


def follow_all(client: Client, *, as_json: bool, sleep: Callable[[float], object] = time.sleep) -> None:
    """Show all unfinished jobs until none is left, and exit with the code for how they ended.

    Of several codes it is the lowest that is not 0. Each job that ends is printed, with `as_json` on stdout.
    """
    progress = AllJobsProgress(quiet=as_json)
    codes = set[int]()
    found, workers = client.unfinished(), client.workers()  # a first call fails at once
    if not found.jobs:
        say(
            "no job is running; submit one with `clipfleet classify FOLDER --labels cat,dog`, "
            "or list those that have ended with `clipfleet jobs`"
        )
    with interruptible(words_after_watching_all), progress:
        while found.jobs:
            for status in progress.update(found, workers):
                codes.add(exit_code(status))
                if as_json:
                    typer.echo(json.dumps(job_object(status)))
            if progress.shown:
                sleep(_TICK_SECONDS)
            found, workers = _next_look(client, progress.shown, sleep)
    raise typer.Exit(min(codes - {0}, default=0))


def _next_look(
    client: Client, shown: Sequence[str], sleep: Callable[[float], object]
) -> tuple[UnfinishedJobs, list[WorkerFacts]]:
    """Look at all jobs and workers, waiting out an outage of Redis."""
    is_away = False
    while True:
        try:
            return client.unfinished(also=shown), client.workers()
        except RedisUnavailableError as error:
            if not is_away:
                say_trouble(f"{error}; waiting for it")
            is_away = True
            sleep(_TICK_SECONDS)
