"""A fitted head in a few lines for people: the figures of its held-out folds."""

from __future__ import annotations

from collections.abc import Iterator

from clipfleet.contract.heads import HeadKind
from clipfleet.evaluation.outcome import ClassRow
from clipfleet.evaluation.words import confusion_lines, metric_lines
from clipfleet.training.heads import TrainedHead
from clipfleet.wording import counted

_SHOWN = 40  # labels: the best of more are left out


def report_lines(trained: TrainedHead) -> Iterator[str]:
    """The metrics with 95 % intervals, recall and precision of each label, and what it takes for what."""
    head = trained.file.head
    labels = counted(len(head.labels), "label")
    yield f"{head.name}: {labels}, {counted(head.training.n, 'item')} of {head.training.source}"
    folds = counted(int(head.training.cv["folds"]), "fold")
    yield f"by items of held-out folds, {folds} (they also chose how strongly it is held back):"
    yield from metric_lines(trained.measured)
    yield from _label_lines(trained.measured.classes)
    if head.kind is HeadKind.CLASSIFY:
        yield from confusion_lines(trained.measured)
    yield from trained.notes


def _label_lines(rows: tuple[ClassRow, ...]) -> Iterator[str]:
    shown = sorted(rows, key=lambda row: row.recall or 0.0)[:_SHOWN] if len(rows) > _SHOWN else rows
    width = max(len("label"), *(len(row.label) for row in shown))
    yield f"{'label':<{width}}  {'items':>7}  {'recall':<25}  precision"
    for row in shown:
        recall = _share(row.recall, row.recall_interval)
        precision = _share(row.precision, row.precision_interval)
        yield f"{row.label:<{width}}  {row.n:>7,}  {recall:<25}  {precision}"
    if len(shown) < len(rows):
        yield f"and {len(rows) - len(shown):,} labels with a higher recall"


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"
