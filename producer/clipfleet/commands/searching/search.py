"""The command that searches the vectors of an output or a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from clipfleet.commands.connecting import open_client
from clipfleet.commands.following import interruptible
from clipfleet.commands.options import AsJson, names_between_commas, not_empty
from clipfleet.commands.results import row_reader
from clipfleet.commands.stores.arguments import AsOf
from clipfleet.errors import UsageError
from clipfleet.labels.extra import require_numpy
from clipfleet.terminal.console import print_table, printable, say, say_trouble
from clipfleet.terminal.help import OUTPUT, ROWS, SOURCE
from clipfleet.terminal.interrupted import words_after_evaluating
from clipfleet.terminal.progress import JobProgress
from clipfleet.wording import counted

if TYPE_CHECKING:
    import numpy as np

    from clipfleet.client import Client, JobHandle
    from clipfleet.ledger.jobs import JobStatus
    from clipfleet.results.rows import RowReader
    from clipfleet.search.searching import Hits

_MOST_HITS = 10_000

_Words = Annotated[
    list[str],
    typer.Argument(
        metavar="[TEXT] JOB|OUTPUT|STORE",
        help="what the images show, unless --image or --like is given; then a job id, `last`, or the folder "
        "or S3 prefix of results with embeddings, or of a store",
    ),
]
_Image = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|URL",
        callback=not_empty,
        help="search by an image: a file of this machine, or a URL that a worker fetches",
        rich_help_panel=SOURCE,
    ),
]
_Like = Annotated[
    str | None,
    typer.Option(
        metavar="ITEM",
        callback=not_empty,
        help="search by the vector of an item, by its id, index or URI; needs no worker",
        rich_help_panel=SOURCE,
    ),
]
_Where = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITION",
        callback=not_empty,
        help='search only rows that a condition in SQL holds for, such as "width >= 640 AND uri LIKE '
        "'%.jpg'\"",
        rich_help_panel=ROWS,
    ),
]
_Columns = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...", help="further columns of the hits, separated by commas", rich_help_panel=ROWS
    ),
]
_Html = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="also write a page with the images, which it loads from where they are",
        rich_help_panel=OUTPUT,
    ),
]


def search(
    words: _Words,
    image: _Image = None,
    like: _Like = None,
    top: Annotated[
        int, typer.Option(min=1, max=_MOST_HITS, help="print at most this many hits", rich_help_panel=ROWS)
    ] = 20,
    where: _Where = None,
    columns: _Columns = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="compare all vectors, also in a store that has an index, which may miss some",
            rich_help_panel=ROWS,
        ),
    ] = False,
    as_of: AsOf = None,
    html: _Html = None,
    as_json: AsJson = False,
) -> None:
    """Search images by a text, by an image, or by one of them."""
    require_numpy("searches")
    from clipfleet.search.searching import SHOWN_COLUMNS, Wanted
    from clipfleet.search.searching import search as found_in

    asked = _asked(words, image, like)
    names = names_between_commas(
        [columns or ""], f'--columns: unbalanced double quotes in {columns!r}: write "a, b",c'
    )
    wanted = Wanted(top, tuple(dict.fromkeys([*SHOWN_COLUMNS, *names])), where)
    with ExitStack() as opened:
        opened.enter_context(interruptible(words_after_evaluating))
        reader = opened.enter_context(row_reader(asked.rows, as_of))
        connect = cache(lambda: opened.enter_context(open_client()))
        vector = _vector_of(asked, reader, connect, quiet=as_json)
        found = found_in(reader, vector, wanted, exact=exact)
        _report(reader.uri, asked, found, html, has_condition=where is not None, as_json=as_json)
        if reader.finished_at() is None and not as_json:
            say("the job has not finished: rows may be missing", style="yellow")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is searched for, in one of three ways, and where."""

    rows: str
    text: str | None
    image: str | None
    like: str | None

    @property
    def words(self) -> str:
        return self.text or self.image or f"like {self.like}"


def _asked(words: list[str], image: str | None, like: str | None) -> _Asked:
    if image is not None and like is not None:
        raise UsageError("give --image or --like, not both")
    has_text = image is None and like is None
    if len(words) != (2 if has_text else 1):
        what = "a text to search for, then" if has_text else "only"
        raise UsageError(f"give {what} a job, an output or a store to search")
    return _Asked(words[-1], words[0] if has_text else None, image, like)


def _vector_of(asked: _Asked, reader: RowReader, connect: Callable[[], Client], *, quiet: bool) -> np.ndarray:
    """The vector of the query, float32 (d,)."""
    from clipfleet.search.queries import QueryEncoder, image_query, made_by, text_query, vector_of_item

    if asked.like is not None:
        return vector_of_item(reader, asked.like)
    query = text_query(asked.text or "") if asked.image is None else image_query(asked.image)

    def wait(job: JobHandle) -> JobStatus:
        with JobProgress(connect().workers, quiet=quiet) as progress:
            return job.wait(on_progress=progress.update, on_trouble=say_trouble)

    return QueryEncoder(connect, wait).vector(query, made_by(reader))


def _report(
    source: str, asked: _Asked, found: Hits, html: Path | None, *, has_condition: bool, as_json: bool
) -> None:
    from clipfleet.parts.json_rows import json_dicts
    from clipfleet.search.page import write_page

    hits = [row for batch in found.rows.to_batches() for row in json_dicts(batch)]
    if html is not None:
        write_page(html, asked.words, f"{counted(len(hits), 'hit')} in {source}", hits)
    if as_json:
        query = {"text": asked.text, "image": asked.image, "like": asked.like}
        typer.echo(json.dumps({"source": source, "query": query, "exact": found.is_exact, "hits": hits}))
        return
    if not hits:
        say("no hits" + (": --where holds for no row with a vector" if has_condition else ""))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in found.rows.column_names:
        table.add_column(Text(printable(name)), no_wrap=True)
    for hit in hits:
        table.add_row(*(Text(_cell(value)) for value in hit.values()))
    print_table(table)
    if not found.is_exact:
        say("searched by the index, which may miss some; --exact compares all vectors")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else printable(str(value))
