"""The group `marks`: marks that are kept beside the rows they are about."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from clipfleet.commands.marks.options import SetName
from clipfleet.commands.marks.thresholds import say_void
from clipfleet.commands.options import AsJson, job_ids, not_empty
from clipfleet.commands.results import row_reader
from clipfleet.contract.jobs import LAST
from clipfleet.terminal.console import say
from clipfleet.terminal.help import SOURCE, Group, add_command, epilog
from clipfleet.wording import counted

marks_app = typer.Typer(
    help="Keep marks beside the rows that they are about.",
    epilog=epilog("clipfleet marks import project.json --job results/photos"),
    cls=Group,
    no_args_is_help=True,
)

MarkedJob = Annotated[
    str,
    typer.Option(
        metavar="JOB|OUTPUT",
        callback=not_empty,
        help="job id, `last`, or the folder or S3 prefix of the results",
        rich_help_panel=SOURCE,
        autocompletion=job_ids,
    ),
]

# The readers of rows import pyarrow, `--help` must not: their imports are in the functions.


def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="marks: .csv, .jsonl, or .json as Label Studio exports it"),
    ],
    job: MarkedJob = LAST,
    set_name: SetName = None,
    as_json: AsJson = False,
) -> None:
    """Store marks in the output of a job, where exports and `results --corrected` apply them."""
    from clipfleet.marking.importing import import_marks

    with row_reader(job) as reader:
        found = import_marks(reader, files, set_name, datetime.now(UTC))
        uri = reader.uri
    if as_json:
        about = {"file": found.file.name, "is_new": found.file.is_new, "output": uri}
        counts = {"marks": found.marks, "items": found.items}
        void = [{"mark": mark.where, "label": mark.label} for mark in found.void]
        typer.echo(json.dumps({**about, **counts, "void": void, "unanswered": found.unanswered}))
        return
    what = f"{counted(found.marks, 'mark')} on {counted(found.items, 'item')}"
    if found.file.is_new:
        say(f"{what} -> {uri}/{found.file.name}")
    else:
        say(f"{what}: stored before, in {uri}/{found.file.name}")
    say_void(found.void, found.unanswered)


add_command(marks_app, "clipfleet marks import project.json --job results/photos", name="import")(
    import_files
)


@marks_app.callback()
def _group() -> None:
    """Keep the group, though it has one command."""
