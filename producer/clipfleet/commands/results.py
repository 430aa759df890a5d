"""Commands that read rows: print them, export them to the formats of other tools."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.connecting import open_client
from clipfleet.commands.options import AsJson, ExportFolder, JobOrOutput
from clipfleet.errors import JobNotFoundError, UsageError
from clipfleet.results.kinds import Layout, ResultFormat
from clipfleet.settings import Settings, checked
from clipfleet.terminal.console import say
from clipfleet.terminal.help import OUTPUT, ROWS
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.client import Client, JobHandle
    from clipfleet.results.rows import RowReader

# The readers of rows import pyarrow, `--help` must not: their imports are in the functions.


def results(
    job: JobOrOutput,
    result_format: Annotated[
        ResultFormat, typer.Option("--format", help="output format", rich_help_panel=OUTPUT)
    ] = (ResultFormat.TABLE),
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="print at most this many rows (default for a table: 20)", rich_help_panel=ROWS
        ),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="failed rows only", rich_help_panel=ROWS)] = False,
    label: Annotated[str | None, typer.Option(help="rows with this label only", rich_help_panel=ROWS)] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="sort by a column, such as score", rich_help_panel=ROWS),
    ] = None,
    desc: Annotated[bool, typer.Option("--desc", help="sort from high to low", rich_help_panel=ROWS)] = False,
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="columns to print, separated by commas", rich_help_panel=ROWS),
    ] = None,
) -> None:
    """Print the rows written so far, in source order unless sorted."""
    from clipfleet.results.formats import write
    from clipfleet.results.selection import Selection

    chosen = tuple(filter(None, (name.strip() for name in (columns or "").split(","))))
    selection = Selection(failed=failed, label=label, sort=sort, descending=desc, columns=chosen)
    with row_reader(job) as reader:
        if result_format is ResultFormat.PARQUET and sys.stdout.isatty():
            raise UsageError("cannot print Parquet to a terminal: add `> rows.parquet`")
        try:
            write(reader, result_format, sys.stdout.buffer, limit=limit, selection=selection)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has closed the pipe: discard what is left to flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def export(
    job: JobOrOutput,
    layout: Annotated[Layout, typer.Option(metavar="LAYOUT", help=", ".join(Layout), rich_help_panel=OUTPUT)],
    to: ExportFolder,
    as_json: AsJson = False,
) -> None:
    """Export results to another tool's format."""
    from clipfleet.exports import export as write_export

    with row_reader(job) as reader:
        counts = write_export(reader, layout, Path(to))
        is_finished = reader.finished_at() is not None
    if as_json:
        typer.echo(json.dumps({"layout": layout, "to": to, "rows": counts.rows, "left_out": counts.left_out}))
        return
    say(f"{counted(counts.rows, 'row')} -> {to}")
    if counts.left_out:
        say(f"left out: {counted(counts.left_out, 'row')} without an embedding", style="yellow")
    if not is_finished:
        say("the job has not finished: rows may be missing", style="yellow")
    for note in counts.notes:
        say(note)


@contextmanager
def row_reader(job: str) -> Iterator[RowReader]:
    """Open the rows of a job id, or of an output, which outlives the ledger.

    Raises:
        UsageError: neither exists.
    """
    from clipfleet.outputs import open_output
    from clipfleet.results.part_rows import PartRows

    path = Path(job)
    if is_output(job) or (path.is_dir() and not _is_job(job)):
        yield PartRows(open_output(job))
        return
    if checked(Settings).redis_url is None:
        raise UsageError(f"no folder {job!r} here: set CLIPFLEET_REDIS_URL to look for a job of this name")
    with open_client() as client:
        yield known_job(client, job).rows_reader()


def known_job(client: Client, job_id: str) -> JobHandle:
    """Return a job that Redis knows; a `JobNotFoundError` names the alternative."""
    try:
        return client.job(job_id)
    except JobNotFoundError as error:
        raise JobNotFoundError(
            f"{error}; ended jobs expire, with their rows in Redis: give the output instead"
        ) from None


def _is_job(name: str) -> bool:
    if checked(Settings).redis_url is None:
        return False
    try:
        with open_client() as client:
            client.job(name)
    except JobNotFoundError:
        return False
    return True


def is_output(job: str) -> bool:
    """Whether an output was given, not a job id.

    Raises:
        UsageError: it is a file.
    """
    from clipfleet.outputs import objects

    path = Path(job)
    if "/" in job and path.is_file():
        raise UsageError(f"{job} is a file: give the folder of the results, or a job id")
    if "/" in job or (path / objects.INTERNAL).is_dir():
        return True
    return any(objects.is_part(str(file.relative_to(path))) for file in path.glob("**/part-*"))
