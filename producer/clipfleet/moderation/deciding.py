"""From the scores in rows to decisions: a pure function of a row and its policy, on columns.

Workers call it for the rows that they write, replays for rows that are there: both give the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import DECISION_COLUMNS, LABEL_COLUMNS, head_scores_column, label_columns
from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import Job
from clipfleet.contract.parts import REASON_TYPE, ItemStatus
from clipfleet.contract.policies import (
    Action,
    Condition,
    DecisionId,
    DecisionStatus,
    JobPolicy,
    decision_day,
    job_digest,
)
from clipfleet.moderation.evidence import MISSING, Evidence, evidence_of


def with_decisions(rows: pa.Table, job: Job, generation: int, now: datetime) -> pa.Table:
    """Fill the columns of decisions of a moderation job.

    Args:
        rows: of one generation, with the columns of its label sets and heads.
        job: their job, which has a policy.
        generation: that has run them.
        now: when they are decided.
    """
    policy = job.policy
    if policy is None:
        raise ValueError(f"job {job.job_id} has no policy")
    statuses, reasons = _decided(rows, job, policy)
    day, digest = decision_day(job.created_at), job_digest(job.job_id, job.created_at)
    ids = [str(DecisionId(day, digest, generation, index)) for index in rows["item_index"].to_pylist()]
    at = pa.array([f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z"] * rows.num_rows, pa.string())
    for name, values in zip(
        DECISION_COLUMNS, (statuses, pa.array(ids, pa.string()), at, reasons), strict=True
    ):
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
    return rows


@dataclass(frozen=True, slots=True)
class _Tested:
    """One condition in all rows."""

    condition: Condition
    evidence: Evidence
    scores: pa.Array  # float32; null: there is none
    holds: pa.Array  # bool; null where the score is


def _decided(rows: pa.Table, job: Job, policy: JobPolicy) -> tuple[pa.Array, pa.Array]:
    """Statuses and reasons of all rows."""
    tester = _Tester(rows, job)
    tested = [[tester.test(condition) for condition in rule.when] for rule in policy.rules]
    is_ok = pc.equal(rows["status"].combine_chunks(), ItemStatus.OK.value)
    has_all = reduce(pc.and_, (pc.is_valid(one.holds) for rule in tested for one in rule), is_ok)
    reading, counts = has_all, []
    found = {action: pc.and_(has_all, False) for action in Action}
    for rule, conditions in zip(policy.rules, tested, strict=True):
        counted = reduce(pc.and_, (pc.fill_null(one.holds, False) for one in conditions), reading)
        counts.append(counted)
        found[rule.action] = pc.or_(found[rule.action], counted)
        if rule.action is Action.ALLOW:
            reading = pc.and_not(reading, counted)
    status: pa.Array = pa.repeat(policy.otherwise.value, rows.num_rows)
    for action in reversed(Action):  # the most severe last
        status = pc.if_else(found[action], action.value, status)
    status = pc.if_else(has_all, status, DecisionStatus.UNDECIDED.value)
    lacks_a_score = pc.and_not(is_ok, has_all)
    return status, _reasons(rows, policy, tested, counts, lacks_a_score)


@dataclass(frozen=True, slots=True)
class _ScoresOfSet:
    """The scores of a label set, ordered by label and then by row: those of one label are a slice."""

    every_row: pa.Array  # int64: 0, 1, ... of all rows
    places: dict[str, tuple[int, int]]  # per label: where its slice begins, and its length
    parents: pa.Array  # int64: their rows
    scores: pa.Array

    @classmethod
    def of(cls, labels: pa.ListArray, scores: pa.ListArray) -> _ScoresOfSet:
        """Of the best labels of all rows and their scores, which are equally many in each row."""
        coded = labels.flatten().dictionary_encode()
        order = pc.sort_indices(coded.indices)  # stable
        lengths = {one["values"]: one["counts"] for one in pc.value_counts(coded.indices).to_pylist()}
        places, begin = {}, 0
        for code, label in enumerate(coded.dictionary.to_pylist()):
            places[label] = (begin, lengths[code])
            begin += lengths[code]
        return cls(
            every_row=pa.array(range(len(labels)), pa.int64()),
            places=places,
            parents=pc.list_parent_indices(labels).cast(pa.int64()).take(order),
            scores=scores.flatten().take(order),
        )

    def of_label(self, label: str) -> pa.Array:
        """Float32, one per row; null: the row has no score of it."""
        begin, length = self.places.get(label, (0, 0))
        parents, scores = self.parents.slice(begin, length), self.scores.slice(begin, length)
        if parents.equals(self.every_row):  # as a rule: rows without an image have none
            return scores
        return scores.take(pc.index_in(self.every_row, value_set=parents))


class _Tester:
    """Tests conditions on rows: equal ones once, and the columns of a label set are read once."""

    def __init__(self, rows: pa.Table, job: Job) -> None:
        self._rows = rows
        self._sets = {one.name: one for one in job.label_sets}
        self._heads = {one.name: one for one in job.heads}
        self._has_own_columns = bool(job.named_label_sets)
        self._scores_of_set: dict[str, _ScoresOfSet] = {}
        self._tested: dict[Condition, _Tested] = {}

    def test(self, condition: Condition) -> _Tested:
        if condition not in self._tested:
            self._tested[condition] = self._test(condition)
        return self._tested[condition]

    def _test(self, condition: Condition) -> _Tested:
        evidence = evidence_of(condition, self._sets, self._heads)
        if condition.head is None:
            scores = self._score_of_label(condition.label_set or "", condition.label or "")
        else:
            scores = self._score_of_head(condition.head, condition.label)
        scores = pc.if_else(pc.is_finite(scores), scores, pa.scalar(None, pa.float32()))
        if evidence.threshold is None:
            chosen = self._rows[f"head_{condition.head}"].combine_chunks()
            holds = pc.and_(pc.equal(chosen, condition.label), pc.is_valid(scores))
            return _Tested(condition, evidence, scores, pc.if_else(pc.is_valid(scores), holds, None))
        # In double precision, as workers compare scores with thresholds.
        compare = pc.less if evidence.is_below else pc.greater_equal
        return _Tested(condition, evidence, scores, compare(scores.cast(pa.float64()), evidence.threshold))

    def _score_of_label(self, set_name: str, label: str) -> pa.Array:
        if set_name not in self._scores_of_set:
            names = label_columns(set_name) if self._has_own_columns else LABEL_COLUMNS
            self._scores_of_set[set_name] = _ScoresOfSet.of(
                *(self._rows[name].combine_chunks() for name in names[2:])
            )
        return self._scores_of_set[set_name].of_label(label)

    def _score_of_head(self, name: str, label: str | None) -> pa.Array:
        head = self._heads[name].head
        if head.kind is HeadKind.REGRESS:
            return self._rows[self._heads[name].columns[1]].combine_chunks()
        column = self._rows[head_scores_column(name)].combine_chunks()
        if column.null_count == len(column):
            return pa.nulls(len(column), pa.float32())
        return pc.list_element(column, head.labels.index(label or ""))


def _reasons(
    rows: pa.Table,
    policy: JobPolicy,
    tested: Sequence[Sequence[_Tested]],
    counts: Sequence[pa.Array],
    lacks_a_score: pa.Array,
) -> pa.Array:
    """The conditions of the rules that counted in each row, in the order of the rules; of an undecided row
    that is ok, those without a score.
    """
    models = rows["model_fingerprint"].combine_chunks()
    owners: list[pa.Array] = []
    entries: list[pa.Array] = []
    for position, (rule, conditions, counted) in enumerate(zip(policy.rules, tested, counts, strict=True)):
        for one in conditions:
            for where, action in (
                (counted, rule.action.value),
                (pc.and_(lacks_a_score, pc.is_null(one.holds)), DecisionStatus.UNDECIDED.value),
            ):
                places = pc.indices_nonzero(where)
                if len(places):
                    owners.append(places.cast(pa.int64()))
                    entries.append(_entries(one, policy.rule_name(position), action, models, places))
    if not entries:
        return pa.ListArray.from_arrays(
            pa.array([0] * (rows.num_rows + 1), pa.int32()), pa.array([], REASON_TYPE)
        )
    owner = pa.concat_arrays(owners)
    order = pc.sort_indices(
        pa.table({"owner": owner, "place": pa.array(range(len(owner)))}),
        [("owner", "ascending"), ("place", "ascending")],
    )
    every = pa.concat_arrays([pa.array(range(rows.num_rows), pa.int64()), owner])
    per_row = pc.value_counts(every).field("counts")  # in the order of the rows, one more than there are
    ends = pc.cumulative_sum(pc.subtract(per_row, 1))
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends]).cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.concat_arrays(entries).take(order))


def _entries(one: _Tested, rule: str, action: str, models: pa.Array, places: pa.Array) -> pa.Array:
    """The reasons that one condition gives for some rows."""
    count = len(places)
    scores, condition = one.scores.take(places), one.condition
    if action == DecisionStatus.UNDECIDED:
        sources: pa.Array = pa.repeat(MISSING, count)
    else:
        of_rows = models.take(places).dictionary_encode()
        words = pa.array(
            [one.evidence.of_model(model) for model in of_rows.dictionary.to_pylist()], pa.string()
        )
        sources = pc.fill_null(words.take(of_rows.indices), one.evidence.of_model(None))
    same: dict[str, Any] = {
        "rule": rule, "action": action, "label_set": condition.label_set, "head": condition.head,
        "label": condition.label, "threshold": one.evidence.threshold, "test": one.evidence.test,
    }  # fmt: skip
    columns = []
    for field in REASON_TYPE:
        if field.name in same:
            columns.append(pa.repeat(pa.scalar(same[field.name], field.type), count))
        else:
            columns.append(scores if field.name == "score" else sources)
    return pa.StructArray.from_arrays(columns, fields=list(REASON_TYPE))
