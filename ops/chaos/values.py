"""What the rows of a run say of one image: always the same, whichever job, worker or batch they are of.

What is right nobody computes again here. But rows that are mixed up, or of another image, differ.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ops.chaos.workload import IMAGE_SIZE, JobPlan

# Batches of other sizes round otherwise; two images differ by more in some number.
_TOLERANCE = 0.004


@dataclass(frozen=True, slots=True)
class Values:
    """What a row says beside its index, id, code and hash."""

    uri: str
    status: str
    error_detail: str | None
    size: tuple[int | None, int | None]  # width, height
    fingerprint: str | None
    label: str | None = None
    numbers: tuple[float, ...] = ()  # the scores, or the beginning of the vector


class References:
    """What was seen first of each image and task. Usable from any thread."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], Values] = {}
        self._lock = threading.Lock()

    def problem(self, plan: JobPlan, index: int, values: Values, uri: str | None) -> str | None:
        """What is wrong with the row of an item, or None.

        Args:
            plan: of its job.
            index: of the item.
            values: of the row.
            uri: of the item, as its source says; None: not known.
        """
        item = plan.items[index]
        is_ok = item.error_code(plan.generations - 1) is None
        if values.status != ("ok" if is_ok else "failed"):
            return f"item {index} has status {values.status}"
        if uri is not None and values.uri != uri:
            return f"item {index} has the uri {values.uri}"
        if not is_ok:
            return None if values.error_detail else f"item {index} does not say why it failed"
        if values.size != IMAGE_SIZE:
            return f"item {index} has a width and height of {values.size}, not {IMAGE_SIZE}"
        if values.fingerprint is None:
            return f"item {index} names no model"
        with self._lock:
            first = self._seen.setdefault((plan.task, item.image), values)
        if values.fingerprint != first.fingerprint:
            return f"item {index} names the model {values.fingerprint}, another one {first.fingerprint}"
        if values.label != first.label or not _are_near(values.numbers, first.numbers):
            return (
                f"item {index} says {values.label} {_short(values.numbers)} of image {item.image}, "
                f"another one {first.label} {_short(first.numbers)}"
            )
        return None


def _are_near(some: Sequence[float], others: Sequence[float]) -> bool:
    return len(some) == len(others) and all(
        abs(one - other) <= _TOLERANCE for one, other in zip(some, others, strict=True)
    )


def _short(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.3f}" for number in numbers[:3])
