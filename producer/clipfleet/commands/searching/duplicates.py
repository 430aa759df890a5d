"""The command that finds duplicates among the images of an output or a store."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.options import AsJson, Rows
from clipfleet.commands.results import row_reader
from clipfleet.commands.stores.arguments import AsOf
from clipfleet.errors import UsageError
from clipfleet.labels.extra import require_numpy
from clipfleet.terminal.console import printable, say
from clipfleet.terminal.help import OUTPUT, ROWS
from clipfleet.terminal.share import ShareDone
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.results.rows import RowReader
    from clipfleet.search.duplicates import Duplicates, Group

_SHOWN_GROUPS, _SHOWN_ITEMS = 20, 5


def duplicates(
    rows: Rows,
    threshold: Annotated[
        float,
        typer.Option(
            min=0.5,
            max=1,
            help="least cosine of the vectors of two images that are alike",
            rich_help_panel=ROWS,
        ),
    ] = 0.97,
    as_of: AsOf = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="print all groups as CSV, one line per item", rich_help_panel=OUTPUT)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find groups of images that are equal, or alike: equal files first."""
    require_numpy("duplicates")
    if as_csv and as_json:
        raise UsageError("give --csv or --json, not both")
    from clipfleet.search.duplicates import duplicates as found_in

    with row_reader(rows, as_of) as reader, ShareDone("comparing", quiet=as_json) as progress:
        with found_in(reader, threshold, progress.update) as found:
            progress.end()
            if as_json:
                _print_json(reader, threshold, found)
            elif as_csv:
                _print_csv(found)
            else:
                _print_lines(found)
        if reader.finished_at() is None and not as_json:
            say("the job has not finished: rows may be missing", style="yellow")


def _print_json(reader: RowReader, threshold: float, found: Duplicates) -> None:
    """One object, whose groups are printed one by one: there may be many."""
    head = {
        "source": reader.uri, "threshold": threshold, "items": found.items, "groups_found": found.count,
        "surplus": found.surplus,
    }  # fmt: skip
    typer.echo(f'{json.dumps(head)[:-1]}, "groups": [', nl=False)
    for number, group in enumerate(found.groups):
        items = [asdict(one) for one in group.members]
        typer.echo("," * (number > 0) + json.dumps({"equal": group.are_equal, "items": items}), nl=False)
    typer.echo("]}")


def _print_csv(found: Duplicates) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["group", "equal", "item_id", "uri", "content_hash", "cosine"])
    for number, group in enumerate(found.groups):
        for one in group.members:
            writer.writerow(
                [
                    number,
                    str(group.are_equal).lower(),
                    one.item_id,
                    one.uri,
                    one.content_hash,
                    f"{one.cosine:.6f}",
                ]
            )


def _print_lines(found: Duplicates) -> None:
    typer.echo(
        f"{counted(found.count, 'group')} among {counted(found.items, 'item')}, with "
        f"{counted(found.surplus, 'item')} besides the first of each"
    )
    for group in islice(found.groups, _SHOWN_GROUPS):
        for line in _lines(group):
            typer.echo(printable(line))
    if found.count > _SHOWN_GROUPS:
        typer.echo(f"and {found.count - _SHOWN_GROUPS:,} more groups: print all with --csv or --json")


def _lines(group: Group) -> Iterator[str]:
    what = "equal files" if group.are_equal else "alike"
    yield f"{counted(len(group.members), 'item')}, {what}"
    for one in group.members[:_SHOWN_ITEMS]:
        yield f"  {one.cosine:.4f}  {one.item_id}" + (f"  {one.uri}" if one.uri != one.item_id else "")
    if len(group.members) > _SHOWN_ITEMS:
        yield f"  and {len(group.members) - _SHOWN_ITEMS:,} more"
