"""How well the threshold of a condition is proven, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipfleet.contract.heads import JobHead
from clipfleet.contract.label_sets import Certificate, Claim, LabelSet, Promise, Verdict
from clipfleet.contract.policies import Condition

IN_POLICY = "set in the policy"
DEFAULT = "default"
CHOSEN = "chosen by the head"
OF_HEAD = "threshold of the head"
MISSING = "there is no score"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The threshold that a condition compares a score with, and what is known of it."""

    threshold: float | None  # None: the head has chosen the label
    is_below: bool
    source: str  # if no certificate is of the model of the row
    by_model: Mapping[str, str]  # model fingerprint -> its certificate in words

    @property
    def test(self) -> str:
        """How the score is compared: `at_least`, `below`, or `chosen` by the head."""
        if self.threshold is None:
            return "chosen"
        return "below" if self.is_below else "at_least"

    def of_model(self, fingerprint: str | None) -> str:
        """What proves the threshold for rows of a model."""
        if fingerprint is not None and fingerprint in self.by_model:
            return self.by_model[fingerprint]
        return f"{self.source}; certified for another model" if self.by_model else self.source


def evidence_of(
    condition: Condition, label_sets: Mapping[str, LabelSet], heads: Mapping[str, JobHead]
) -> Evidence:
    """The evidence of a condition, whose names exist."""
    given = condition.below if condition.at_least is None else condition.at_least
    is_below = condition.below is not None
    if condition.head is not None:
        if given is not None:
            return Evidence(given, is_below, IN_POLICY, {})
        head = heads[condition.head].head
        threshold = head.threshold(condition.label or head.labels[0])
        source = CHOSEN if threshold is None else OF_HEAD
        return Evidence(threshold, is_below, source, {})
    label_set, label = label_sets[condition.label_set or ""], condition.label or ""
    own = label_set.threshold(label)
    if given is not None and given != own:
        return Evidence(given, is_below, IN_POLICY, {})
    by_model = {
        one.model_fingerprint: certificate_words(one)
        for one in valid_certificates(label_set, label)
        if is_below == (one.promise.claim is Claim.MISS)
    }
    return Evidence(own, is_below, _source(label_set, label), by_model)


def valid_certificates(label_set: LabelSet, label: str) -> list[Certificate]:
    """Certificates that a threshold of a label set, as it is now, has passed."""
    return [
        one
        for one in label_set.certificates
        if (one.label, one.threshold, one.verdict) == (label, label_set.threshold(label), Verdict.CERTIFIED)
        and one.label_set_hash == label_set.hash
    ]


def certificate_words(one: Certificate) -> str:
    """`certified precision >= 0.95 (n=93, k=1, 95 %)`: of n certify marks k were wrong."""
    last = one.looks[-1]
    jointly = f" for {one.labels_jointly} labels jointly" if one.labels_jointly > 1 else ""
    confidence = f"{100 * one.confidence:g} %{jointly}"
    return f"certified {promise_words(one.promise)} (n={last.marks}, k={last.wrong}, {confidence})"


def promise_words(promise: Promise) -> str:
    """`precision >= 0.95` or `miss <= 0.01`."""
    sign = ">=" if promise.claim is Claim.PRECISION else "<="
    return f"{promise.claim.value} {sign} {promise.value:g}"


def _source(label_set: LabelSet, label: str) -> str:
    if label not in label_set.thresholds:
        return DEFAULT
    promise = label_set.promises.get(label)
    return IN_POLICY if promise is None else f"for {promise_words(promise)}, not certified"
