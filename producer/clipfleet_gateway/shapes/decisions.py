"""`/v1/decisions`: the record of a decision with what explains it, and verdicts of reviewers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from clipfleet.contract.policies import DecisionStatus
from clipfleet.labels.marks import MarkVerdict
from clipfleet.moderation.verdicts import Outcome
from clipfleet_gateway.shapes.bodies import Shape, StrictShape
from clipfleet_gateway.shapes.moderations import ItemFailure, Reason

_MOST_LABELS = 1000
_MOST_NOTE_CHARACTERS = 10_000

_Marks = dict[Annotated[str, Field(max_length=1200)], MarkVerdict]


class VerdictRequest(StrictShape):
    """What a reviewer says about a decision."""

    verdict: Annotated[Outcome, Field(description="whether the decision was right")]
    labels: Annotated[
        _Marks,
        Field(
            max_length=_MOST_LABELS,
            description="whether the image shows a label, by `LABEL` or `SET/LABEL`; what follows from the "
            "verdict need not be given",
        ),
    ] = Field(default_factory=dict)
    by: Annotated[str, Field(max_length=200, description="the reviewer")] = ""
    note: Annotated[str, Field(max_length=_MOST_NOTE_CHARACTERS, description="for people")] = ""
    appeal: Annotated[bool, Field(description="whether it answers an objection to the decision")] = False


class VerdictObject(Shape):
    """A verdict as it is recorded. It is never changed: a later one stands beside it."""

    verdict: Outcome
    marks: Annotated[
        Mapping[str, MarkVerdict], Field(description="by `SET/LABEL`: given ones, and those that follow")
    ]
    by: str
    note: str
    is_appeal: bool
    at: AwareDatetime


class DecisionObject(Shape):
    """A decision, with all that explains it."""

    object: Literal["decision"] = "decision"
    decision_id: str
    status: DecisionStatus
    reasons: tuple[Reason, ...]
    error: Annotated[ItemFailure | None, Field(description="why it could not be judged")]
    job_id: Annotated[str, Field(description="`door-...`: of a request")]
    item_index: int
    item_id: str
    uri: Annotated[str, Field(description="of the image; empty: it was in the body")]
    content_hash: Annotated[str | None, Field(description="SHA-256 of the image")]
    model: str
    model_fingerprint: Annotated[str | None, Field(description="which vectors were scored")]
    policy: Annotated[
        Mapping[str, Any],
        Field(description="in full: hash, labels with prompts and certificates, heads, rules"),
    ]
    scores: Annotated[
        Mapping[str, Mapping[str, float | None]], Field(description="of all labels, by label set")
    ]
    heads: Annotated[Mapping[str, Any], Field(description="by head: its number, or its scores by label")]
    automated: Annotated[bool, Field(description="always true: people give verdicts")]
    at: Annotated[str, Field(description="when it was decided, in ISO 8601")]
    owner: Annotated[str | None, Field(description="name of the key")]
    verdicts: Annotated[tuple[VerdictObject, ...], Field(description="the earliest first")]
