"""Commands that read rows: print them, show one, export them to the formats of other tools."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.connecting import open_client
from clipfleet.commands.naming import find_job, is_folder, is_output
from clipfleet.commands.options import (
    AsJson,
    ExportFolder,
    Job,
    Rows,
    names_between_commas,
    not_empty,
)
from clipfleet.commands.stores.arguments import AsOf
from clipfleet.contract.jobs import LAST
from clipfleet.contract.policies import DecisionStatus
from clipfleet.errors import JobNotFoundError, UsageError
from clipfleet.results.kinds import Layout, ResultFormat
from clipfleet.settings import Settings, checked
from clipfleet.terminal.console import say
from clipfleet.terminal.help import OUTPUT, ROWS
from clipfleet.terminal.lists import row_lines
from clipfleet.terminal.program import discard_stdout
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.results.one_row import FoundRow
    from clipfleet.results.rows import RowReader

_MOST_ROWS = 1_000_000_000  # to print

# The readers of rows import pyarrow, `--help` must not: their imports are in the functions.


Decided = Annotated[
    DecisionStatus | None,
    typer.Option(help="rows of a moderation job with this decision only", rich_help_panel=ROWS),
]
Corrected = Annotated[
    bool,
    typer.Option(
        "--corrected",
        help="with what people marked in place of the model's labels, and a column `corrected`",
        rich_help_panel=ROWS,
    ),
]


def results(
    job: Rows,
    result_format: Annotated[
        ResultFormat, typer.Option("--format", help="output format", rich_help_panel=OUTPUT)
    ] = (ResultFormat.TABLE),
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_ROWS,
            help="print at most this many rows (default for a table: 20)",
            rich_help_panel=ROWS,
        ),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="failed rows only", rich_help_panel=ROWS)] = False,
    label: Annotated[str | None, typer.Option(help="rows with this label only", rich_help_panel=ROWS)] = None,
    decision: Decided = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", callback=not_empty, help="sort by a column, such as score", rich_help_panel=ROWS
        ),
    ] = None,
    desc: Annotated[bool, typer.Option("--desc", help="sort from high to low", rich_help_panel=ROWS)] = False,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="columns to print, separated by commas (double-quote a name that contains a comma)",
            rich_help_panel=ROWS,
        ),
    ] = None,
    corrected: Corrected = False,
    as_of: AsOf = None,
) -> None:
    """Print the rows written so far, in source order unless sorted."""
    from clipfleet.results.formats import write
    from clipfleet.results.selection import Selection

    unbalanced = f'--columns: unbalanced double quotes in {columns!r}: write "a, b",c'
    names = names_between_commas([columns or ""], unbalanced)
    selection = Selection(
        failed=failed,
        label=label,
        decision=decision,
        sort=sort,
        descending=desc,
        columns=tuple(dict.fromkeys(names)),
    )
    with row_reader(job, as_of) as reader:
        if result_format is ResultFormat.PARQUET and sys.stdout.isatty():
            raise UsageError("cannot print Parquet to a terminal: add `> rows.parquet`")
        if corrected:
            reader = _corrected(reader)
        try:
            write(reader, result_format, sys.stdout.buffer, limit=limit, selection=selection)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has closed the pipe
            discard_stdout()


def _corrected(reader: RowReader) -> RowReader:
    from clipfleet.marking.correcting import corrected_rows

    found = corrected_rows(reader)
    if not found.has_marks:
        say("no marks are stored with these rows, see `clipfleet marks import`", style="yellow")
    return found


def show(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="id, index or URI of the item")],
    job: Job = LAST,
    as_of: AsOf = None,
    as_json: AsJson = False,
) -> None:
    """Print the row of one item whole: each column on a line of its own."""
    from clipfleet.parts.json_rows import json_line
    from clipfleet.results.one_row import find_row

    with row_reader(job, as_of) as reader:
        found = find_row(reader, item)
    if as_json:
        typer.echo(json_line(found.row), nl=False)
    else:
        for line in row_lines(found.row):
            typer.echo(line)
    if found.count > 1:
        say(_others(item, found), style="yellow")


def _others(item: str, found: FoundRow) -> str:
    more = found.count - 1 - len(found.others)
    indexes = ", ".join(map(str, found.others)) + (f" and {more:,} more" if more else "")
    return f"{found.count:,} rows have the {found.matched} {item!r}; the others are at index {indexes}"


def export(
    job: Rows,
    layout: Annotated[Layout, typer.Option(metavar="LAYOUT", help=", ".join(Layout), rich_help_panel=OUTPUT)],
    to: ExportFolder,
    as_of: AsOf = None,
    as_json: AsJson = False,
) -> None:
    """Export results to another tool's format."""
    from clipfleet.exports import export as write_export

    with row_reader(job, as_of) as reader:
        counts = write_export(reader, layout, Path(to))
        is_finished = reader.finished_at() is not None
    if as_json:
        typer.echo(json.dumps({"layout": layout, "to": to, "rows": counts.rows, "left_out": counts.left_out}))
        return
    say(f"{counted(counts.rows, 'row')} -> {to}")
    if counts.left_out:
        say(f"left out: {counted(counts.left_out, 'row')} without {counts.lack}", style="yellow")
    if not is_finished:
        say("the job has not finished: rows may be missing", style="yellow")
    for note in counts.notes:
        say(note)


@contextmanager
def row_reader(job: str, as_of: str | None = None) -> Iterator[RowReader]:
    """Open the rows of a job, see `find_job`, or of a store; a folder needs no ledger, which it outlives.

    Args:
        job: as the user names it.
        as_of: of a store, see `open_rows`.

    Raises:
        UsageError: neither exists, or there is no such version.
    """
    from clipfleet.moderation.decision_rows import open_place

    dated = job.rpartition("@")[0]  # of a place of decisions until a time
    is_place = is_folder(job) or (dated != "" and is_folder(dated))
    if is_output(job) or (job != LAST and is_place and not _is_job(job)):
        yield open_place(job, as_of)
        return
    require_no_version(job, as_of)
    if checked(Settings).redis_url is None:
        if job == LAST:
            raise UsageError(
                "CLIPFLEET_REDIS_URL is not set, and only Redis knows the last job: set it, or give the "
                "folder of the results"
            )
        raise UsageError(f"no folder {job!r} here: set CLIPFLEET_REDIS_URL to look for a job of this name")
    with open_client() as client:
        yield find_job(client, job).rows_reader()


def require_no_version(job: str, as_of: str | None) -> None:
    """Refuse a version of what is not a store.

    Raises:
        UsageError: one is given.
    """
    if as_of is not None:
        raise UsageError(f"{job} is a job: only stores have versions, leave --as-of out")


def _is_job(name: str) -> bool:
    if checked(Settings).redis_url is None:
        return False
    try:
        with open_client() as client:
            client.job(name)
    except JobNotFoundError:
        return False
    return True
