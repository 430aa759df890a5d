"""Jobs, workers and rows as tables, lines and JSON objects. Prints nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from clipfleet.ledger.status import JobStatus
from clipfleet.ledger.values import WorkerFacts
from clipfleet.terminal.console import printable, with_options
from clipfleet.terminal.progress import duration_words

GAP = 2  # terminal columns between two columns of a table
_LEAST = 12  # width to which a cell is shortened, at least
_SHARE_OF_MODELS = 0.5  # of the room for sources and models, where both are too long
_MOST_NUMBERS = 32  # of a list that is shown whole
_SHOWN_NUMBERS = 4
_RIGHT = ("items", "ok", "failed", "chunks", "pending", "attempts")


def job_object(status: JobStatus) -> dict[str, Any]:
    """A job as `--json` prints it."""
    facts, limit, brief = asdict(status), status.limit, status.brief
    del facts["brief"]
    about = asdict(brief) if brief else dict.fromkeys(("task", "source", "output", "labels"))
    return {"job_id": facts.pop("job_id"), **about, **facts} | {
        "state": status.state.value,
        "lane": status.lane.value,
        "done": status.done,
        "activity": status.activity or None,
        "limit": limit and asdict(limit),
        "age_seconds": _age_seconds(status),
        "seconds": _took_seconds(status),
    }


def job_lines(status: JobStatus) -> Iterator[str]:
    """A job as `clipfleet status` prints it."""
    yield f"job      {status.job_id}"
    if status.brief:
        yield f"task     {status.brief.task}"
        yield f"source   {status.brief.source}"
        yield f"output   {status.brief.output}"
        if status.brief.labels:
            yield f"labels   {status.brief.labels}"
    yield f"model    {status.model}"
    yield f"state    {status.state}" + (f" ({with_options(status.reason)})" if status.reason else "")
    yield f"created  {_utc(status.created_ms)} UTC ({duration_words(_age_seconds(status))} ago)"
    took = _took_seconds(status)
    if took is not None:
        yield f"took     {duration_words(took)}"
    yield f"items    {status.done:,} of {status.total:,}{'' if status.sealed else ' so far'}"
    if status.activity:
        yield f"now      {status.activity}"
    yield f"rows     {status.ok:,} ok, {status.failed:,} failed"
    yield (
        f"chunks   {status.done_chunks:,} of {status.chunks:,} done, {status.leased_chunks:,} running, "
        f"{status.due_chunks:,} waiting to retry"
    )
    if status.generation:
        yield f"retries  {status.generation}"
    if status.limit:
        yield f"limit    {status.limit}"
    for code, count in sorted(status.codes.items(), key=lambda pair: -pair[1]):
        yield f"failed   {count:,} {code}"


def job_table(statuses: Sequence[JobStatus], width: int | None) -> Table:
    """Jobs as a table.

    Args:
        statuses: the jobs.
        width: of the terminal: a job takes two lines, and long values are shortened in the middle to fit,
            except job ids. None: each job is one line of whole values.
    """
    if width is None:
        return _job_table_of_lines(statuses)
    cells = [_in_two_lines(status) for status in statuses]
    columns = [[_JOB_HEADINGS[number], *(row[number] for row in cells)] for number in range(6)]
    natural = [max(cell_len(line) for pair in column for line in pair) for column in columns]
    room = width - sum(natural) + natural[1] + natural[2] - GAP * (len(columns) - 1)
    widths = [natural[0], *_shared(room, natural[1], natural[2]), *natural[3:]]
    table = new_table()
    for number, (first, second) in enumerate(_JOB_HEADINGS):
        table.add_column(f"{first}\n{second}", no_wrap=True, justify="right" if number == 4 else "left")
    for row in cells:
        short = [[shortened(line, size) for line in pair] for pair, size in zip(row, widths, strict=True)]
        table.add_row(*(Text.assemble(first, "\n", (second, "dim")) for first, second in short))
    return table


_JOB_HEADINGS = (
    ("job", "task"), ("source", "output"), ("model", "labels"), ("state", ""), ("items", "failed"),
    ("age", "took"),
)  # fmt: skip


def _in_two_lines(status: JobStatus) -> list[tuple[str, str]]:
    task, source, output, labels = _about(status)
    done, took = status.done, _took_seconds(status)
    state, _, more = status.state.replace("_", " ").partition(" ")
    is_whole = status.state.is_final and done == status.total
    counted = f"{done:,}" if is_whole else f"{done:,} of {status.total:,}"
    pairs = (
        (status.job_id, task), (source, output), (status.model, labels), (state, more),
        (counted, f"{status.failed:,}"),
        (_coarse(_age_seconds(status)), "" if took is None else _coarse(took)),
    )  # fmt: skip
    return [(printable(first), printable(second)) for first, second in pairs]


def _job_table_of_lines(statuses: Sequence[JobStatus]) -> Table:
    table = new_table(
        "job", "state", "task", "source", "output", "labels", "model", "items", "ok", "failed",
        "created (UTC)", "age", "took",
    )  # fmt: skip
    for status in statuses:
        task, source, output, labels = _about(status)
        took = _took_seconds(status)
        cells = (
            status.job_id, status.state.value, task, source, output, labels, status.model,
            f"{status.total:,}", f"{status.ok:,}", f"{status.failed:,}", _utc(status.created_ms),
            duration_words(_age_seconds(status)), "" if took is None else duration_words(took),
        )  # fmt: skip
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _about(status: JobStatus) -> tuple[str, str, str, str]:
    brief = status.brief
    return (brief.task, brief.source, brief.output, brief.labels) if brief else ("", "", "", "")


def worker_object(facts: WorkerFacts) -> dict[str, Any]:
    """A worker as `--json` prints it."""
    return asdict(facts)


def worker_table(workers: Sequence[WorkerFacts]) -> Table:
    """Connected workers as a table of whole values."""
    table = new_table("worker", "host", "pid", "device", "models", "chunks", "up", "last heartbeat")
    for facts in workers:
        cells = (
            facts.worker_id, facts.host, str(facts.pid), facts.device, ", ".join(facts.models),
            f"{facts.held_chunks:,}", "" if facts.up_seconds is None else duration_words(facts.up_seconds),
            f"{duration_words(facts.silent_seconds)} ago",
        )  # fmt: skip
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def row_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """A row with one column per line; vectors and other long lists are shortened."""
    width = max(map(cell_len, map(printable, row)))
    for name, value in row.items():
        shown = printable(name)
        yield f"{shown}{' ' * (width - cell_len(shown))}  {_value(value)}".rstrip()


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) > _MOST_NUMBERS:
        return f"{len(value):,} values: {', '.join(map(_value, value[:_SHOWN_NUMBERS]))}, ..."
    if isinstance(value, list) and all(isinstance(one, str | float) for one in value):
        return ", ".join(map(_value, value))
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def shortened(text: str, width: int) -> str:
    """Cut out the middle of a text that is wider than this: of a path more of the end is kept."""
    if cell_len(text) <= width:
        return text
    head = (width - 1) // 3
    tail = width - 1 - head
    return f"{set_cell_size(text, head)}\u2026{set_cell_size(text[::-1], tail)[::-1]}"


def _shared(room: int, first: int, second: int) -> tuple[int, int]:
    """Widths of two columns that need so much together."""
    if first + second <= room:
        return first, second
    second = max(_LEAST, min(second, max(int(room * _SHARE_OF_MODELS), room - first)))
    return max(_LEAST, room - second), second


def new_table(*headings: str) -> Table:
    """An empty table in the house's style."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right" if heading in _RIGHT else "left")
    return table


def _age_seconds(status: JobStatus) -> float:
    return max(0.0, (status.asked_ms - status.created_ms) / 1000)


def _took_seconds(status: JobStatus) -> float | None:
    """From the submit to the end; None while it runs, or if it was retried: when is not recorded."""
    return status.lasted_seconds if status.state.is_final and not status.generation else None


def _coarse(seconds: float) -> str:
    """The larger unit of `duration_words` only."""
    return " ".join(duration_words(seconds).split()[:2])


def _utc(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S}"
