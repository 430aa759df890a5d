"""Policies and the ids of decisions: what is refused, what is the same, what a job carries."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import Job, SourceDescription, read_job
from clipfleet.contract.label_sets import LabelKind, LabelSet, Preset
from clipfleet.contract.policies import (
    Condition,
    DecisionId,
    DecisionLog,
    Policy,
    decision_day,
    job_digest,
)
from tests.support.heads import head_file
from tests.support.policies import make_policy, moderation_job, of_label, rule

TASTE = head_file(4, 1, name="taste", kind=HeadKind.REGRESS).of_job
KINDS = head_file(4, 3, name="kinds").of_job
PETS = LabelSet(name="pets", labels=("cat", "dog"), kind=LabelKind.MULTI)


class TestPolicy:
    @pytest.mark.parametrize(
        ("condition", "problem"),
        [
            (of_label("bird"), "rule 1: label set 'things' has no label 'bird'"),
            (of_label("cat", "places"), "rule 1: there is no label set 'places'; there is things"),
            (of_label("cat", at_least=1.5), "rule 1: things/cat >= 1.5: scores of labels are from 0 to 1"),
            (Condition(head="style", below=1), "there is no head 'style'; there is kinds, taste"),
            (Condition(head="kinds"), "head 'kinds' is of kind classify: name one of its labels"),
            (Condition(head="kinds", label="no such"), "head 'kinds' has no label 'no such'"),
            (Condition(head="taste"), "head 'taste' has no threshold of its own: give at_least or below"),
        ],
        ids=str,
    )
    def test_a_rule_names_what_is_there(self, condition: Condition, problem: str) -> None:
        with pytest.raises(ValidationError, match=problem.replace("(", r"\(")):
            make_policy(rule("flag", condition), heads=(TASTE, KINDS))

    def test_its_rules_have_no_more_conditions_than_a_row_can_give_as_reasons(self) -> None:
        rules = [rule("flag", *[of_label("cat", at_least=0.5)] * 100) for _ in range(20)]

        make_policy(*rules)

        with pytest.raises(ValidationError, match="its rules have 2,001 conditions, more than 2,000"):
            make_policy(*rules, rule("review", of_label("dog")))

    @pytest.mark.parametrize(
        ("label_set", "problem"),
        [
            (LabelSet(name="pets", labels=("cat", "dog")), "'pets' uses a softmax"),
            (LabelSet(name="pets", preset=Preset.IMAGENET1K, none=True), "names its labels, not a preset"),
            (
                LabelSet(name="pets", labels=[f"l{n}" for n in range(1001)], none=True),
                "more than 1000 labels",
            ),
        ],
        ids=["softmax", "preset", "too many"],
    )
    def test_its_label_sets_have_thresholds_and_names(self, label_set: LabelSet, problem: str) -> None:
        with pytest.raises(ValidationError, match=problem):
            make_policy(label_sets=(PETS.model_copy(update={"name": "things"}), label_set))

    @pytest.mark.parametrize(
        "values",
        [
            {"label": "cat"},
            {"label_set": "things", "head": "taste", "label": "cat"},
            {"label_set": "things"},
            {"label_set": "things", "label": "cat", "at_least": 0.1, "below": 0.9},
            {"head": "taste", "below": float("nan")},
        ],
        ids=str,
    )
    def test_a_condition_is_about_one_score_and_one_bound(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            Condition(**values)

    def test_its_hash_is_the_same_on_every_machine(self) -> None:
        assert make_policy().sha256 == "b2773782af37bbf3f6d1535484198099651bfe17492d3c0d44a7c723958597ac"

    @pytest.mark.parametrize(
        "other",
        [
            make_policy(version="2"),
            make_policy(thresholds={"cat": 0.4}),
            make_policy(rule("review", of_label("cat"))),
            make_policy(otherwise="review"),
            make_policy(heads=(TASTE,)),
            make_policy(exif="apply"),
        ],
        ids=["version", "threshold", "action", "otherwise", "head", "exif"],
    )
    def test_whatever_decides_or_explains_makes_another_one(self, other: Policy) -> None:
        assert other.sha256 != make_policy().sha256

    def test_a_job_gives_the_whole_policy_back(self) -> None:
        policy = make_policy(thresholds={"dog": 0.25}, heads=(TASTE, KINDS), version="7")
        job = read_job(moderation_job(policy).model_dump_json())

        assert Policy.of_job(job) == policy
        assert job.policy is not None
        assert job.policy.sha256 == policy.sha256


class TestJob:
    def test_it_has_the_columns_of_its_decisions_and_all_scores_of_heads(self) -> None:
        job = moderation_job(make_policy(heads=(TASTE, KINDS)))

        assert job.own_columns == (
            "accepted", "head_taste", "head_taste_score", "head_kinds", "head_kinds_score",
            "head_kinds_scores", "decision", "decision_id", "decided_at", "decision_reasons",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("values", "problem"),
        [
            ({"top_k": 1}, "needs the score of every label"),
            ({"label_set_column": "which"}, "uses all its label sets on every item"),
            ({"label_sets": (PETS,)}, "there is no label set 'things'"),
            (
                {"source": SourceDescription(kind="csv", uri="/a.csv", extra_columns=("decision",))},
                "would fill the column 'decision', which the source has too",
            ),
        ],
        ids=["top_k", "chosen sets", "other sets", "clash"],
    )
    def test_a_job_that_its_policy_does_not_fit_is_refused(
        self, values: dict[str, Any], problem: str
    ) -> None:
        source = SourceDescription(kind="csv", uri="/a.csv", extra_columns=("which",))
        with pytest.raises(ValidationError, match=problem):
            moderation_job(make_policy(), **{"source": source, **values})

    def test_only_decisions_that_are_announced_are_recorded(self) -> None:
        log = DecisionLog(uri="/log")

        with pytest.raises(ValidationError, match="dry run are not recorded"):
            moderation_job(make_policy(), is_dry=True, decisions=log)
        with pytest.raises(ValidationError, match="jobs with a policy only"):
            Job.model_validate({**moderation_job(make_policy(), decisions=log).model_dump(), "policy": None})


class TestDecisionId:
    def test_it_says_where_its_record_lies(self) -> None:
        found = DecisionId.of_text("dec-20261203-3f9a1c2b7d4e-1-17")

        assert found == DecisionId("20261203", "3f9a1c2b7d4e", 1, 17)
        assert str(found) == "dec-20261203-3f9a1c2b7d4e-1-17"

    @pytest.mark.parametrize(
        "text",
        ["", "dec-20261203-3f9a1c2b7d4e-1", "dec-20261203-3F9A1C2B7D4E-1-1", "dec-20261203-../../../et-1-1"],
    )
    def test_other_texts_are_no_ids(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not the id of a decision"):
            DecisionId.of_text(text)

    def test_a_job_that_has_the_id_of_an_earlier_one_has_other_decisions(self) -> None:
        one, other = datetime(2026, 12, 3, tzinfo=UTC), datetime(2026, 12, 3, 0, 0, 1, tzinfo=UTC)

        assert decision_day(one) == decision_day(other) == "20261203"
        assert job_digest("nightly", one) != job_digest("nightly", other)
        assert job_digest("nightly", one) == "873adf7537ad"
