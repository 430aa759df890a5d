"""Python values as arguments of the Lua scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from clipfleet.contract.bottleneck import Meters
from clipfleet.contract.brief import JobBrief
from clipfleet.contract.jobs import Job
from clipfleet.contract.webhooks import DecisionEvent

_SHORT_SPEC = 4096  # characters


def rate_argument(rate: float | None) -> float | str:
    """An error rate; empty if there is none."""
    return "" if rate is None else rate


def brief_argument(job: Job, spec: str) -> str:
    """The brief of a job whose JSON is long; empty for others, of which a list reads the JSON itself.

    A hash of short values only takes half of the memory, see the object encodings of Redis.
    """
    return JobBrief.of(job).to_json() if len(spec) > _SHORT_SPEC else ""


def flat(pairs: Mapping[str, str | int]) -> list[str | int]:
    """Keys and values in turn."""
    return [part for pair in pairs.items() for part in pair]


def measured_argument(work_seconds: Mapping[str, float], meters: Meters) -> str:
    """JSON as `measured.lua` reads it; empty if nothing was measured."""
    measured: dict[str, Mapping[str, float | str]] = {}
    if work_seconds:
        measured["seconds"] = {step: round(value, 6) for step, value in work_seconds.items()}
    if meters.seconds:
        measured["meters"] = meters.to_facts()
    return json.dumps(measured, separators=(",", ":")) if measured else ""


def decisions_arguments(decisions: Sequence[DecisionEvent] | None) -> list[str | int]:
    """How many decisions there are, `""` for a job that announces none, and what is announced of each."""
    if decisions is None:
        return [""]
    facts = (part for one in decisions for part in (one.status, one.event_id, one.policy, one.record))
    return [len(decisions), *facts]
