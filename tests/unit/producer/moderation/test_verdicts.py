"""Verdicts on decisions: what they prove, what is refused, and that both sides of an appeal stay."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.errors import OutputDamagedError, UsageError
from clipfleet.labels.marks import MarkVerdict
from clipfleet.moderation.verdicts import (
    Outcome,
    ReviewerVerdict,
    add_verdict,
    implied_marks,
    verdicts_of,
)
from clipfleet.outputs.folder import FolderOutput
from tests.support.decision_logs import decision_id, logged_job, make_record, reason
from tests.support.policies import make_policy

YES, NO, SKIP = MarkVerdict.YES, MarkVerdict.NO, MarkVerdict.SKIP
UPHELD, OVERTURNED = Outcome.UPHELD, Outcome.OVERTURNED


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    return FolderOutput(tmp_path / "place")


@pytest.mark.parametrize(
    ("status", "reasons", "upheld", "overturned"),
    [
        pytest.param("flag", [reason("cat")], {"things/cat": YES}, {"things/cat": NO}, id="one rule"),
        pytest.param(
            "flag", [reason("cat", test="below")], {"things/cat": NO}, {"things/cat": YES}, id="below"
        ),
        pytest.param(
            "flag",
            [reason("cat"), reason("dog")],
            {"things/cat": YES, "things/dog": YES},
            {},
            id="one rule of two conditions: when it is wrong, either may be",
        ),
        pytest.param(
            "flag",
            [reason("cat", "a"), reason("dog", "b")],
            {},
            {"things/cat": NO, "things/dog": NO},
            id="two rules: when it is right, either may be",
        ),
        pytest.param(
            "flag",
            [reason("cat", "a"), reason("dog", "b", "review")],
            {"things/cat": YES},
            {"things/cat": NO},
            id="a rule that did not decide",
        ),
        pytest.param("flag", [reason("x", label_set=None, head="h")], {}, {}, id="a head"),
        pytest.param("allow", [], {}, {}, id="no rule"),
        pytest.param("undecided", [reason("cat", action="undecided", score=None)], {}, {}, id="undecided"),
    ],
)
def test_only_what_follows_is_marked(
    output: FolderOutput, status: str, reasons: list[dict[str, object]],
    upheld: dict[str, MarkVerdict], overturned: dict[str, MarkVerdict],
) -> None:  # fmt: skip
    record = make_record(logged_job(output, make_policy()), status=status, reasons=reasons)

    assert implied_marks(record, UPHELD) == upheld
    assert implied_marks(record, OVERTURNED) == overturned


def test_given_labels_stand_beside_and_above_the_implied_ones(output: FolderOutput) -> None:
    record = make_record(logged_job(output, make_policy()))
    given = ReviewerVerdict(verdict=UPHELD, labels={"cat": SKIP, "things/dog": NO}, by="ann", note="blurred")

    stored = add_verdict(output, record, given)

    assert stored.marks == {"things/cat": SKIP, "things/dog": NO}
    assert (stored.by, stored.note, stored.is_appeal) == ("ann", "blurred", False)
    assert stored.content_hash == record["content_hash"]


def test_an_appeal_stands_beside_the_first_verdict(output: FolderOutput) -> None:
    job = logged_job(output, make_policy())
    record = make_record(job)
    first = ReviewerVerdict(verdict=UPHELD, by="ann", at=datetime(2026, 12, 3, 11, tzinfo=UTC))
    appeal = ReviewerVerdict(
        verdict=OVERTURNED, by="bob", is_appeal=True, at=datetime(2026, 12, 4, 11, tzinfo=UTC)
    )
    add_verdict(output, record, appeal)
    add_verdict(output, record, first)

    found = verdicts_of(output, decision_id(job))

    assert [(one.verdict, one.by, one.is_appeal) for one in found] == [
        (UPHELD, "ann", False), (OVERTURNED, "bob", True),
    ]  # fmt: skip
    assert [one.marks for one in found] == [{"things/cat": YES}, {"things/cat": NO}]


def test_verdicts_are_of_one_decision(output: FolderOutput) -> None:
    job = logged_job(output, make_policy())
    for index in (1, 10, 1):
        add_verdict(output, make_record(job, index), ReviewerVerdict(verdict=UPHELD))

    assert [len(verdicts_of(output, decision_id(job, index))) for index in (0, 1, 10)] == [0, 2, 1]


@pytest.mark.parametrize("status", ["allow", "undecided"])
def test_what_should_have_been_flagged_must_be_named(output: FolderOutput, status: str) -> None:
    job = logged_job(output, make_policy())
    record = make_record(job, status=status)

    with pytest.raises(UsageError, match=rf"dec-\S+ is {status}: say which label .* things/cat=yes"):
        add_verdict(output, record, ReviewerVerdict(verdict=OVERTURNED))
    assert not verdicts_of(output, decision_id(job))

    stored = add_verdict(output, record, ReviewerVerdict(verdict=OVERTURNED, labels={"cat": YES}))
    assert stored.marks == {"things/cat": YES}


def test_an_unknown_label_is_refused(output: FolderOutput) -> None:
    record = make_record(logged_job(output, make_policy()))

    with pytest.raises(UsageError, match=r"dec-\S+: its policy has no label 'cow'; it has things/cat"):
        add_verdict(output, record, ReviewerVerdict(verdict=UPHELD, labels={"cow": YES}))


def test_an_ambiguous_label_is_refused_and_named_in_full(output: FolderOutput) -> None:
    sets = [LabelSet(name=name, labels=("cat", "a/b"), kind=LabelKind.MULTI) for name in ("things", "more")]
    record = make_record(logged_job(output, make_policy(label_sets=tuple(sets))))

    with pytest.raises(UsageError, match="2 label sets have a label 'a/b': say things/a/b"):
        add_verdict(output, record, ReviewerVerdict(verdict=UPHELD, labels={"a/b": YES}))
    stored = add_verdict(output, record, ReviewerVerdict(verdict=UPHELD, labels={"more/a/b": YES}))

    assert stored.marks == {"things/cat": YES, "more/a/b": YES}


def test_a_damaged_verdict_is_named(output: FolderOutput) -> None:
    job = logged_job(output, make_policy())
    add_verdict(output, make_record(job), ReviewerVerdict(verdict=UPHELD))
    (name,) = output.names(f"_decisions/verdicts/20261203/{decision_id(job).digest}")

    for damaged in (b"{", b"[]", b'{"verdict": "upheld"}'):
        output.replace(name, damaged)
        with pytest.raises(OutputDamagedError, match=rf"{name}: not a verdict"):
            verdicts_of(output, decision_id(job))
