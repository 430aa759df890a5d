"""Verdicts of reviewers on decisions: added to the log beside the records, and never changed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AwareDatetime, Field, ValidationError

from clipfleet.contract.label_sets import FrozenModel
from clipfleet.contract.policies import DECISION_ID_PATTERN, DecisionId, DecisionStatus
from clipfleet.errors import OutputDamagedError, UsageError
from clipfleet.labels.marks import MarkVerdict
from clipfleet.moderation.log import VERDICTS
from clipfleet.outputs import Output

MAX_NOTE = 4_000  # characters


class Outcome(StrEnum):
    """What a reviewer says of a decision."""

    UPHELD = "upheld"
    OVERTURNED = "overturned"


class ReviewVerdict(FrozenModel):
    """One verdict. Those of an appeal stand beside earlier ones."""

    decision_id: Annotated[str, Field(pattern=DECISION_ID_PATTERN)]
    verdict: Outcome
    # By `set/label`: whether the image shows the label.
    labels: dict[str, MarkVerdict] = Field(default_factory=dict)
    by: Annotated[str, Field(max_length=200)] = ""
    note: Annotated[str, Field(max_length=MAX_NOTE)] = ""
    is_appeal: bool = False
    at: AwareDatetime


def make_verdict(
    record: Mapping[str, Any],
    verdict: Outcome,
    labels: Mapping[str, MarkVerdict] | None = None,
    *,
    by: str = "",
    note: str = "",
    is_appeal: bool = False,
    now: datetime | None = None,
) -> ReviewVerdict:
    """A verdict on a recorded decision.

    Args:
        record: of the decision.
        verdict: on it.
        labels: whether the image shows these labels, as `label` or `set/label`. By default those of the
            reasons to flag or review: yes if the decision is upheld, else no.
        by: the reviewer.
        note: for people.
        is_appeal: whether somebody has objected to the decision.
        now: the time of the verdict.

    Raises:
        UsageError: the decision has no such label, or labels are needed and none are given.
    """
    known = [f"{name}/{label}" for name, scores in record["scores"].items() for label in scores]
    found = {_known_label(known, name): mark for name, mark in (labels or {}).items()}
    if not found:
        found = _implied(record, verdict)
    is_decided = record["status"] in (DecisionStatus.FLAG, DecisionStatus.REVIEW)
    if verdict is Outcome.OVERTURNED and not found and not is_decided:
        raise UsageError(
            f"{record['decision_id']} is {record['status']}: say which labels the image shows, such as "
            f"{known[0] if known else 'set/label'}=yes"
        )
    try:
        return ReviewVerdict(
            decision_id=record["decision_id"], verdict=verdict, labels=found, by=by, note=note,
            is_appeal=is_appeal, at=now or datetime.now(UTC),
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{first['loc'][0]}: {first['msg']}") from None


def _known_label(known: list[str], name: str) -> str:
    having = [one for one in known if name == one or one.partition("/")[2] == name]
    if not having:
        raise UsageError(f"there is no label {name!r}; there is {', '.join(known) or 'none'}")
    if len(having) > 1:
        raise UsageError(f"several sets have a label {name!r}: say which one, {' or '.join(having)}")
    return having[0]


def _implied(record: Mapping[str, Any], verdict: Outcome) -> dict[str, MarkVerdict]:
    """What a verdict says of the labels for which the decision flagged or sent to review.

    A reason below a threshold says nothing of its label.
    """
    mark = MarkVerdict.YES if verdict is Outcome.UPHELD else MarkVerdict.NO
    return {
        f"{one['label_set']}/{one['label']}": mark
        for one in record["reasons"]
        if one["label_set"] is not None and one["test"] == "at_least" and one["action"] in ("flag", "review")
    }


def add_verdict(output: Output, verdict: ReviewVerdict) -> None:
    """Add a verdict to the log of its decision."""
    where = DecisionId.of_text(verdict.decision_id)
    stem = f"{VERDICTS}/{where.day}/{where.digest}-{where.generation}-{where.item_index}"
    milliseconds = int(verdict.at.timestamp() * 1000)
    while not output.create(  # another one of this very moment has the name
        f"{stem}-{milliseconds}-{secrets.token_hex(4)}.json", verdict.model_dump_json().encode()
    ):
        pass


def verdicts_of(output: Output, decision_id: DecisionId) -> list[ReviewVerdict]:
    """The verdicts on a decision, the earliest first."""
    one = decision_id
    prefix = f"{VERDICTS}/{one.day}/{one.digest}-{one.generation}-{one.item_index}-"
    return sorted(_read(output, output.names(prefix)), key=lambda verdict: verdict.at)


def all_verdicts(output: Output, day: str, digest: str = "") -> Iterator[ReviewVerdict]:
    """All verdicts on the decisions of a day, or of one job, in no order."""
    return _read(output, output.names(f"{VERDICTS}/{day}/{digest}"))


def _read(output: Output, names: Iterator[str]) -> Iterator[ReviewVerdict]:
    for name in names:
        data = output.read(name)
        if data is None:  # removed by retention
            continue
        try:
            yield ReviewVerdict.model_validate(json.loads(data))
        except ValueError as error:
            raise OutputDamagedError(f"{output.uri}/{name}: not a verdict: {error}") from error
