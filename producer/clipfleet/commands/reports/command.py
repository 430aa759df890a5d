"""The command that writes a report."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.marks.options import MARKS, Label, LabelsFile, SetName
from clipfleet.commands.options import AsJson, Rows, not_empty
from clipfleet.commands.results import row_reader
from clipfleet.errors import UsageError
from clipfleet.terminal.console import say
from clipfleet.terminal.help import LABELS, OUTPUT, ROWS
from clipfleet.wording import counted, size_words

if TYPE_CHECKING:
    from clipfleet.report.building import Report

# The readers of rows import pyarrow, `--help` must not: their imports are in the functions.

_MOST_PER_LABEL = 500


def report(
    job: Rows,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="page to write, an .html", rich_help_panel=OUTPUT
        ),
    ] = Path("report.html"),
    per_label: Annotated[
        int,
        typer.Option(
            min=2, max=_MOST_PER_LABEL, help="items in the sheet of each label", rich_help_panel=OUTPUT
        ),
    ] = 24,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="JOB|OUTPUT",
            callback=not_empty,
            help="earlier results of the same items: shows what moved",
            rich_help_panel=ROWS,
        ),
    ] = None,
    truth_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=not_empty,
            help="column of the source with the true label: shows precision and what gets confused",
            rich_help_panel=LABELS,
        ),
    ] = None,
    labels: LabelsFile = None,
    marks: Annotated[list[Path] | None, MARKS] = None,
    label: Label = None,
    count: Annotated[
        int,
        typer.Option("--count", "-n", min=1, help="items of a fit sample per label", rich_help_panel=LABELS),
    ] = 60,
    set_name: SetName = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page that shows results: figures, images, failures, and what to mark next."""
    from clipfleet.report.building import Wanted, make_report
    from clipfleet.report.page import require_replaceable, write_page

    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{output}: a report is written as .html: name such a file")
    require_replaceable(output)
    with ExitStack() as opened:
        reader = opened.enter_context(row_reader(job))
        compared = None if compare is None else opened.enter_context(row_reader(compare))
        found = make_report(
            reader,
            Wanted(set_name, labels, marks or (), label or (), truth_column, per_label, count, compared),
        )
        images = write_page(output, found, None)
    _say_what_is_there(output, found, images, as_json=as_json)


def _say_what_is_there(output: Path, found: Report, images: int, *, as_json: bool) -> None:
    size_bytes = output.stat().st_size
    drawn = found.drawing.drawn
    to_mark = 0 if drawn is None else sum(len(sample.items) for sample in drawn.samples)
    if as_json:
        about = {"report": str(output), "rows": found.rows, "ok": found.ok, "failed": found.rows - found.ok}
        typer.echo(json.dumps({**about, "to_mark": to_mark, "images": images, "size_bytes": size_bytes}))
        return
    for note in found.notes:
        say(note, style="yellow")
    if to_mark:
        say(f"{counted(to_mark, 'item')} to mark in the page")
    say(f"{counted(found.rows, 'row')} -> {output} ({size_words(size_bytes)})")
