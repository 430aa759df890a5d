"""`clipfleet`: argument parsing and printing only."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from clipfleet import results as result_files
from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.console import say, say_error
from clipfleet.contract import (
    DEFAULT_CHUNK_SIZE,
    DEFAULT_MODEL,
    DEFAULT_TEMPLATE,
    DecodeRoute,
    JobState,
    Lane,
    Precision,
)
from clipfleet.errors import ClipfleetError, JobNotFoundError, UsageError
from clipfleet.ledger import JobStatus
from clipfleet.outputs import open_output
from clipfleet.progress import JobProgress, why_nobody_works

EXIT_FAILED, EXIT_USAGE, EXIT_SOME_FAILED, EXIT_CANCELLED, EXIT_INTERRUPTED = 1, 2, 3, 4, 130

app = typer.Typer(
    help="Label and embed piles of images with CLIP: one row per image, nothing lost, nothing twice.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Source = Annotated[
    str, typer.Argument(help="a folder, a glob in quotes, a .txt with one URI per line, or a .csv")
]
Output = Annotated[str | None, typer.Option(help="folder for the results [default: clipfleet-output/JOB_ID]")]
Model = Annotated[str, typer.Option(metavar="NAME:PRETRAINED", help="open_clip model, or demo")]
PrecisionOption = Annotated[Precision, typer.Option(help="arithmetic of the forward pass")]
Decode = Annotated[
    DecodeRoute, typer.Option(help="exact: open_clip's own transform; fast: a few grey levels off")
]
LaneOption = Annotated[Lane, typer.Option(help="priority")]
ChunkSize = Annotated[int, typer.Option(min=1, max=4096, help="items that are claimed at a time")]
JobId = Annotated[str | None, typer.Option(help="name of the job; repeat it to resume an interrupted submit")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an ended job's results in the output")]
Wait = Annotated[bool, typer.Option(help="wait for the end and show progress")]
AsJson = Annotated[
    bool, typer.Option("--json", help="print one JSON object on stdout and nothing else there")
]
UrlColumn = Annotated[str | None, typer.Option(help="column of a table that holds the URL or path")]
IdColumn = Annotated[str | None, typer.Option(help="column of a table that names the item")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="job id")]


@app.command()
def classify(
    source: Source,
    labels: Annotated[str, typer.Option(help="names separated by commas, or a file with one per line")],
    template: Annotated[
        list[str] | None, typer.Option(help="prompt; {} is the label; may be repeated")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="labels to keep per image")] = 5,
    output: Output = None,
    model: Model = DEFAULT_MODEL,
    precision: PrecisionOption = Precision.AUTO,
    decode: Decode = DecodeRoute.FAST,
    lane: LaneOption = Lane.NORMAL,
    chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE,
    job_id: JobId = None,
    overwrite: Overwrite = False,
    wait: Wait = True,
    as_json: AsJson = False,
    url_column: UrlColumn = None,
    id_column: IdColumn = None,
) -> None:
    """Label every image with the best of some names (zero-shot)."""
    options = JobOptions(
        output, model, precision, decode, lane, chunk_size, job_id, overwrite, url_column, id_column
    )
    names = read_labels(labels)
    started = time.monotonic()
    with Client() as client:
        job = client.classify(
            source, names, templates=template or [DEFAULT_TEMPLATE], top_k=top_k, options=options
        )
        _follow(client, job, wait=wait, as_json=as_json, started=started)


@app.command()
def embed(
    source: Source,
    output: Output = None,
    model: Model = DEFAULT_MODEL,
    precision: PrecisionOption = Precision.AUTO,
    decode: Decode = DecodeRoute.FAST,
    lane: LaneOption = Lane.NORMAL,
    chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE,
    job_id: JobId = None,
    overwrite: Overwrite = False,
    wait: Wait = True,
    as_json: AsJson = False,
    url_column: UrlColumn = None,
    id_column: IdColumn = None,
) -> None:
    """Turn every image into a vector."""
    options = JobOptions(
        output, model, precision, decode, lane, chunk_size, job_id, overwrite, url_column, id_column
    )
    started = time.monotonic()
    with Client() as client:
        _follow(client, client.embed(source, options=options), wait=wait, as_json=as_json, started=started)


@app.command()
def status(job: JobArgument, as_json: AsJson = False) -> None:
    """Show where a job stands."""
    with Client() as client:
        snapshot = client.job(job).status()
        if as_json:
            typer.echo(json.dumps(_status_object(snapshot)))
            return
        for line in _status_lines(snapshot):
            typer.echo(line)
        problem = None if snapshot.state.is_final else why_nobody_works(snapshot, client.workers())
    if problem and not snapshot.leased_chunks:
        say(problem, style="yellow")


@app.command()
def jobs(
    limit: Annotated[int, typer.Option(min=1, help="show at most this many")] = 50, as_json: AsJson = False
) -> None:
    """List the newest jobs."""
    with Client() as client:
        snapshots = client.jobs(limit)
    if as_json:
        typer.echo(json.dumps({"jobs": [_status_object(snapshot) for snapshot in snapshots]}))
        return
    if not snapshots:
        say("no jobs yet: `clipfleet classify FOLDER --labels cat,dog` makes one")
        return
    table = Table("job", "state", "items", "ok", "failed", "created (UTC)")
    for snapshot in snapshots:
        table.add_row(
            snapshot.job_id, snapshot.state, f"{snapshot.total:,}", f"{snapshot.ok:,}",
            f"{snapshot.failed:,}", _utc(snapshot.created_ms),
        )  # fmt: skip
    Console().print(table)


@app.command()
def watch(job: JobArgument, as_json: AsJson = False) -> None:
    """Follow a job to its end; the exit code tells how it ended."""
    started = time.monotonic()
    with Client() as client:
        _follow(client, client.job(job), wait=True, as_json=as_json, started=started)


@app.command()
def results(
    job: Annotated[str, typer.Argument(metavar="JOB|OUTPUT", help="job id, or the folder of the results")],
    result_format: Annotated[result_files.ResultFormat, typer.Option("--format", help="how to print")] = (
        result_files.ResultFormat.TABLE
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="at most this many rows [table: 20]")] = None,
) -> None:
    """Print the rows that are there, in the order of the source."""
    output = open_output(_output_of(job))
    if result_format is result_files.ResultFormat.PARQUET and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal: add `> rows.parquet`")
    result_files.write(output, result_format, sys.stdout.buffer, limit=limit)


@app.command()
def cancel(job: JobArgument) -> None:
    """End a job early; the rows that are there stay."""
    with Client() as client:
        changed, state = client.job(job).cancel()
    say(f"job {job} is {state}" + ("" if changed else " already"))


@app.command()
def pause(job: JobArgument) -> None:
    """Hand out no more chunks of a job."""
    with Client() as client:
        _, state = client.job(job).pause()
    say(f"job {job} is {state}")


@app.command()
def resume(job: JobArgument) -> None:
    """Let a paused job go on."""
    with Client() as client:
        _, state = client.job(job).resume()
    say(f"job {job} is {state}")


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except UsageError as error:
        say_error(error)
        sys.exit(EXIT_USAGE)
    except ClipfleetError as error:
        say_error(error)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `clipfleet results ... | head`
        sys.stderr.close()
        sys.exit(0)


def read_labels(text: str) -> list[str]:
    """Labels from a file with one per line (blank lines are skipped), or from a list with commas.

    Raises:
        UsageError: no labels, or a file that cannot be read.
    """
    path = Path(text)
    if "," not in text and (path.suffix.lower() in (".txt", ".csv", ".lst") or path.is_file()):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--labels {text}: {error}") from None
        names = [line.strip() for line in lines if line.strip()]
    else:
        names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--labels {text!r} holds no label: give names separated by commas, or a file")
    return names


def _output_of(job: str) -> str:
    """The output of a job, or the folder itself: results outlive the ledger."""
    path = Path(job)
    if "/" in job or (path / "_clipfleet").is_dir():
        return str(path)
    try:
        with Client() as client:
            return client.job(job).output
    except JobNotFoundError:
        if path.is_dir():
            return str(path)
        raise


def _follow(client: Client, job: JobHandle, *, wait: bool, as_json: bool, started: float) -> None:
    if not as_json:
        say(f"job {job.job_id} -> {job.output}")
    with _interruptible(job):
        if wait:
            with JobProgress(client.workers, quiet=as_json) as progress:
                snapshot = job.wait(on_progress=progress.update, on_trouble=lambda text: say(text, "yellow"))
        else:
            snapshot = job.status()
    if as_json:
        summary = {
            "job_id": job.job_id,
            "state": snapshot.state.value,
            "total": snapshot.total,
            "ok": snapshot.ok,
            "failed": snapshot.failed,
            "output": job.output,
            "seconds": round(time.monotonic() - started, 3),
        }
        typer.echo(json.dumps(summary))
    else:
        _say_summary(client, job, snapshot, time.monotonic() - started)
    raise typer.Exit(_exit_code(snapshot) if wait else 0)


@contextmanager
def _interruptible(job: JobHandle) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say(f"the job goes on; come back with `clipfleet watch {job.job_id}`, end it with "
            f"`clipfleet cancel {job.job_id}`")  # fmt: skip
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _say_summary(client: Client, job: JobHandle, snapshot: JobStatus, seconds: float) -> None:
    if not snapshot.state.is_final:
        say(f"submitted {snapshot.total:,} items; follow them with `clipfleet watch {job.job_id}`")
        problem = why_nobody_works(snapshot, client.workers())
        if problem:
            say(problem, style="yellow")
        return
    style = "green" if snapshot.state is JobState.COMPLETED else "yellow"
    rows = snapshot.ok + snapshot.failed
    say(
        f"{snapshot.state}: {snapshot.ok:,} ok, {snapshot.failed:,} failed in {seconds:.1f} s "
        f"({rows / max(seconds, 0.001):,.0f}/s)",
        style=style,
    )
    if snapshot.reason:
        say(f"reason: {snapshot.reason}", style="red")
    for code, count in sorted(snapshot.codes.items(), key=lambda pair: -pair[1]):
        say(f"  {code}: {count:,}")
    if rows:
        say(f"see them with `clipfleet results {job.output}`")


def _exit_code(snapshot: JobStatus) -> int:
    match snapshot.state:
        case JobState.COMPLETED:
            return 0
        case JobState.COMPLETED_WITH_ERRORS:
            return EXIT_SOME_FAILED
        case JobState.CANCELLED:
            return EXIT_CANCELLED
        case _:
            return EXIT_FAILED


def _status_object(snapshot: JobStatus) -> dict[str, Any]:
    return asdict(snapshot) | {"state": snapshot.state.value, "lane": snapshot.lane.value}


def _status_lines(snapshot: JobStatus) -> Iterator[str]:
    done = snapshot.ok + snapshot.failed
    yield f"job      {snapshot.job_id}"
    yield f"state    {snapshot.state}" + (f" ({snapshot.reason})" if snapshot.reason else "")
    yield f"items    {done:,} of {snapshot.total:,}{'' if snapshot.sealed else ' so far'}"
    yield f"rows     {snapshot.ok:,} ok, {snapshot.failed:,} failed"
    yield (
        f"chunks   {snapshot.done_chunks:,} of {snapshot.chunks:,} done, {snapshot.leased_chunks:,} in work, "
        f"{snapshot.due_chunks:,} waiting for another try"
    )
    yield f"model    {snapshot.model}"
    yield f"created  {_utc(snapshot.created_ms)} UTC"
    for code, count in sorted(snapshot.codes.items(), key=lambda pair: -pair[1]):
        yield f"failed   {count:,} {code}"


def _utc(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S}"
