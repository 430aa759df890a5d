"""Estimates for all items of a source from the rows of a sample. Read-only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from clipfleet.contract.bottleneck import Step
from clipfleet.contract.columns import accepted_column, label_columns
from clipfleet.contract.heads import HeadKind
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
    # By label set, or column of a head, then by label, most frequent first; every accepted label counts.
    labels: Mapping[str, Mapping[str, Share]]
    unlabelled: Mapping[str, Share]  # likewise, where there are thresholds: ok rows that accept no label
    seconds: float | None  # with the same workers, at the rate of the sample; None: unknown


def estimate_of(reader: RowReader, job: Job, status: JobStatus, whole_items: int) -> Estimate:
    """Estimate from all rows of a completed sample. Raises like `RowReader.read`.

    Args:
        reader: of the job.
        job: the job.
        status: its final snapshot.
        whole_items: items of the source.
    """
    columns = _columns(job)
    counts: dict[str, Counter[str]] = {name: Counter() for name in columns}
    unlabelled = {name: 0 for name, of in columns.items() if of.may_be_none}
    rows = failed = 0
    wanted = ["status", *(name for of in columns.values() for name in (of.label, of.accepted) if name)]
    for batch in reader.read(wanted).batches:
        rows += batch.num_rows
        states = batch["status"].to_pylist()
        failed += states.count(ItemStatus.FAILED.value)
        for name, of in columns.items():
            best = batch[of.label].to_pylist()
            lists = [None] * len(best) if of.accepted is None else batch[of.accepted].to_pylist()
            for state, one, labels in zip(states, best, lists, strict=True):
                found = {*filter(None, [one])} if labels is None else {*labels}
                counts[name].update(found)
                if of.may_be_none and not found and state == ItemStatus.OK:
                    unlabelled[name] += 1
    return Estimate(
        whole_items,
        rows,
        Share.of(failed, rows),
        {
            name: {label: Share.of(count, rows) for label, count in by_label.most_common()}
            for name, by_label in counts.items()
        },
        {name: Share.of(count, rows) for name, count in unlabelled.items()},
        _seconds(status, whole_items),
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a label set or a head."""

    label: str  # the best label
    accepted: str | None  # all accepted ones
    may_be_none: bool  # whether a row may have none of the labels


def _columns(job: Job) -> Mapping[str, _Columns]:
    """By label set, and by column of a head. A head for a number has no labels."""
    found = {
        one.name: _Columns(
            label_columns(one.name)[0],
            accepted_column(one.name) if one.has_thresholds else None,
            may_be_none=one.has_thresholds,
        )
        for one in job.named_label_sets
    }
    if job.label_sets and not found:
        only = job.label_sets[0].name if len(job.label_sets) == 1 else DEFAULT_LABEL_SET_NAME
        accepted = next(iter(job.accepted_columns), None)
        found[only] = _Columns("label", accepted, may_be_none=accepted is not None)
    for head in job.heads:
        label, _, *lists = head.columns
        chooses = head.head.kind is HeadKind.CLASSIFY
        if chooses or lists or head.head.thresholds:
            found[label] = _Columns(label, lists[0] if lists else None, may_be_none=not chooses)
    return found


def _seconds(status: JobStatus, whole_items: int) -> float | None:
    """Duration of a run over all items: the model is loaded once, the rest grows with the items."""
    if status.generation or not status.ran:  # when a retry began is not recorded
        return None
    meters = status.meters
    loading = meters[Step.LOAD] / meters.chunk_seconds if meters.chunk_seconds else 0.0
    return status.lasted_seconds * (loading + (1 - loading) * whole_items / status.ran)
