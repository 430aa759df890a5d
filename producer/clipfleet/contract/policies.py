"""Moderation policies: rules over labels and heads, and the decisions they lead to. Frozen data, no I/O."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from clipfleet.contract.heads import HeadKind, JobHead
from clipfleet.contract.label_sets import FrozenModel, LabelSet, Number

if TYPE_CHECKING:
    from clipfleet.contract.jobs import Job

MAX_RULES = 1_000
MAX_CONDITIONS = 2_000  # of all rules: each that holds is a reason in the row
MAX_POLICY_LABELS = 1_000  # of one set: each row keeps the scores of all
MAX_KEEP_DAYS = 36_500  # as good as for ever
POLICY_NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,39}$"
DECISION_ID_PATTERN = r"^dec-\d{8}-[0-9a-f]{12}-\d{1,9}-\d{1,18}$"
_DIGEST_DIGITS = 12

_Text = Annotated[str, Field(max_length=200)]


class Action(StrEnum):
    """What a rule leads to, the most severe first."""

    FLAG = "flag"
    REVIEW = "review"
    ALLOW = "allow"


class DecisionStatus(StrEnum):
    """The decision on one item. `undecided`: it could not be judged, which is never `allow`."""

    FLAG = "flag"
    REVIEW = "review"
    ALLOW = "allow"
    UNDECIDED = "undecided"


class Condition(FrozenModel):
    """What must be true of one score.

    Without `at_least` and `below`, the score must reach the label's own threshold; a head of kind classify
    must have chosen the label.
    """

    label_set: str | None = None  # None: of a head
    head: str | None = None
    label: str | None = None  # None: a head of kind regress, which has one number
    at_least: Number | None = None
    below: Number | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.label_set is None) == (self.head is None):
            raise ValueError("a condition is about a label set or a head: give one of them")
        if self.label_set is not None and self.label is None:
            raise ValueError("a condition on a label set names a label")
        if self.at_least is not None and self.below is not None:
            raise ValueError("give at_least or below: a range is two conditions, which must both hold")
        return self

    @property
    def said(self) -> str:
        """Names it in messages: `violence/weapon >= 0.3`, `head taste < 4`."""
        what = f"{self.label_set}/{self.label}" if self.head is None else f"head {self.head}"
        if self.head is not None and self.label is not None:
            what += f"/{self.label}"
        if self.below is not None:
            return f"{what} < {self.below:g}"
        return what if self.at_least is None else f"{what} >= {self.at_least:g}"


class Rule(FrozenModel):
    """An action for the items of which all conditions hold."""

    name: _Text | None = None
    when: Annotated[tuple[Condition, ...], Field(min_length=1, max_length=100)]
    action: Action


class JobPolicy(FrozenModel):
    """A policy as a job carries it, beside its label sets, heads and model."""

    name: Annotated[str, Field(pattern=POLICY_NAME_PATTERN)]
    version: _Text = ""  # for people
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # of the whole policy, see `Policy.sha256`
    rules: tuple[Rule, ...]
    otherwise: Action = Action.ALLOW  # where no rule counts
    is_dry: bool = False  # its decisions are in the rows only: neither recorded nor announced

    def rule_name(self, position: int) -> str:
        """The name of a rule, or `rule 3`."""
        return rule_name(self.rules, position)


class Policy(FrozenModel):
    """Everything that decides, and what is needed to explain it. Immutable: `sha256` names it.

    The rules are read from top to bottom. Each that holds counts; one with `allow` that holds ends the
    reading. The most severe action that counts decides; `otherwise`, if none does.
    """

    name: Annotated[str, Field(pattern=POLICY_NAME_PATTERN)]
    version: _Text = ""
    model: str  # as in a job
    decode: Annotated[str, Field(pattern=r"^(fast|exact)$")] = "fast"
    exif: Annotated[str, Field(pattern=r"^(ignore|apply)$")] = "ignore"
    label_sets: tuple[LabelSet, ...] = ()
    heads: tuple[JobHead, ...] = ()
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=MAX_RULES)]
    otherwise: Action = Action.ALLOW

    @model_validator(mode="after")
    def _check(self) -> Self:
        for label_set in self.label_sets:
            if not label_set.has_thresholds:
                raise ValueError(
                    f"label set {label_set.name!r} uses a softmax, which always chooses a label: "
                    "add `kind: multi` or `none: true`"
                )
            if label_set.preset is not None:
                raise ValueError(f"label set {label_set.name!r}: a policy names its labels, not a preset")
            if len(label_set.labels) > MAX_POLICY_LABELS:
                raise ValueError(f"label set {label_set.name!r} has more than {MAX_POLICY_LABELS} labels")
        conditions = sum(len(rule.when) for rule in self.rules)
        if conditions > MAX_CONDITIONS:
            raise ValueError(
                f"its rules have {conditions:,} conditions, more than {MAX_CONDITIONS:,}: merge some"
            )
        for problem in rule_problems(self.rules, self.label_sets, self.heads):
            raise ValueError(problem)
        names = [rule_name(self.rules, position) for position in range(len(self.rules))]
        twice = [name for name in names if names.count(name) > 1]
        if twice:  # reasons and verdicts name rules
            raise ValueError(f"two rules are named {twice[0]!r}: rename one of them")
        return self

    @classmethod
    def of_job(cls, job: Job) -> Self | None:
        """The policy of a moderation job; None if it is another job."""
        if job.policy is None:
            return None
        return cls(
            name=job.policy.name, version=job.policy.version, model=job.model, decode=job.decode.value,
            exif=job.exif.value, label_sets=job.label_sets, heads=job.heads, rules=job.policy.rules,
            otherwise=job.policy.otherwise,
        )  # fmt: skip

    @property
    def sha256(self) -> str:
        """Hash of its canonical JSON, equal on every machine. Heads count by their file."""
        values = self.model_dump(mode="json", exclude={"heads"})
        values["heads"] = [[head.name, head.sha256] for head in self.heads]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def of_a_job(self, *, is_dry: bool = False) -> JobPolicy:
        """What a job carries of it."""
        return JobPolicy(
            name=self.name, version=self.version, sha256=self.sha256, rules=self.rules,
            otherwise=self.otherwise, is_dry=is_dry,
        )  # fmt: skip

    @property
    def most_labels(self) -> int:
        """Labels of its largest set: so many scores are in each row."""
        return max((len(one.labels) for one in self.label_sets), default=1)


def rule_name(rules: Sequence[Rule], position: int) -> str:
    """The name of a rule, or `rule 3`."""
    return rules[position].name or f"rule {position + 1}"


class DecisionLog(FrozenModel):
    """Where the records of decisions go: an output, to which they are only ever added."""

    uri: str  # absolute path of a folder, or s3://BUCKET/PREFIX
    keep_days: Annotated[int, Field(ge=1, le=MAX_KEEP_DAYS)] | None = None  # None: for ever
    owner: _Text | None = None  # name of the gateway's key that asked


def rule_problems(
    rules: Sequence[Rule], label_sets: Sequence[LabelSet], heads: Sequence[JobHead]
) -> Iterator[str]:
    """What is wrong with the names that rules use."""
    sets, by_name = {one.name: one for one in label_sets}, {one.name: one for one in heads}
    for number, rule in enumerate(rules, 1):
        where = f"rule {number}" + (f" ({rule.name})" if rule.name else "")
        for one in rule.when:
            if one.label_set is not None:
                problem = _label_problem(one, sets.get(one.label_set), sorted(sets))
            else:
                problem = _head_problem(one, by_name.get(one.head or ""), sorted(by_name))
            if problem:
                yield f"{where}: {problem}"


def _label_problem(one: Condition, label_set: LabelSet | None, known: Sequence[str]) -> str | None:
    if label_set is None:
        return f"there is no label set {one.label_set!r}; there is {', '.join(known) or 'none'}"
    if one.label not in label_set.labels:
        return f"label set {one.label_set!r} has no label {one.label!r}"
    for value in (one.at_least, one.below):
        if value is not None and not 0 <= value <= 1:
            return f"{one.said}: scores of labels are from 0 to 1"
    return None


def _head_problem(one: Condition, head: JobHead | None, known: Sequence[str]) -> str | None:
    if head is None:
        return f"there is no head {one.head!r}; there is {', '.join(known) or 'none'}"
    kind, labels = head.head.kind, head.head.labels
    if kind is not HeadKind.REGRESS and one.label is None:
        return f"head {one.head!r} is of kind {kind}: name one of its labels"
    if one.label is not None and one.label not in labels:
        return f"head {one.head!r} has no label {one.label!r}"
    has_own = kind is HeadKind.CLASSIFY or head.head.threshold(one.label or labels[0]) is not None
    if one.at_least is None and one.below is None and not has_own:
        return f"head {one.head!r} has no threshold of its own: give at_least or below"
    return None


@dataclass(frozen=True, slots=True)
class DecisionId:
    """Name of a decision, which says where its record lies. A repeated chunk has the same ones."""

    day: str  # yyyymmdd, of the creation of the job
    digest: str  # 12 hex digits, of the job
    generation: int
    item_index: int

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Parse the text. Raises `ValueError`."""
        if not re.fullmatch(DECISION_ID_PATTERN, text):
            raise ValueError(
                f"{text[:80]!r} is not the id of a decision, such as dec-20261203-3f9a1c2b7d4e-0-17"
            )
        _, day, digest, generation, item_index = text.split("-")
        return cls(day, digest, int(generation), int(item_index))

    def __str__(self) -> str:
        return f"dec-{self.day}-{self.digest}-{self.generation}-{self.item_index}"


def decision_day(created_at: datetime) -> str:
    """The day in the ids of the decisions of a job."""
    return f"{created_at:%Y%m%d}"


def job_digest(job_id: str, created_at: datetime) -> str:
    """The digest in the ids of the decisions of a job: another job of the same id has another one."""
    text = f"{job_id}\n{created_at.isoformat()}"
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_DIGITS]


def policy_facts(policy: JobPolicy) -> dict[str, Any]:
    """What a record of a decision says of its policy."""
    return {"name": policy.name, "version": policy.version, "sha256": policy.sha256}
