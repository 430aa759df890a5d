"""Decisions of rows, judged by a naive reading of the rules, row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipfleet.contract.columns import DECISION_COLUMNS, LABEL_COLUMNS, head_scores_column, label_columns
from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import ErrorCode, Job
from clipfleet.contract.label_sets import (
    Certificate,
    Claim,
    LabelKind,
    LabelSet,
    Look,
    Promise,
    Verdict,
)
from clipfleet.contract.parts import part_schema
from clipfleet.contract.policies import Condition, DecisionId, Policy, Rule
from clipfleet.moderation.deciding import with_decisions
from tests.support.heads import head_file
from tests.support.policies import make_policy, moderation_job, of_label, rule

NOW = datetime(2026, 12, 3, 9, 5, 0, 123_999, tzinfo=UTC)
MODEL, OTHER_MODEL = "a" * 16, "b" * 16
TASTE = head_file(4, 1, name="taste", kind=HeadKind.REGRESS, labels=("taste",)).of_job
KINDS = head_file(4, 2, name="kinds", labels=("photo", "drawing")).of_job
TAGS = head_file(4, 2, name="tags", kind=HeadKind.MULTILABEL, labels=("red", "blue")).of_job
HEADS = (TASTE, KINDS, TAGS)
SETS = (
    LabelSet(name="things", labels=("cat", "dog", "gun"), kind=LabelKind.MULTI, thresholds={"gun": 0.25}),
    LabelSet(name="places", labels=("beach", "street"), none=True),
)
LABELS = [(one.name, label) for one in SETS for label in one.labels]
# float32 numbers, some of which are thresholds; and what a model that overflows has made
SCORES = [0.0, 0.1, 0.25, 0.5, 0.6, 1.0, math.nan]


def scored(index: int, scores: Mapping[Any, float], **values: Any) -> dict[str, Any]:
    """A row that is ok: `scores` by (set, label), and by head: a number, or a list."""
    row: dict[str, Any] = {
        "item_index": index, "item_id": f"id{index}", "uri": f"/{index}.jpg", "status": "ok",
        "model_fingerprint": MODEL, **values,
    }  # fmt: skip
    for one in SETS:
        best = sorted(one.labels, key=lambda label: -np.nan_to_num(scores[one.name, label]))
        names = label_columns(one.name)[2:]
        row |= dict(zip(names, (best, [scores[one.name, label] for label in best]), strict=True))
    row |= dict(zip(LABEL_COLUMNS[2:], (row["labels_things"], row["scores_things"]), strict=True))
    kinds = scores["kinds"]
    row |= {"head_taste_score": scores["taste"], head_scores_column("kinds"): [kinds, 1 - kinds]}
    row |= {"head_kinds": "photo" if kinds >= 0.5 else "drawing", "head_kinds_score": max(kinds, 1 - kinds)}
    row |= {head_scores_column("tags"): [scores["tags"], 1 - scores["tags"]]}
    return row


def failed(index: int, code: ErrorCode) -> dict[str, Any]:
    return {
        "item_index": index, "item_id": f"id{index}", "uri": f"/{index}.jpg", "status": "failed",
        "error_code": code.value, "error_detail": "broken",
    }  # fmt: skip


def table(job: Job, rows: Sequence[dict[str, Any]]) -> pa.Table:
    schema = part_schema(
        None, (), [one.name for one in job.named_label_sets], accepted_columns=job.accepted_columns,
        heads=job.heads, head_scores=job.head_scores_columns, has_decisions=True,
    )  # fmt: skip
    return pa.Table.from_pylist(list(rows), schema)


def decided(policy: Policy, *rows: dict[str, Any], generation: int = 0) -> list[dict[str, Any]]:
    job = moderation_job(policy)
    return with_decisions(table(job, rows), job, generation, NOW).to_pylist()


# --- The naive reading ---


def score_of(row: dict[str, Any], one: Condition) -> float | None:
    if row["status"] != "ok":
        return None
    if one.label_set is not None:
        names = label_columns(one.label_set)
        found = dict(zip(row[names[2]], row[names[3]], strict=True))[one.label]
    elif one.head == "taste":
        found = row["head_taste_score"]
    else:
        labels = next(head.head.labels for head in HEADS if head.name == one.head)
        found = row[head_scores_column(one.head or "")][labels.index(one.label or "")]
    return None if math.isnan(found) else float(np.float32(found))


def holds(row: dict[str, Any], one: Condition) -> bool:
    score = score_of(row, one)
    assert score is not None
    if one.at_least is not None:
        return score >= one.at_least
    if one.below is not None:
        return score < one.below
    if one.head == "kinds":
        return bool(row["head_kinds"] == one.label)
    if one.label_set is not None:
        return score >= next(each for each in SETS if each.name == one.label_set).threshold(one.label or "")
    return score >= 0.5  # of a head of kind multilabel


def naive(row: dict[str, Any], policy: Policy) -> tuple[str, list[str]]:
    """The decision, and the rules that counted."""
    conditions = [one for each in policy.rules for one in each.when]
    if row["status"] != "ok" or any(score_of(row, one) is None for one in conditions):
        return "undecided", []
    counted: list[Rule] = []
    for each in policy.rules:
        if all(holds(row, one) for one in each.when):
            counted.append(each)
            if each.action == "allow":
                break
    actions = {str(each.action) for each in counted}
    for action in ("flag", "review", "allow"):
        if action in actions:
            break
    else:
        action = str(policy.otherwise)
    return action, [str(each.name) for each in counted for _ in each.when]


CONDITIONS = st.one_of(
    st.builds(
        lambda which, bound: Condition(label_set=which[0], label=which[1], **bound),
        st.sampled_from(LABELS),
        st.sampled_from([{}, {"at_least": 0.5}, {"below": 0.25}, {"at_least": 0.1}, {"below": 0.6}]),
    ),
    st.builds(
        lambda which, bound: Condition(head=which[0], label=which[1], **bound),
        st.sampled_from([("kinds", "photo"), ("kinds", "drawing"), ("tags", "red"), ("tags", "blue")]),
        st.sampled_from([{}, {"at_least": 0.5}, {"below": 0.5}]),
    ),
    st.builds(
        lambda bound: Condition(head="taste", **bound), st.sampled_from([{"below": 4}, {"at_least": 6.5}])
    ),
)
RULES = st.lists(
    st.tuples(st.sampled_from(["flag", "review", "allow"]), st.lists(CONDITIONS, min_size=1, max_size=2)),
    min_size=1,
    max_size=5,
)
ROWS = st.lists(
    st.one_of(
        st.builds(
            lambda labels, taste, kinds, tags: {
                **dict(zip(LABELS, labels, strict=True)), "taste": taste, "kinds": kinds, "tags": tags,
            },
            st.lists(st.sampled_from(SCORES), min_size=len(LABELS), max_size=len(LABELS)),
            st.sampled_from([1.0, 4.0, 6.5, 9.0]),
            st.sampled_from([0.1, 0.5, 0.9]),
            st.sampled_from([0.1, 0.5, 0.9]),
        ),
        st.none(),
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(RULES, ROWS, st.sampled_from(["allow", "review", "flag"]))
def test_every_row_is_decided_as_its_rules_read(rules: list[Any], rows: list[Any], otherwise: str) -> None:
    named = [rule(action, *when, name=f"r{number}") for number, (action, when) in enumerate(rules)]
    policy = make_policy(*named, label_sets=SETS, heads=HEADS, otherwise=otherwise)
    made = [
        failed(index, ErrorCode.TIMEOUT) if one is None else scored(index, one)
        for index, one in enumerate(rows)
    ]

    found = decided(policy, *made)

    for row, one in zip(made, found, strict=True):
        status, names = naive(row, policy)
        reasons = [reason["rule"] for reason in one["decision_reasons"] if reason["action"] != "undecided"]
        assert (one["decision"], reasons) == (status, names)


def one_scores(**changed: float) -> dict[Any, float]:
    """All scores are low, but those of these labels of `things`."""
    found: dict[Any, float] = dict.fromkeys(LABELS, 0.01)
    return found | {"taste": 5.0, "kinds": 0.9, "tags": 0.1} | {("things", k): v for k, v in changed.items()}


@pytest.mark.parametrize("code", list(ErrorCode))
@pytest.mark.parametrize("otherwise", ["allow", "flag"])
def test_what_failed_in_any_way_is_undecided(code: ErrorCode, otherwise: str) -> None:
    always = rule("allow", of_label("cat", at_least=0.0))
    policy = make_policy(always, label_sets=SETS, otherwise=otherwise)

    (found,) = decided(policy, failed(0, code))

    assert (found["decision"], found["decision_reasons"]) == ("undecided", [])
    assert found["decision_id"].startswith("dec-20261124-")


def test_a_score_that_is_no_number_is_undecided_and_named() -> None:
    policy = make_policy(rule("flag", of_label("gun"), name="guns"), label_sets=SETS)

    (found,) = decided(policy, scored(0, one_scores(gun=math.nan, cat=0.9)))

    (reason,) = found["decision_reasons"]
    assert (found["decision"], reason["action"], reason["label"], reason["score"]) == (
        "undecided", "undecided", "gun", None,
    )  # fmt: skip
    assert reason["threshold_source"] == "there is no score"


def test_a_threshold_is_compared_with_the_score_as_rows_have_it() -> None:
    score = float(np.float32(0.3))  # a little above 0.3
    policy = make_policy(rule("flag", of_label("cat", at_least=0.3)), label_sets=SETS)
    exact = make_policy(rule("flag", of_label("cat", at_least=score)), label_sets=SETS)
    above = make_policy(rule("flag", of_label("cat", at_least=np.nextafter(score, 1))), label_sets=SETS)

    found = [decided(one, scored(0, one_scores(cat=score)))[0]["decision"] for one in (policy, exact, above)]

    assert found == ["flag", "flag", "allow"]


def test_what_a_decision_says() -> None:
    policy = make_policy(
        rule("review", Condition(head="kinds", label="photo"), of_label("gun"), name="armed"),
        rule("flag", Condition(head="taste", below=6)),
        label_sets=SETS, heads=HEADS,
    )  # fmt: skip

    found, _ = decided(policy, scored(17, one_scores(gun=0.75)), failed(18, ErrorCode.EMPTY), generation=2)

    assert found["decision"] == "flag"
    assert found["decided_at"] == "2026-12-03T09:05:00.123Z"
    assert DecisionId.of_text(found["decision_id"]).generation == 2
    assert DecisionId.of_text(found["decision_id"]).item_index == 17
    common = {"label_set": None, "head": None, "label": None}
    assert found["decision_reasons"] == [
        {
            **common, "rule": "armed", "action": "review", "head": "kinds", "label": "photo",
            "score": pytest.approx(0.9), "threshold": None, "test": "chosen",
            "threshold_source": "chosen by the head",
        },
        {
            **common, "rule": "armed", "action": "review", "label_set": "things", "label": "gun",
            "score": 0.75, "threshold": 0.25, "test": "at_least", "threshold_source": "set in the policy",
        },
        {
            **common, "rule": "rule 2", "action": "flag", "head": "taste", "score": 5.0, "threshold": 6.0,
            "test": "below", "threshold_source": "set in the policy",
        },
    ]  # fmt: skip


def test_columns_of_a_single_set_and_a_table_in_pieces() -> None:
    policy = make_policy(thresholds={"cat": 0.5})
    job = moderation_job(policy)
    rows = [
        {
            "item_index": n, "item_id": "x", "uri": "/x", "status": "ok", "model_fingerprint": MODEL,
            "labels": ["dog", "cat"], "scores": [0.9, n / 4],
        }
        for n in range(4)
    ]  # fmt: skip
    pieces = pa.concat_tables([table(job, rows[:1]), table(job, []), table(job, rows[1:])])

    found = with_decisions(pieces, job, 0, NOW)

    assert found["decision"].to_pylist() == ["allow", "allow", "flag", "flag"]
    assert found.schema == pieces.schema
    assert with_decisions(table(job, []), job, 0, NOW).num_rows == 0


class TestEvidence:
    THINGS = LabelSet(
        name="things", labels=("cat", "dog"), kind=LabelKind.MULTI, thresholds={"cat": 0.5, "dog": 0.5},
        promises={"cat": Promise(claim=Claim.PRECISION, value=0.95)},
    )  # fmt: skip

    def certificate(self, label_set: LabelSet, **values: Any) -> Certificate:
        defaults: dict[str, Any] = {
            "label": "cat", "threshold": 0.5, "promise": Promise(claim=Claim.PRECISION, value=0.95),
            "confidence": 0.95, "looks": (Look(marks=60, wrong=2), Look(marks=93, wrong=1)),
            "verdict": Verdict.CERTIFIED, "output": "/out", "job_id": "j", "model_fingerprint": MODEL,
            "label_set_hash": label_set.hash, "at": NOW,
        }  # fmt: skip
        return Certificate(**(defaults | values))

    def source(self, label_set: LabelSet, condition: Condition | None = None, model: str = MODEL) -> str:
        policy = make_policy(rule("flag", condition or of_label("cat")), label_sets=(label_set,))
        row = {
            "item_index": 0, "item_id": "x", "uri": "/x", "status": "ok", "model_fingerprint": model,
            "labels": ["cat", "dog"], "scores": [0.5, 0.5],
        }  # fmt: skip
        (found,) = decided(policy, row)
        (reason,) = found["decision_reasons"]
        return str(reason["threshold_source"])

    def certified(self, **values: Any) -> LabelSet:
        return self.THINGS.model_copy(update={"certificates": (self.certificate(self.THINGS, **values),)})

    def test_a_certificate_of_the_model_of_the_row(self) -> None:
        assert self.source(self.certified()) == "certified precision >= 0.95 (n=93, k=1, 95 %)"
        assert self.source(self.certified(labels_jointly=3)) == (
            "certified precision >= 0.95 (n=93, k=1, 95 % for 3 labels jointly)"
        )
        assert self.source(self.certified(), of_label("cat", at_least=0.5)).startswith("certified")

    @pytest.mark.parametrize(
        "values",
        [
            {"verdict": Verdict.NOT_YET},
            {"verdict": Verdict.FAILED},
            {"threshold": 0.4},
            {"label": "dog"},
            {"label_set_hash": "0" * 16},
            {"promise": Promise(claim=Claim.MISS, value=0.01)},
        ],
        ids=str,
    )
    def test_what_does_not_hold_proves_nothing(self, values: dict[str, Any]) -> None:
        assert self.source(self.certified(**values)) == "for precision >= 0.95, not certified"

    def test_a_certificate_of_another_model_is_named(self) -> None:
        assert self.source(self.certified(), model=OTHER_MODEL) == (
            "for precision >= 0.95, not certified; certified for another model"
        )

    def test_a_miss_proves_what_lies_below(self) -> None:
        promise = Promise(claim=Claim.MISS, value=0.01)
        label_set = self.certified(label="dog", promise=promise, threshold=0.5)
        low = {"labels": ["dog", "cat"], "scores": [0.25, 0.25]}
        policy = make_policy(rule("flag", of_label("dog", below=0.5)), label_sets=(label_set,))
        row = {"item_index": 0, "item_id": "x", "uri": "/x", "status": "ok", "model_fingerprint": MODEL}

        (found,) = decided(policy, {**row, **low})

        assert found["decision_reasons"][0]["threshold_source"] == "certified miss <= 0.01 (n=93, k=1, 95 %)"

    def test_other_thresholds(self) -> None:
        bare = LabelSet(name="things", labels=("cat", "dog"), kind=LabelKind.MULTI)

        assert self.source(bare) == "default"
        assert self.source(bare, of_label("cat", at_least=0.2)) == "set in the policy"
        assert self.source(self.THINGS, of_label("dog")) == "set in the policy"


def test_ids_differ_by_item_and_are_the_same_again() -> None:
    rows = [scored(n, one_scores()) for n in range(3)]
    policy = make_policy(label_sets=SETS)
    ids = [[row[DECISION_COLUMNS[1]] for row in decided(policy, *rows)] for _ in range(2)]

    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 3
