"""`/v1/moderations`: the item of a body, and the body of an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from clipfleet.contract.columns import head_scores_column, label_columns
from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import Task
from clipfleet.contract.policies import Action, DecisionStatus, Policy
from clipfleet_gateway.inputs.asked import Asked
from clipfleet_gateway.inputs.images import image_item
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.policies.stored import StoredPolicy
from clipfleet_gateway.shapes.moderations import (
    ItemFailure,
    ModerationAnswer,
    ModerationRequest,
    ModerationResult,
    Reason,
)

_ID_PREFIX = "modr-"
_COUNT = (Action.FLAG, Action.REVIEW)
_Place = tuple[str, str]  # label set or head, and label


def asked_of_moderation(body: ModerationRequest, key: Key) -> Asked:
    """What a body asks for; the caller adds the policy, see `by_policy`.

    Raises:
        ApiError: the image is wrong, or the key must not read it.
    """
    (part, param) = (body.input[0], "input[0]") if isinstance(body.input, tuple) else (body.input, "input")
    item = image_item(part.image_url.url, key, param)
    return Asked(Task.CLASSIFY, "", None, (item,), (param,), owner=key.name)


def by_policy(asked: Asked, stored: StoredPolicy) -> Asked:
    """The same, decided by a policy."""
    return replace(asked, model=stored.policy.model, policy=stored)


def moderation_answer(stored: StoredPolicy, row: Mapping[str, Any]) -> ModerationAnswer:
    """The answer of the row of an image, with all columns of a moderation job."""
    reasons = [Reason.model_validate(one) for one in row["decision_reasons"] or ()]
    counted = {(one.label_set or one.head or "", one.label or "") for one in reasons if one.action in _COUNT}
    scores = dict(_scores(stored.policy, row))
    names = _names(scores)
    result = ModerationResult(
        flagged=row["decision"] != DecisionStatus.ALLOW,
        categories={names[place]: place in counted for place in scores},
        category_scores={names[place]: score for place, score in scores.items()},
        category_applied_input_types={name: ("image",) for name in names.values()},
        decision=DecisionStatus(row["decision"]),
        decision_id=row["decision_id"],
        reasons=tuple(reasons),
        error=_failure(row),
    )
    answer_id = _ID_PREFIX + str(row["decision_id"]).removeprefix("dec-")
    return ModerationAnswer(id=answer_id, model=stored.name, results=(result,))


def _failure(row: Mapping[str, Any]) -> ItemFailure | None:
    code = row.get("error_code")
    return None if code is None else ItemFailure(code=code, detail=row.get("error_detail") or "")


def _names(places: Mapping[_Place, object]) -> dict[_Place, str]:
    """Each label alone, or `set/label` if several have it."""
    times = Counter(label for _, label in places)
    return {(owner, label): label if times[label] == 1 else f"{owner}/{label}" for owner, label in places}


def _scores(policy: Policy, row: Mapping[str, Any]) -> Iterator[tuple[_Place, float | None]]:
    """The score of each label of all label sets and heads; None: there is none."""
    has_own_columns = len(policy.label_sets) > 1
    for one in policy.label_sets:
        labels, scores = label_columns(one.name)[2:] if has_own_columns else ("labels", "scores")
        found = dict(zip(row.get(labels) or (), row.get(scores) or (), strict=True))
        yield from (((one.name, name), found.get(name)) for name in one.labels)
    for head in policy.heads:
        if head.head.kind is HeadKind.REGRESS:  # its number is of no category
            continue
        values = row.get(head_scores_column(head.name)) or [None] * len(head.head.labels)
        yield from (((head.name, name), value) for name, value in zip(head.head.labels, values, strict=True))
