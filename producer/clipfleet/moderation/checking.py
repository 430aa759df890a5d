"""What a policy does, how well its thresholds are proven, and what in it can never matter. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from clipfleet.contract.label_sets import Certificate
from clipfleet.contract.policies import Action, Condition, Policy, Rule
from clipfleet.moderation.evidence import Evidence, evidence_of, valid_certificates


@dataclass(frozen=True, slots=True)
class CheckedCondition:
    """A condition with what proves its threshold."""

    condition: Condition
    evidence: Evidence
    certificates: tuple[Certificate, ...]  # of its threshold, which hold for their models

    @property
    def said(self) -> str:
        """`violence/weapon >= 0.93`."""
        if self.evidence.threshold is None:
            return f"head {self.condition.head} chooses {self.condition.label}"
        bounds = {"below" if self.evidence.is_below else "at_least": self.evidence.threshold}
        bare = self.condition.model_copy(update={"at_least": None, "below": None, **bounds})
        return bare.said


@dataclass(frozen=True, slots=True)
class CheckedRule:
    """A rule with its conditions."""

    name: str  # or `rule 3`
    action: Action
    conditions: tuple[CheckedCondition, ...]

    @property
    def said(self) -> str:
        """`flag if violence/weapon >= 0.93 and head taste < 4`."""
        return f"{self.action} if {' and '.join(one.said for one in self.conditions)}"

    @property
    def is_certified(self) -> bool:
        """Whether the thresholds of all its conditions are certified, each for some model."""
        return all(one.certificates for one in self.conditions)


@dataclass(frozen=True, slots=True)
class CheckedPolicy:
    """A policy, explained."""

    policy: Policy
    rules: tuple[CheckedRule, ...]
    never_matter: tuple[str, ...]  # sentences about rules that change no decision
    unused: tuple[str, ...]  # labels and heads that no rule names, as `set/label` and `head NAME`

    @property
    def uncertified(self) -> tuple[CheckedRule, ...]:
        """Rules that flag or send to review by a threshold that nothing proves."""
        return tuple(one for one in self.rules if one.action is not Action.ALLOW and not one.is_certified)


def checked(policy: Policy) -> CheckedPolicy:
    """Explain a policy."""
    job_policy = policy.of_a_job()
    rules = tuple(
        CheckedRule(job_policy.rule_name(position), rule.action, tuple(_conditions(policy, rule)))
        for position, rule in enumerate(policy.rules)
    )
    return CheckedPolicy(policy, rules, tuple(_never_matter(rules)), tuple(_unused(policy)))


def _conditions(policy: Policy, rule: Rule) -> Iterator[CheckedCondition]:
    sets = {one.name: one for one in policy.label_sets}
    heads = {one.name: one for one in policy.heads}
    for condition in rule.when:
        evidence = evidence_of(condition, sets, heads)
        certificates: Sequence[Certificate] = ()
        if condition.label_set is not None and evidence.by_model:
            found = valid_certificates(sets[condition.label_set], condition.label or "")
            certificates = [one for one in found if one.model_fingerprint in evidence.by_model]
        yield CheckedCondition(condition, evidence, tuple(certificates))


def _unused(policy: Policy) -> Iterator[str]:
    named = {(one.label_set, one.label) for rule in policy.rules for one in rule.when}
    for label_set in policy.label_sets:
        for label in label_set.labels:
            if (label_set.name, label) not in named:
                yield f"{label_set.name}/{label}"
    heads = {one.head for rule in policy.rules for one in rule.when}
    yield from (f"head {one.name}" for one in policy.heads if one.name not in heads)


# --- Rules that never matter ---

_SEVERITY = {Action.FLAG: 2, Action.REVIEW: 1, Action.ALLOW: 0}


def _never_matter(rules: Sequence[CheckedRule]) -> Iterator[str]:
    for position, rule in enumerate(rules):
        if _contradicts(rule):
            yield f"{rule.name} never holds: its conditions contradict each other"
            continue
        reasons = (_made_idle(rules, position, number) for number in range(len(rules)) if number != position)
        yield from islice((reason for reason in reasons if reason is not None), 1)


def _made_idle(rules: Sequence[CheckedRule], position: int, number: int) -> str | None:
    """Why a rule changes no decision because of another one; None if that one is no reason."""
    rule, other, is_above = rules[position], rules[number], number < position
    if not _implies(rule, other) or (
        _implies(other, rule) and not is_above
    ):  # of two alike the first one counts
        return None
    if other.action is Action.ALLOW:
        return (
            f"{rule.name} is never read: wherever it holds, {other.name} above it allows"
            if is_above
            else None
        )
    is_as_severe = rule.action is not Action.ALLOW and _SEVERITY[other.action] >= _SEVERITY[rule.action]
    if is_as_severe and (is_above or not _ends_between(rules, position, number)):
        return f"{rule.name} changes no decision: wherever it holds, so does {other.name}"
    return None


def _ends_between(rules: Sequence[CheckedRule], first: int, last: int) -> bool:
    """Whether a rule that ends the reading stands between two."""
    return any(one.action is Action.ALLOW for one in rules[first + 1 : last])


def _implies(rule: CheckedRule, other: CheckedRule) -> bool:
    """Whether the other rule holds wherever this one does, as far as the bounds of the same scores tell."""
    return all(any(_entails(mine, theirs) for mine in rule.conditions) for theirs in other.conditions)


def _entails(one: CheckedCondition, other: CheckedCondition) -> bool:
    if _score(one) != _score(other):
        return False
    mine, theirs = one.evidence, other.evidence
    if mine.threshold is None or theirs.threshold is None:
        return mine.threshold is None and theirs.threshold is None
    if mine.is_below != theirs.is_below:
        return False
    return mine.threshold <= theirs.threshold if mine.is_below else mine.threshold >= theirs.threshold


def _contradicts(rule: CheckedRule) -> bool:
    chosen: dict[str | None, set[str | None]] = {}
    for one in rule.conditions:
        if one.evidence.threshold is None:
            chosen.setdefault(one.condition.head, set()).add(one.condition.label)
    if any(len(labels) > 1 for labels in chosen.values()):
        return True
    floors = [
        one for one in rule.conditions if one.evidence.threshold is not None and not one.evidence.is_below
    ]
    ceilings = [
        one for one in rule.conditions if one.evidence.threshold is not None and one.evidence.is_below
    ]
    return any(
        _score(low) == _score(high) and (low.evidence.threshold or 0) >= (high.evidence.threshold or 0)
        for low in floors
        for high in ceilings
    )


def _score(one: CheckedCondition) -> tuple[str | None, str | None, str | None]:
    return one.condition.label_set, one.condition.head, one.condition.label
