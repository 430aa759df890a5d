"""The command that compares two outputs or stores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipfleet.commands.options import AsJson
from clipfleet.commands.results import row_reader
from clipfleet.labels.extra import require_numpy
from clipfleet.terminal.console import printable, say
from clipfleet.terminal.help import OUTPUT, ROWS
from clipfleet.terminal.share import ShareDone
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.results.rows import RowReader
    from clipfleet.search.diffing import Difference, LabelChanges

_MOST_NAMED, _MOST_SAMPLED = 10_000, 10_000
_WHAT = (
    "a job id, `last`, the folder or S3 prefix of results, or a store: as it is, or STORE@VERSION, "
    "STORE@DATE or STORE@FINGERPRINT"
)


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=_WHAT)],
    second: Annotated[str, typer.Argument(metavar="B", help="what A is compared with: any of these, too")],
    top: Annotated[
        int,
        typer.Option(
            min=1,
            max=_MOST_NAMED,
            help="name at most this many items, and pairs of labels",
            rich_help_panel=OUTPUT,
        ),
    ] = 10,
    sample: Annotated[
        int,
        typer.Option(
            min=1,
            max=_MOST_SAMPLED,
            help="compare the nearest neighbours of so many items",
            rich_help_panel=ROWS,
        ),
    ] = 500,
    as_json: AsJson = False,
) -> None:
    """Compare two outputs, stores or versions: items, labels, vectors, nearest neighbours."""
    require_numpy("differences")
    from clipfleet.search.diffing import difference

    with ExitStack() as opened:
        readers = [_opened(name, opened) for name in (first, second)]
        with ShareDone("comparing", quiet=as_json) as progress:
            found = difference(*readers, top=top, sample=sample, on_progress=progress.update)
        if as_json:
            typer.echo(json.dumps(_object(found, readers)))
            return
        for line in _lines(found, readers):
            typer.echo(printable(line))
        for reader in readers:
            if reader.finished_at() is None:
                say(f"{reader.uri}: the job has not finished: rows may be missing", style="yellow")


def _opened(name: str, opened: ExitStack) -> RowReader:
    from clipfleet.results.places import open_version

    return open_version(name) or opened.enter_context(row_reader(name))


def _object(found: Difference, readers: list[RowReader]) -> dict[str, Any]:
    here, there = readers
    made_here, made_there = found.fingerprints
    return {
        "first": _side(here, made_here, found.only_first, found.only_first_ids),
        "second": _side(there, made_there, found.only_second, found.only_second_ids),
        "common": found.common,
        "changed_files": found.changed_files,
        "labels": {
            name: {
                "changed": changes.changed,
                "pairs": [
                    {"first": here, "second": there, "items": items} for (here, there), items in changes.pairs
                ],
            }
            for name, changes in found.labels.items()
        },
        "vectors": found.vectors and asdict(found.vectors),
        "neighbours": found.neighbours and asdict(found.neighbours),
        "moved": [asdict(one) for one in found.moved],
    }


def _side(reader: RowReader, made_by: Sequence[str], only_here: int, ids: Sequence[str]) -> dict[str, Any]:
    return {
        "source": reader.uri, "fingerprints": [*made_by], "only_here": only_here, "only_here_ids": [*ids]
    }  # fmt: skip


def _lines(found: Difference, readers: list[RowReader]) -> Iterator[str]:
    for name, reader, prints in zip("AB", readers, found.fingerprints, strict=True):
        made_by = f"  (model fingerprint {', '.join(prints)})" if prints else ""
        yield f"{name}  {reader.uri}{made_by}"
    only = f"{found.only_first:,} only in A, {found.only_second:,} only in B"
    yield f"items       {found.common:,} in both, {only}"
    for name, ids in (("A", found.only_first_ids), ("B", found.only_second_ids)):
        if ids:
            yield f"  only in {name}: {', '.join(ids)}"
    yield f"files       {found.changed_files:,} of the common items have other bytes"
    yield from _label_lines(found.labels, found.common)
    if found.vectors is not None:
        mean = f", whose mean cosine is {found.vectors.mean_cosine:.4f}" if found.vectors.changed else ""
        yield f"vectors     {found.vectors.changed:,} differ{mean}"
    near = found.neighbours
    if near is not None:
        low, high = near.interval
        yield (
            f"neighbours  {near.agreement:.1%} of the {near.count} nearest are the same "
            f"({low:.1%} to {high:.1%}; {counted(near.sampled, 'item')} sampled)"
        )
    if found.moved:
        by = "cosine of the two vectors" if found.vectors else f"share of the {near and near.count} nearest"
        yield f"moved most, by the {by}"
        for one in found.moved:
            yield f"  {one.agreement:.4f}  {one.item_id}"


def _label_lines(labels: Mapping[str, LabelChanges], common: int) -> Iterator[str]:
    for name, changes in labels.items():
        yield f"{name:<10}  {changes.changed:,} of {counted(common, 'item')} changed"
        for (here, there), items in changes.pairs:
            yield f"  {items:>8,}  {here or '(none)'} -> {there or '(none)'}"
