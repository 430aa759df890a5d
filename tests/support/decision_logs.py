"""Logs of decisions without a worker: records as it writes them, by policies of `support.policies`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from clipfleet.contract.jobs import Job
from clipfleet.contract.policies import (
    DecisionId,
    DecisionLog,
    Policy,
    decision_day,
    job_digest,
    policy_facts,
)
from clipfleet.moderation.log import write_policy, write_records
from clipfleet.outputs import Output
from tests.support.policies import moderation_job

FINGERPRINT = "0123456789abcdef"
CREATED = datetime(2026, 12, 3, 10, tzinfo=UTC)
NO_SCORES: Mapping[str, float] = {}


def logged_job(
    output: Output, policy: Policy, job_id: str = "j1", *, keep_days: int | None = None, **values: Any
) -> Job:
    """A moderation job that logs to an output, with its policy there."""
    log = DecisionLog(uri=output.uri, keep_days=keep_days)
    job = moderation_job(policy, job_id=job_id, decisions=log, **({"created_at": CREATED} | values))
    write_policy(output, job)
    return job


def decision_id(job: Job, index: int = 0, generation: int = 0) -> DecisionId:
    """The id of a decision of a job."""
    digest = job_digest(job.job_id, job.created_at)
    return DecisionId(decision_day(job.created_at), digest, generation, index)


def reason(label: str, rule: str = "rule 1", action: str = "flag", **values: Any) -> dict[str, Any]:
    """A reason on a label of the set `things`."""
    own = {
        "rule": rule, "action": action, "label_set": "things", "head": None, "label": label, "score": 0.75,
        "threshold": 0.5, "test": "at_least", "threshold_source": "default",
    }  # fmt: skip
    return own | values


def make_record(
    job: Job,
    index: int = 0,
    *,
    generation: int = 0,
    status: str = "flag",
    reasons: Sequence[Mapping[str, Any]] | None = None,
    scores: Mapping[str, float] = NO_SCORES,
    **values: Any,
) -> dict[str, Any]:
    """A record; by default of an item that its first label flags."""
    assert job.policy is not None
    label = job.label_sets[0].labels[0]
    own: dict[str, Any] = {
        "decision_id": str(decision_id(job, index, generation)), "status": status,
        "reasons": list(reasons) if reasons is not None else [reason(label)] if status == "flag" else [],
        "error": None, "job_id": job.job_id, "item_index": index, "item_id": f"item-{index}",
        "uri": f"s3://uploads/{index}.jpg", "content_hash": f"{index:064x}",
        "policy": policy_facts(job.policy), "model": job.model, "model_fingerprint": FINGERPRINT,
        "scores": {job.label_sets[0].name: dict(scores or {label: 0.75})}, "heads": {},
        "automated": True, "at": "2026-12-03T10:00:01.000Z", "owner": None,
    }  # fmt: skip
    return own | values


def log_records(
    output: Output, job: Job, *found: Mapping[str, Any], generation: int = 0, today: date | None = None
) -> None:
    """Write records as one chunk."""
    write_records(output, job, generation, found, today or CREATED.date())
