"""Unfinished jobs as a table for a terminal of any width: two lines each. Prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clipfleet.ledger.status import JobStatus
from clipfleet.terminal.console import printable
from clipfleet.terminal.lists import GAP, new_table, shortened
from clipfleet.terminal.progress import duration_words, rate_words

LINES_OF_A_JOB = 2
HEAD_LINES = 3

_HEADINGS = (
    ("job", "task"), ("model", "lane"), ("progress", "state"), ("items", "failed"), ("rate", "left"),
    ("workers", "chunks"),
)  # fmt: skip
_COLUMNS = range(len(_HEADINGS))
_JOB, _MODEL, _BAR, _ITEMS, _RATE, _WORKERS = _COLUMNS
_WIDEST_BAR, _LEAST_BAR, _LEAST_MODEL = 30, 10, 12
_DROPPED = (_MODEL, _WORKERS, _BAR, _RATE)  # one after the other, where a terminal is narrow


@dataclass(frozen=True, slots=True)
class WatchedJob:
    """An unfinished job as one look shows it."""

    status: JobStatus
    rows_per_second: float | None  # None where it is not known
    seconds_left: float | None
    workers: int  # connected ones that serve its model


def watched_table(jobs: Sequence[WatchedJob], width: int) -> Table:
    """Jobs as a table of at most this width, unless ids and counts alone are wider."""
    rows = [_texts(job) for job in jobs]
    natural = [
        max(cell_len(text) for row in (_HEADINGS, *rows) for text in row[number]) for number in _COLUMNS
    ]
    widths = _widths(natural, width)
    table = new_table()
    for number in widths:
        table.add_column("\n".join(_HEADINGS[number]), no_wrap=True)
    for job, row in zip(jobs, rows, strict=True):
        table.add_row(*(_cell(job, number, row[number], wide) for number, wide in widths.items()))
    return table


def _texts(job: WatchedJob) -> list[tuple[str, str]]:
    status, rate, left = job.status, job.rows_per_second, job.seconds_left
    so_far = "" if status.sealed else " so far"
    pairs = (
        (status.job_id, status.brief.task if status.brief else ""),
        (status.model, status.lane.value),
        ("", status.activity or status.state.value),
        (f"{status.done:,} of {status.total:,}{so_far}", f"{status.failed:,}"),
        ("" if rate is None else f"{rate_words(rate)}/s", "" if left is None else duration_words(left)),
        (f"{job.workers:,}", f"{status.leased_chunks:,}"),
    )
    return [(printable(first), printable(second)) for first, second in pairs]


def _widths(natural: Sequence[int], width: int) -> dict[int, int]:
    """The columns that have room, and their widths: the model and the bar share what the others leave."""
    least = {number: natural[number] for number in _COLUMNS}
    least |= {_MODEL: min(_LEAST_MODEL, natural[_MODEL]), _BAR: _LEAST_BAR}
    for number in _DROPPED:
        if sum(least.values()) + GAP * (len(least) - 1) > width:
            del least[number]
    room = width - sum(least.values()) - GAP * (len(least) - 1)
    for number, most in ((_MODEL, natural[_MODEL]), (_BAR, max(_WIDEST_BAR, natural[_BAR]))):
        if number in least:
            more = max(0, min(room, most - least[number]))
            least[number] += more
            room -= more
    return least


def _cell(job: WatchedJob, number: int, texts: tuple[str, str], width: int) -> RenderableType:
    first, second = (shortened(text, width) if number in (_MODEL, _BAR) else text for text in texts)
    if number == _BAR:
        bar = ProgressBar(total=max(1, job.status.total), completed=job.status.done, width=width)
        return Group(bar, Text(f"\n{second}", "dim"))  # a bar does not end its line
    if number == _ITEMS and job.status.failed:
        return Text.assemble(first, "\n", (second, "red"))
    if number == _WORKERS and not job.workers:
        return Text.assemble((first, "yellow"), "\n", (second, "dim"))
    return Text.assemble(first, "\n", (second, "dim"))
