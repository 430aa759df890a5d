"""Estimates for all items of a source from the rows of a sample. Read-only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from clipfleet.contract.bottleneck import Step
from clipfleet.contract.columns import label_columns
from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import DEFAULT_LABEL_SET_NAME
from clipfleet.contract.parts import ItemStatus
from clipfleet.labels.intervals import wilson
from clipfleet.ledger.status import JobStatus
from clipfleet.results.rows import RowReader


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the items, with its 95 % interval."""

    share: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, rows: int) -> Share:
        """Share of `count` in `rows` (at least one), with Wilson's score interval.

        It takes the source for infinite: a little too wide where the sample is a large part of it.
        """
        return cls(count / rows, *wilson(count, rows))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run over all items of a source would give. Shares are of all items, failed ones included."""

    items: int  # of the source
    sampled: int
    failed: Share
    labels: Mapping[str, Mapping[str, Share]]  # by label set, then by label, most frequent first
    seconds: float | None  # with the same workers, at the rate of the sample; None: unknown


def estimate_of(reader: RowReader, job: Job, status: JobStatus, whole_items: int) -> Estimate:
    """Estimate from all rows of a completed sample. Raises like `RowReader.read`.

    Args:
        reader: of the job.
        job: the job.
        status: its final snapshot.
        whole_items: items of the source.
    """
    named = {label_set.name: label_columns(label_set.name)[0] for label_set in job.named_label_sets}
    only = job.label_sets[0].name if len(job.label_sets) == 1 else DEFAULT_LABEL_SET_NAME
    columns = named or ({only: "label"} if job.label_sets else {})
    counts: dict[str, Counter[str]] = {name: Counter() for name in columns}
    rows = failed = 0
    for batch in reader.read(["status", *columns.values()]).batches:
        rows += batch.num_rows
        failed += batch["status"].to_pylist().count(ItemStatus.FAILED.value)
        for name, column in columns.items():
            counts[name].update(filter(None, batch[column].to_pylist()))
    return Estimate(
        whole_items,
        rows,
        Share.of(failed, rows),
        {
            name: {label: Share.of(count, rows) for label, count in by_label.most_common()}
            for name, by_label in counts.items()
        },
        _seconds(status, whole_items),
    )


def _seconds(status: JobStatus, whole_items: int) -> float | None:
    """Duration of a run over all items: the model is loaded once, the rest grows with the items."""
    if status.generation or not status.ran:  # when a retry began is not recorded
        return None
    meters = status.meters
    loading = meters[Step.LOAD] / meters.chunk_seconds if meters.chunk_seconds else 0.0
    return status.lasted_seconds * (loading + (1 - loading) * whole_items / status.ran)
