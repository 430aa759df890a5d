"""What an evaluation returns, and the JSON objects that are written of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self

import numpy as np

from clipfleet.contract.heads import JobHead
from clipfleet.errors import UsageError
from clipfleet.evaluation.vectors import FailedItem

Interval = tuple[float, float]

PROBE = "lp_"  # before the names of metrics of heads, as CLIP_benchmark has it


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class of a table."""

    index: int
    label: str
    n: int  # items of this class
    predicted: int  # items classified as it
    recall: float | None = None
    recall_interval: Interval | None = None  # 95 %, Wilson
    precision: float | None = None
    precision_interval: Interval | None = None
    f1: float | None = None  # of a set with thresholds: of the accepted labels
    average_precision: float | None = None


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Means over the labels of a group that have the value."""

    group: str
    labels: int
    recall: float | None
    precision: float | None
    average_precision: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the confusion matrix. Several classes of a root may have one name: their indexes differ."""

    truth: str
    predicted: str
    count: int
    truth_index: int
    predicted_index: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics of some items, and what is needed to compare them with another evaluation of the same items."""

    metrics: Mapping[str, float | None]
    intervals: Mapping[str, Interval]  # 95 %
    items: int  # that the metrics count
    classes: tuple[ClassRow, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    confusion: tuple[Cell, ...] = ()
    notes: tuple[str, ...] = ()  # why a metric is null
    right: np.ndarray | None = None  # bool (items,), of a classification
    # Metrics of resampled items, by name; takes the multiplicity of each item.
    resampled: Mapping[str, Callable[[np.ndarray], float]] = field(default_factory=dict)

    def grouped(self, groups: tuple[GroupRow, ...], notes: Sequence[str]) -> Measured:
        """The same with a table of groups, and further notes."""
        return replace(self, groups=groups, notes=(*self.notes, *notes))


@dataclass(frozen=True, slots=True)
class Compared:
    """A metric of two evaluations of the same items."""

    metric: str
    value: float | None
    other: float | None
    difference: float | None  # value - other
    interval: Interval | None  # 95 % of the difference, paired bootstrap
    p_value: float | None = None  # of acc1: McNemar


@dataclass(frozen=True, slots=True)
class EvaluatedHead:
    """Which head was evaluated."""

    name: str
    kind: str
    sha256: str  # of its file
    seed: int | None  # of its fit

    @classmethod
    def of(cls, head: JobHead) -> Self:
        """Of a head as jobs carry it."""
        return cls(head.name, head.head.kind, head.sha256, head.head.training.seed)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation."""

    source: str
    split: str | None
    task: str
    dataset: str
    model: str
    precision: str
    decode: str
    model_fingerprint: str | None
    outputs: Mapping[str, str]  # by what they hold
    items_ok: np.ndarray  # bool (all items,): those that the metrics count
    measure: Callable[[np.ndarray], Measured]  # takes such a mask
    measured: Measured  # of `items_ok`
    failed: tuple[FailedItem, ...]
    truth_hash: str  # of items and truth: evaluations that share it can be compared
    head: EvaluatedHead | None = None
    compared_with: str | None = None
    compared_items: int | None = None  # that both count
    compared_failed: tuple[FailedItem, ...] = ()  # of the other
    comparison: tuple[Compared, ...] = ()

    def compared(self, name: str, other: Evaluation, comparison: tuple[Compared, ...]) -> Evaluation:
        """The same with a comparison; `name` is that of the other."""
        both = int((self.items_ok & other.items_ok).sum())
        return replace(
            self, compared_with=name, compared_items=both, compared_failed=other.failed, comparison=comparison
        )

    def document(self) -> dict[str, Any]:
        """Everything as one JSON object; null where a metric has no value."""
        measured = self.measured
        plain = {
            name: getattr(self, name)
            for name in ("source", "split", "task", "dataset", "model", "precision", "decode")
        }
        return _finite_values({
            **plain,
            "model_fingerprint": self.model_fingerprint,
            "head": None if self.head is None else asdict(self.head),
            "outputs": dict(self.outputs),
            "items": measured.items,
            "failed": [asdict(one) for one in self.failed],
            "metrics": dict(measured.metrics),
            "intervals": dict(measured.intervals),
            "notes": list(measured.notes),
            "groups": [asdict(one) for one in measured.groups],
            "classes": [asdict(one) for one in measured.classes],
            "confusion": [asdict(one) for one in measured.confusion],
            "compared_with": self.compared_with,
            "compared_items": self.compared_items,
            "compared_failed": [asdict(one) for one in self.compared_failed],
            "comparison": [asdict(one) for one in self.comparison],
        })  # fmt: skip

    def clip_benchmark_document(self) -> dict[str, Any]:
        """The object that `clip_benchmark eval` writes and `clip_benchmark build` reads."""
        metrics = dict[str, Any](self.measured.metrics)
        if self.head is not None:
            metrics |= {"seed": self.head.seed, "normalized": True}
        name, _, pretrained = ("", "", "") if "/" in self.model else self.model.partition(":")
        return _finite_values({
            "dataset": self.dataset, "model": name or self.model, "pretrained": pretrained,
            "task": self.task, "metrics": metrics, "language": "en",
        })  # fmt: skip


def _finite_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by null."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object so that the file is there whole, or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            json.dump(document, file)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None
