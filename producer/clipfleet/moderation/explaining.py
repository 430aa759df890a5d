"""Explains a decision from its log alone, as lines for people and as one JSON object. No ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.policies import Action, Condition, DecisionId, DecisionStatus, Policy
from clipfleet.errors import OutputDamagedError, UsageError
from clipfleet.moderation.checking import checked
from clipfleet.moderation.log import find_record, read_policy
from clipfleet.moderation.verdicts import RecordedVerdict, verdicts_of
from clipfleet.outputs import Output

_SIGNS = {"at_least": ">=", "below": "<"}


@dataclass(frozen=True, slots=True)
class Explained:
    """A decision with all that explains it."""

    record: Mapping[str, Any]
    policy: Policy
    verdicts: Sequence[RecordedVerdict]

    def document(self) -> dict[str, Any]:
        """All of it as an object of JSON types; the policy is the whole one."""
        return {
            **self.record,
            "policy": {"sha256": self.policy.sha256, **self.policy.model_dump(mode="json")},
            "verdicts": [one.model_dump(mode="json", exclude={"decision_id"}) for one in self.verdicts],
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        record, policy = self.record, self.policy
        yield f"{record['status']}  {record['item_id']}  ({record['uri']})"
        yield f"decided {record['at']} by policy {_named(policy)}, in job {record['job_id']}"
        if record["model_fingerprint"] is not None:
            yield f"model {record['model']}, fingerprint {record['model_fingerprint']}"
        if record["content_hash"] is not None:
            yield f"image sha256 {record['content_hash']}"
        if record["error"] is not None:
            yield f"it could not be judged: {record['error']['code']}: {record['error']['detail']}"
        for reason in record["reasons"]:
            yield from self._reason(reason)
        if record["error"] is None:
            yield from self._others()
        for verdict in self.verdicts:
            yield _verdict_line(verdict)

    def _reason(self, reason: Mapping[str, Any]) -> Iterator[str]:
        what = (
            f"{reason['label_set']}/{reason['label']}" if reason["head"] is None else f"head {reason['head']}"
        )
        if reason["head"] is not None and reason["label"] is not None:
            what += f"/{reason['label']}"
        score = "no score" if reason["score"] is None else f"{reason['score']:.6g}"
        is_compared = None not in (reason["score"], reason["threshold"])
        bound = f" {_SIGNS[reason['test']]} {reason['threshold']:g}" if is_compared else ""
        verb = "has" if reason["score"] is None else "is"
        yield f"  {reason['rule']}: {reason['action']}, because {what} {verb} {score}{bound}"
        yield f"    threshold: {reason['threshold_source']}"
        label_set = next((one for one in self.policy.label_sets if one.name == reason["label_set"]), None)
        if label_set is not None:
            yield from (f"    {line}" for line in _texts(label_set, reason["label"]))

    def _others(self) -> Iterator[str]:
        """The rules that did not count, with the scores that they looked at."""
        counted = {one["rule"] for one in self.record["reasons"]}
        for rule in checked(self.policy).rules:
            if rule.name not in counted:
                seen = " and ".join(
                    f"{one.said} (is {self._score(one.condition)})" for one in rule.conditions
                )
                yield f"  {rule.name} did not count: {rule.action} if {seen}"
        if not counted:
            yield f"  no rule counted: otherwise {self.policy.otherwise}"

    def _score(self, condition: Condition) -> str:
        if condition.label_set is not None:
            score = self.record["scores"].get(condition.label_set, {}).get(condition.label)
        else:
            found = self.record["heads"].get(condition.head)
            score = found.get(condition.label) if isinstance(found, dict) else found
        return "unknown" if score is None else f"{score:.6g}"


def explain(output: Output, text: str) -> Explained:
    """Explain a decision.

    Args:
        output: that holds the log of the decision.
        text: the id of the decision.

    Raises:
        UsageError: it is no such id, or not in this log.
        OutputDamagedError: the record or its policy were changed, or the policy is gone.
    """
    try:
        decision_id = DecisionId.of_text(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    record = find_record(output, decision_id)
    if record is None:
        raise UsageError(f"{output.uri} has no decision {text}: it is recorded elsewhere, or kept no more")
    policy = read_policy(output, record["policy"]["sha256"])
    if policy is None:
        raise OutputDamagedError(f"{output.uri}: the policy {record['policy']['sha256']} of {text} is gone")
    if not _follows(record, policy):
        raise OutputDamagedError(
            f"{output.uri}: the record of {text} was changed: its status does not follow from its reasons"
        )
    return Explained(record, policy, verdicts_of(output, decision_id))


def _follows(record: Mapping[str, Any], policy: Policy) -> bool:
    """Whether the status is that of the most severe reason."""
    actions = {reason["action"] for reason in record["reasons"]}
    if record["error"] is not None or DecisionStatus.UNDECIDED in actions:
        return bool(record["status"] == DecisionStatus.UNDECIDED)
    return bool(record["status"] == next((one for one in Action if one in actions), policy.otherwise))


def _named(policy: Policy) -> str:
    version = f" {policy.version}" if policy.version else ""
    return f"{policy.name}{version} (sha256 {policy.sha256})"


def _texts(label_set: LabelSet, label: str) -> Iterator[str]:
    """The texts that a score depends on."""
    yield "prompts: " + ", ".join(template.replace("{}", label) for template in label_set.templates)
    against = (*label_set.background, *label_set.not_prompts.get(label, ()))
    yield f"against: {', '.join(against)}"


def _verdict_line(one: RecordedVerdict) -> str:
    kind = "on appeal " if one.is_appeal else ""
    by = f" by {one.by}" if one.by else ""
    labels = ", ".join(f"{name}={mark}" for name, mark in one.marks.items())
    said = f"{one.at:%Y-%m-%dT%H:%M:%SZ}  {kind}{one.verdict}{by}"
    return "  ".join(filter(None, [said, labels, one.note]))
