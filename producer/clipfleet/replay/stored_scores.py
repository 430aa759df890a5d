"""Decides from the scores that a moderation job has stored, if another policy needs no others. Runs no model.

The scores are the numbers that the worker compared with its thresholds, so the decisions are those that it
would have made by the other policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pyarrow as pa

from clipfleet.contract.columns import (
    DECISION_COLUMNS,
    LABEL_COLUMNS,
    head_scores_column,
    label_columns,
)
from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.policies import Policy
from clipfleet.moderation.deciding import with_decisions
from clipfleet.replay.pairs import ITEM_COLUMNS, paired
from clipfleet.results.rows import RowReader


def lacks(job: Job, policy: Policy) -> str | None:
    """What a policy needs that the rows of a moderation job do not have, in words; None: they have all.

    Args:
        job: with a policy, so that its rows have the scores of all labels and outputs of heads.
        policy: another one, of the same model.
    """
    sets = {one.name: one for one in job.label_sets}
    for label_set in policy.label_sets:
        if label_set.name not in sets:
            return f"they have no label set {label_set.name!r}"
        if differs := _difference(sets[label_set.name], label_set):
            return f"label set {label_set.name!r} {differs}"
    hashes = {one.name: one.sha256 for one in job.heads}
    for head in policy.heads:
        if hashes.get(head.name) != head.sha256:
            return f"they have no scores of this head {head.name!r}"
    return None


def _difference(stored: LabelSet, wanted: LabelSet) -> str | None:
    """Why the scores of a label set are not those of another one; thresholds are no part of a score."""
    if missing := [label for label in wanted.labels if label not in stored.labels]:
        return f"had no label {missing[0]!r}"
    if stored.templates != wanted.templates:
        return "had other templates"
    if stored.background != wanted.background:
        return "had another background"
    for label in wanted.labels:
        if stored.not_prompts.get(label, ()) != wanted.not_prompts.get(label, ()):
            return f"had other `not` prompts of {label!r}"
    slopes = stored.slope or 1.0, wanted.slope or 1.0
    for label in wanted.labels:
        if slopes[0] != slopes[1] or stored.intercepts.get(label, 0.0) != wanted.intercepts.get(label, 0.0):
            return f"was calibrated otherwise for {label!r}"
    return None


def pairs_of_scores(
    reader: RowReader, job: Job, old: Policy | None, new: Policy, now: datetime
) -> Iterator[pa.RecordBatch]:
    """The rows of a moderation job with their decisions by two policies, see `PAIRS`.

    Args:
        reader: of the rows.
        job: theirs.
        old: decides the old side, and lacks no scores; None: the decisions in the rows are taken.
        new: decides the new side, and lacks no scores.
        now: see `with_decisions`.
    """
    status, decision_id, _, reasons = DECISION_COLUMNS
    for batch in reader.read(_columns(job)).batches:
        rows = pa.Table.from_batches([batch])
        before = rows if old is None else with_decisions(rows, _as_if(job, old), 0, now)
        after = with_decisions(rows, _as_if(job, new), 0, now)
        yield paired(
            rows,
            (before[status], before[reasons]),
            (after[status], after[reasons]),
            recorded=(rows[status], rows[decision_id]) if old is None else None,
        )


def _as_if(job: Job, policy: Policy) -> Job:
    """The job as if it had decided by a policy; it keeps label sets and heads that the policy lacks."""
    sets = {one.name: one for one in policy.label_sets}
    label_sets = tuple(sets.get(one.name, one) for one in job.label_sets)
    changed = {"label_sets": label_sets, "policy": policy.of_a_job(is_dry=True), "decisions": None}
    return job.model_copy(update=changed)


def _columns(job: Job) -> list[str]:
    """Of the rows: those that decide, and those that are shown."""
    found = [*ITEM_COLUMNS, "model_fingerprint", *DECISION_COLUMNS]
    named = job.named_label_sets
    for names in [label_columns(one.name) for one in named] or ([LABEL_COLUMNS] if job.label_sets else []):
        found += names[2:]
    for head in job.heads:
        label, score, *_ = head.columns
        is_number = head.head.kind is HeadKind.REGRESS
        found += [score] if is_number else [label, head_scores_column(head.name)]
    return found
