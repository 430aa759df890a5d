"""Verdicts of reviewers on decisions: they stand beside the records in the log, and are only ever added.

A verdict holds marks, what it says about labels: see `implied_marks` for those that follow from it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from clipfleet.contract.label_sets import FrozenModel
from clipfleet.contract.policies import DECISION_ID_PATTERN, DecisionId, DecisionStatus, Policy
from clipfleet.errors import OutputDamagedError, UsageError, first_problem
from clipfleet.labels.marks import MarkVerdict
from clipfleet.moderation.log import VERDICTS, read_policy
from clipfleet.outputs import Output

_SHOWN = 10  # labels in a message
_BELOW = "below"  # the `test` of a reason whose score is below its threshold


class Outcome(StrEnum):
    """What a reviewer says about a decision."""

    UPHELD = "upheld"
    OVERTURNED = "overturned"


class ReviewerVerdict(FrozenModel):
    """What a reviewer says, as it is given."""

    verdict: Outcome
    labels: dict[str, MarkVerdict] = Field(default_factory=dict)  # by `LABEL` or `SET/LABEL`
    by: Annotated[str, Field(max_length=200)] = ""
    note: Annotated[str, Field(max_length=10_000)] = ""
    is_appeal: bool = False  # given because somebody has objected to the decision
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @field_validator("at")
    @classmethod
    def _in_utc(cls, value: datetime) -> datetime:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class RecordedVerdict(FrozenModel):
    """A verdict as the log holds it."""

    decision_id: Annotated[str, Field(pattern=DECISION_ID_PATTERN)]
    verdict: Outcome
    marks: dict[str, MarkVerdict]  # by `SET/LABEL`, given and implied ones
    by: str
    note: str
    is_appeal: bool
    at: datetime
    content_hash: str | None  # of the image that was decided on


def add_verdict(output: Output, record: Mapping[str, Any], given: ReviewerVerdict) -> RecordedVerdict:
    """Add a verdict to the log that holds a record. Repeated, it stands there twice, which changes nothing.

    Raises:
        UsageError: a label is unknown or ambiguous, or missing where nothing follows from the verdict.
    """
    decision_id = DecisionId.of_text(record["decision_id"])
    known = _labels_of(record, read_policy(output, record["policy"]["sha256"]))
    marks = {_key(name, known, decision_id): verdict for name, verdict in given.labels.items()}
    is_about_no_rule = record["status"] in (DecisionStatus.ALLOW, DecisionStatus.UNDECIDED)
    if given.verdict is Outcome.OVERTURNED and is_about_no_rule and not marks:
        raise UsageError(
            f"{decision_id} is {record['status']}: say which label it should have had as `label=`, such as "
            f"{next(iter(known), 'SET/LABEL')}=yes"
        )
    made = RecordedVerdict(
        decision_id=str(decision_id), verdict=given.verdict,
        marks={**implied_marks(record, given.verdict), **marks}, by=given.by, note=given.note,
        is_appeal=given.is_appeal, at=given.at, content_hash=record["content_hash"],
    )  # fmt: skip
    milliseconds = int(given.at.timestamp() * 1000)
    name = f"{_prefix(decision_id)}{milliseconds:013d}-{secrets.token_hex(8)}.json"
    output.create(name, made.model_dump_json().encode())
    return made


def verdicts_of(output: Output, decision_id: DecisionId) -> list[RecordedVerdict]:
    """All verdicts on a decision, the earliest first.

    Raises:
        OutputDamagedError: one is not what was written.
    """
    return sorted(_read_all(output, output.names(_prefix(decision_id))), key=lambda one: one.at)


def implied_marks(record: Mapping[str, Any], verdict: Outcome) -> dict[str, MarkVerdict]:
    """What a verdict proves about the labels of the rules that decided, by `SET/LABEL`.

    All conditions of a rule hold, and any one rule suffices: so an upheld decision of a single rule confirms
    each of its conditions, and an overturned one refutes the rules of a single condition. Of others, the
    reviewer must say which label is meant: a mark that is guessed would spoil a certificate.
    """
    status = record["status"]
    if status == DecisionStatus.UNDECIDED:
        return {}
    by_rule: dict[str, list[Mapping[str, Any]]] = {}
    for reason in record["reasons"]:
        if reason["action"] == status:
            by_rule.setdefault(reason["rule"], []).append(reason)
    if verdict is Outcome.UPHELD:
        certain = [one for reasons in by_rule.values() for one in reasons] if len(by_rule) == 1 else []
    else:
        certain = [reasons[0] for reasons in by_rule.values() if len(reasons) == 1]
    marks: dict[str, MarkVerdict] = {}
    for reason in certain:
        if reason["label_set"] is not None:
            is_there = (verdict is Outcome.UPHELD) == (reason["test"] != _BELOW)
            key = label_key(reason["label_set"], reason["label"])
            marks[key] = MarkVerdict.YES if is_there else MarkVerdict.NO
    return marks


def label_key(label_set: str, label: str) -> str:
    """`SET/LABEL`. The name of a set has no slash."""
    return f"{label_set}/{label}"


def _prefix(decision_id: DecisionId) -> str:
    one = decision_id
    return f"{VERDICTS}/{one.day}/{one.digest}-{one.generation}-{one.item_index}-"


def _read_all(output: Output, names: Iterable[str]) -> Iterator[RecordedVerdict]:
    for name in names:
        data = output.read(name)
        if data is None:  # removed since it was listed
            continue
        try:
            yield RecordedVerdict.model_validate(json.loads(data))
        except ValidationError as error:
            raise OutputDamagedError(f"{output.uri}/{name}: not a verdict: {first_problem(error)}") from None
        except ValueError as error:
            raise OutputDamagedError(f"{output.uri}/{name}: not a verdict: {error}") from None


def _labels_of(record: Mapping[str, Any], policy: Policy | None) -> list[str]:
    """What can be marked, by `SET/LABEL`: without its policy, what the record has scores of."""
    if policy is not None:
        return [label_key(one.name, label) for one in policy.label_sets for label in one.labels]
    return [label_key(name, label) for name, scores in record["scores"].items() for label in scores]


def _key(name: str, known: Sequence[str], decision_id: DecisionId) -> str:
    """The `SET/LABEL` of a name with or without a set."""
    if name in known:
        return name
    found = [key for key in known if key.partition("/")[2] == name]
    if len(found) > 1:
        raise UsageError(f"{decision_id}: {len(found)} label sets have a label {name!r}: say {found[0]}")
    if not found:
        more = ", ..." if len(known) > _SHOWN else ""
        some = ", ".join(known[:_SHOWN]) + more
        raise UsageError(f"{decision_id}: its policy has no label {name!r}; it has {some or 'none'}")
    return found[0]
