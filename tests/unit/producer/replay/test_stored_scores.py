"""Which policies can be decided from the scores that a moderation job has stored, and what they decide."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pyarrow as pa
import pytest

from clipfleet.contract.heads import HeadKind
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.parts import part_schema
from clipfleet.contract.policies import Condition, Policy
from clipfleet.heads.files import HeadFile
from clipfleet.replay.stored_scores import lacks, pairs_of_scores
from clipfleet.results.rows import RowReader, RowStream
from tests.support.heads import head_file
from tests.support.policies import make_policy, moderation_job, of_label, rule

NOW = datetime(2026, 12, 3, tzinfo=UTC)
CLASSIFY = head_file(4, 2, name="style")
REGRESS = head_file(4, 1, kind=HeadKind.REGRESS, name="taste")


def things(**values: Any) -> LabelSet:
    defaults: dict[str, Any] = {"name": "things", "kind": LabelKind.MULTI, "labels": ("cat", "dog")}
    return LabelSet(**(defaults | values))


def policy_of(label_set: LabelSet, *heads: HeadFile) -> Policy:
    flagged = rule("flag", of_label(label_set.labels[0], label_set.name))
    return make_policy(flagged, label_sets=(label_set,), heads=tuple(one.of_job for one in heads))


CALIBRATED = {"slope": 2.0, "intercepts": {"cat": 0.5, "dog": -0.5}}


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (things(), things()),
        (things(), things(thresholds={"cat": 0.9})),
        (things(), things(labels=("dog",))),
        (things(), things(labels=("dog", "cat"), groups={"cat": "pets"})),
        (things(**CALIBRATED), things(**CALIBRATED, thresholds={"dog": 0.1})),
        (things(not_prompts={"cat": ("a lion",)}), things(labels=("dog",))),
        (things(), things(kind=LabelKind.SINGLE, none=True)),
    ],
)
def test_scores_are_the_same_with_other_thresholds_and_with_fewer_labels(
    stored: LabelSet, wanted: LabelSet
) -> None:
    assert lacks(moderation_job(policy_of(stored)), policy_of(wanted)) is None


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (things(name="others"), "no label set 'others'"),
        (things(labels=("cat", "fox")), "label set 'things' had no label 'fox'"),
        (things(templates=("a drawing of a {}",)), "other templates"),
        (things(background=("anything",)), "another background"),
        (things(not_prompts={"dog": ("a wolf",)}), "other `not` prompts of 'dog'"),
        (things(**CALIBRATED), "calibrated otherwise for 'cat'"),
    ],
)
def test_other_scores(wanted: LabelSet, words: str) -> None:
    assert words in str(lacks(moderation_job(policy_of(things())), policy_of(wanted)))


def test_heads_are_compared_by_their_file() -> None:
    job = moderation_job(policy_of(things(), CLASSIFY))

    assert lacks(job, policy_of(things(), CLASSIFY)) is None
    assert "this head 'style'" in str(lacks(job, policy_of(things(), head_file(4, 2, name="style", seed=1))))
    assert "this head 'taste'" in str(lacks(job, policy_of(things(), REGRESS)))


class Rows:
    """A reader of these rows."""

    uri = "/out"

    def __init__(self, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        self._rows = pa.RecordBatch.from_pylist(rows, schema=schema)

    def read(self, columns: list[str]) -> RowStream:
        found = self._rows.select(columns)
        return RowStream(found.schema, iter([found.slice(0, 1), found.slice(1)]))


def row(number: int, cat: float, dog: float, style: str, taste: float) -> dict[str, Any]:
    best = sorted([("cat", cat), ("dog", dog)], key=lambda pair: -pair[1])
    return {
        "item_index": number, "item_id": f"id{number}", "uri": "/", "status": "ok",
        "labels": [label for label, _ in best], "scores": [score for _, score in best],
        "head_style": style, "head_style_scores": [0.75, 0.25], "head_style_score": 0.75,
        "head_taste_score": taste, "decision": "allow", "decision_id": f"dec-{number}",
        "decision_reasons": [], "model_fingerprint": "0123456789abcdef",
    }  # fmt: skip


OLD = make_policy(rule("flag", of_label("cat")), heads=(CLASSIFY.of_job, REGRESS.of_job))
NEW = make_policy(
    rule("allow", Condition(head="style", label="kind 1")),
    rule("flag", of_label("cat", at_least=0.9)),
    rule("review", of_label("dog"), Condition(head="taste", below=4)),
    thresholds={"dog": 0.25},
    heads=(CLASSIFY.of_job, REGRESS.of_job),
)


def pairs(old: Policy | None, new: Policy) -> list[dict[str, Any]]:
    job = moderation_job(OLD)
    schema = part_schema(
        None, accepted_columns=job.accepted_columns, heads=job.heads, head_scores=job.head_scores_columns,
        has_decisions=True,
    )  # fmt: skip
    failed = {
        "item_index": 3, "item_id": "id3", "uri": "/", "status": "failed", "error_code": "timeout",
        "decision": "undecided", "decision_id": "dec-3", "decision_reasons": [],
    }  # fmt: skip
    rows = [
        row(0, 0.95, 0.1, "kind 0", 5),
        row(1, 0.6, 0.3, "kind 0", 3.5),
        row(2, 0.95, 0.3, "kind 1", 3),
        failed,
    ]
    reader = cast("RowReader", Rows(rows, schema))
    return [one for batch in pairs_of_scores(reader, job, old, new, NOW) for one in batch.to_pylist()]


def test_the_recorded_decisions_are_the_old_side_of_the_policy_that_made_them() -> None:
    found = pairs(None, NEW)

    assert [(one["old"], one["new"]) for one in found] == [
        ("allow", "flag"), ("allow", "review"), ("allow", "allow"), ("undecided", "undecided"),
    ]  # fmt: skip
    assert [one["decision_id"] for one in found] == [f"dec-{number}" for number in range(4)]
    assert [one["error_code"] for one in found] == [None, None, None, "timeout"]
    assert [reason["label"] for reason in found[1]["new_reasons"]] == ["dog", None]


def test_another_old_policy_is_decided_too() -> None:
    found = pairs(OLD, NEW)

    assert [one["old"] for one in found] == ["flag", "flag", "flag", "undecided"]
    assert {one["decision_id"] for one in found} == {None}
