"""Policies and jobs that decide by them."""

from __future__ import annotations

from typing import Any

from clipfleet.contract.heads import JobHead
from clipfleet.contract.jobs import Job, Task
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.policies import Action, Condition, Policy, Rule
from tests.support.jobs import make_job


def rule(action: Action | str, *when: Condition, name: str | None = None) -> Rule:
    """A rule of these conditions."""
    return Rule(name=name, when=when, action=Action(action))


def of_label(label: str, label_set: str = "things", **bounds: float) -> Condition:
    """A condition on a label of a set."""
    return Condition(label_set=label_set, label=label, **bounds)


def make_policy(
    *rules: Rule,
    labels: tuple[str, ...] = ("cat", "dog"),
    thresholds: dict[str, float] | None = None,
    heads: tuple[JobHead, ...] = (),
    **values: Any,
) -> Policy:
    """A policy over one label set `things`; by default it flags the first label."""
    things = LabelSet(name="things", labels=labels, kind=LabelKind.MULTI, thresholds=thresholds or {})
    defaults: dict[str, Any] = {
        "name": "uploads", "model": "demo", "label_sets": (things,), "heads": heads,
        "rules": rules or (rule("flag", of_label(labels[0])),),
    }  # fmt: skip
    return Policy(**(defaults | values))


def moderation_job(policy: Policy, output: str = "/out", *, is_dry: bool = False, **values: Any) -> Job:
    """A job that decides by a policy."""
    own: dict[str, Any] = {
        "task": Task.CLASSIFY, "label_sets": policy.label_sets, "heads": policy.heads,
        "policy": policy.of_a_job(is_dry=is_dry), "top_k": policy.most_labels, "schema_version": 6,
    }  # fmt: skip
    return make_job(output, **(own | values))
