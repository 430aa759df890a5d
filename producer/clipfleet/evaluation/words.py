"""An evaluation in a few lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from clipfleet.evaluation.outcome import ClassRow, Compared, Evaluation, GroupRow, Interval, Measured
from clipfleet.evaluation.vectors import FailedItem
from clipfleet.wording import counted

_SHOWN = 5  # classes, confusions and failed items


def evaluation_lines(found: Evaluation) -> Iterator[str]:
    """The metrics with their 95 % intervals, the worst classes, the most frequent confusions, what failed."""
    measured = found.measured
    where = found.source if found.split is None else f"{found.source}, split {found.split}"
    head = "" if found.head is None else f", head {found.head.name}"
    yield f"{where}: {counted(measured.items, 'item')}, model {found.model}{head}"
    yield from metric_lines(measured)
    yield from _class_lines(measured.classes)
    yield from _group_lines(measured.groups)
    yield from confusion_lines(measured)
    yield from _comparison_lines(found)
    yield from _failed_lines("left out of " + (found.compared_with or ""), found.compared_failed)
    yield from _failed_lines("left out", found.failed)


def metric_lines(measured: Measured) -> Iterator[str]:
    """The metrics with their 95 % intervals, and why one has no value."""
    width = max(map(len, measured.metrics))
    for name, value in measured.metrics.items():
        yield f"  {name:<{width}}  {_number(value)}{_interval(measured.intervals.get(name))}"
    for note in measured.notes:
        yield f"  {note}"


def confusion_lines(measured: Measured) -> Iterator[str]:
    """The most frequent confusions, if there are any."""
    confused = [cell for cell in measured.confusion if cell.truth_index != cell.predicted_index][:_SHOWN]
    if confused:
        yield "most frequent confusions"
        width = max(len(str(cell.count)) for cell in confused)
        for cell in confused:
            yield f"  {cell.count:>{width}}  {cell.truth} taken for {cell.predicted}"


def _class_lines(classes: tuple[ClassRow, ...]) -> Iterator[str]:
    scored = [(_score(row), row) for row in classes if row.n and _score(row) is not None]
    worst = sorted(scored, key=lambda pair: (pair[0] or 0.0, -pair[1].n))[:_SHOWN]
    if not worst:
        return
    what = "recall" if worst[0][1].recall is not None else "average precision"
    yield f"lowest {what}"
    width = max(len(row.label) for _, row in worst)
    for value, row in worst:
        yield f"  {row.label:<{width}}  {_number(value)}{_interval(row.recall_interval)} of {row.n:,}"


def _group_lines(groups: tuple[GroupRow, ...]) -> Iterator[str]:
    if not groups:
        return
    yield "means of groups: recall, precision, average precision"
    width = max(len(row.group) for row in groups)
    for row in groups:
        values = "  ".join(map(_number, (row.recall, row.precision, row.average_precision)))
        yield f"  {row.group:<{width}}  {values}  of {counted(row.labels, 'label')}"


def _score(row: ClassRow) -> float | None:
    return row.recall if row.recall is not None else row.average_precision


def _comparison_lines(found: Evaluation) -> Iterator[str]:
    if not found.comparison:
        return
    items = counted(found.compared_items or 0, "item")
    yield (
        f"compared with {found.compared_with} on {items} that both count, 95 % intervals of the differences"
    )
    width = max(len(one.metric) for one in found.comparison)
    for one in found.comparison:
        yield f"  {one.metric:<{width}}  {_comparison_words(one)}"


def _comparison_words(one: Compared) -> str:
    difference = "-" if one.difference is None else f"{one.difference:+.4f}"
    test = "" if one.p_value is None else f", McNemar p = {one.p_value:.3g}"
    return f"{_number(one.value)} against {_number(one.other)}: {difference}{_interval(one.interval)}{test}"


def _failed_lines(title: str, failed: tuple[FailedItem, ...]) -> Iterator[str]:
    if not failed:
        return
    yield f"{title}: {counted(len(failed), 'failed item')}"
    for one in failed[:_SHOWN]:
        yield f"  {one.item_id}: {one.error_code}: {one.error_detail}"
    if len(failed) > _SHOWN:
        yield f"  and {len(failed) - _SHOWN:,} more"


def _number(value: float | None) -> str:
    return "-     " if value is None else f"{value:.4f}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"  [{interval[0]:.4f}, {interval[1]:.4f}]"
