"""Label sets: labels, their prompts, and how a score becomes a decision."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

DEFAULT_TEMPLATE = "a photo of a {}"
DEFAULT_LABEL_SET_NAME = "labels"
# Prompts that fit any image: a label must beat them.
DEFAULT_BACKGROUND = ("a photo", "a drawing", "text", "an object", "a scene")
DEFAULT_THRESHOLD = 0.5
# A sigmoid is below 1, also as float32: a threshold of 1 accepts nothing.
LARGEST_SCORE = 1 - 2.0**-24
LABEL_SET_NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,39}$"


class Preset(StrEnum):
    """Label sets that ship with open_clip."""

    IMAGENET1K = "imagenet1k"  # 1,000 class names in 80 templates
    IMAGENET1K_SIMPLE = "imagenet1k-simple"  # the same names in the 7 templates that do nearly as well


class LabelKind(StrEnum):
    """How many labels of a set one image may have: at most one, or any number."""

    SINGLE = "single"
    MULTI = "multi"


class FrozenModel(BaseModel):
    """A frozen model that refuses unknown keys, and text that is not UTF-8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        """A job is sent as JSON, which cannot contain lone surrogates, as in undecodable file names."""
        for text in _texts(value):
            if _SURROGATES.search(text):
                raise ValueError(f"{text!r} is not UTF-8")
        return value


_SURROGATES = re.compile(r"[\ud800-\udfff]")


def _texts(value: object) -> Iterator[str]:
    """All strings in a value of tuples and dicts, with the keys; nested models check their own."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts((*value, *value.values()))
    elif isinstance(value, tuple):
        for part in value:
            yield from _texts(part)


Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]  # of a model, see `short_hash`


class Claim(StrEnum):
    """What a threshold promises, see `Promise`."""

    PRECISION = "precision"
    MISS = "miss"


class Promise(FrozenModel):
    """What the threshold of a label was chosen for.

    `precision`: at least this share of the rows at or above it show the label. `miss`: at most this share of
    the rows below it do.
    """

    claim: Claim
    value: Annotated[float, Field(gt=0, lt=1)]


class Look(FrozenModel):
    """One test of a threshold with all certify marks so far; look j of at most four spends delta / 2^j."""

    marks: Annotated[int, Field(ge=1)]
    wrong: Annotated[int, Field(ge=0)]


class Verdict(StrEnum):
    """Result of the tests of a threshold."""

    CERTIFIED = "certified"
    NOT_YET = "not yet"
    FAILED = "failed"


class Certificate(FrozenModel):
    """What certify marks say about the threshold of one label on one output."""

    label: str
    threshold: Probability
    promise: Promise
    confidence: Annotated[float, Field(gt=0, lt=1)]
    labels_jointly: Annotated[int, Field(ge=1)] = 1  # that share delta; 1: this label separately
    looks: tuple[Look, ...]  # in order; the last one has the marks that count
    verdict: Verdict
    output: str  # URI of the output
    job_id: str
    model_fingerprint: str
    label_set_hash: str  # of the set with this threshold
    population: str = ""  # hash of the rows that the promise is about; another one: their output has changed
    at: datetime


# Fields that came with schema version 3, with what there was before.
_SINCE_VERSION_3: Mapping[str, Any] = {
    "kind": LabelKind.SINGLE, "none": False, "background": (), "not_prompts": {}, "thresholds": {},
    "groups": {}, "slope": None, "intercepts": {}, "promises": {}, "certificates": (),
}  # fmt: skip


class LabelSet(FrozenModel):
    """Labels, the prompt templates that are averaged for each (open_clip's ensembling), and their thresholds.

    A preset stands for labels and templates that ship with open_clip, which only workers install.

    A set with `none` or of kind `multi` never uses the softmax, see `has_thresholds`. With s the logits of an
    image, the score of label l is `p = sigmoid(slope * z + intercept)`, where z is its logit less those of
    the background: `z = s_l - logsumexp(s_b for b in background and not_prompts[l])`. It is accepted where
    `p >= thresholds[l]`. Without a calibration the slope is 1 and the intercept 0.
    """

    name: Annotated[str, Field(pattern=LABEL_SET_NAME_PATTERN)] = DEFAULT_LABEL_SET_NAME
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    preset: Preset | None = None
    kind: LabelKind = LabelKind.SINGLE
    none: bool = False  # of a single set: an image may have no label
    background: tuple[str, ...] = ()  # prompts, used as they are
    not_prompts: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # by label: more background
    thresholds: dict[str, Probability] = Field(default_factory=dict)  # by label; others: 0.5
    groups: dict[str, str] = Field(default_factory=dict)  # by label: a name for labels that belong together
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # None: not calibrated
    intercepts: dict[str, Number] = Field(default_factory=dict)  # by label, of a calibrated set
    promises: dict[str, Promise] = Field(default_factory=dict)  # by label: what its threshold is for
    certificates: tuple[Certificate, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        if not values.get("preset") and not values.get("templates"):
            filled["templates"] = (DEFAULT_TEMPLATE,)
        if (values.get("none") or values.get("kind") == LabelKind.MULTI) and "background" not in values:
            filled["background"] = DEFAULT_BACKGROUND
        return filled

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.preset is not None and (self.labels or self.templates):
            raise ValueError(f"preset {self.preset} has its own labels and templates")
        if self.preset is None and not self.labels:
            raise ValueError("there are no labels")
        blank = [position for position, label in enumerate(self.labels) if not label.strip()]
        if blank:
            raise ValueError(f"label number {blank[0] + 1} is empty")
        seen: set[str] = set()
        for label in self.labels:
            if label in seen:
                raise ValueError(f"label {label!r} appears twice")
            seen.add(label)
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"template {template!r} must contain {{}} exactly once, in place of the label"
                )
        self._check_decisions()
        self._check_by_label()
        return self

    def _check_decisions(self) -> None:
        if self.none and self.kind is LabelKind.MULTI:
            raise ValueError(NONE_OF_MULTI)
        if self.has_thresholds and not any(prompt.strip() for prompt in self.background):
            raise ValueError(EMPTY_BACKGROUND)
        if any(not prompt.strip() for prompt in self.background):
            raise ValueError("a background prompt is empty")
        given = {**self._by_label(), "background": self.background, "certificates": self.certificates}
        for what, values in given.items():
            if values and not self.has_thresholds:
                raise ValueError(no_thresholds(what))
        if (self.slope is not None) != bool(self.intercepts):
            raise ValueError("a calibrated set has a slope and an intercept for each label")
        if self.slope is not None and (missing := set(self.labels).difference(self.intercepts)):
            raise ValueError(f"a slope needs an intercept for each label: {min(missing)!r} has none")

    def _check_by_label(self) -> None:
        known = set(self.labels)
        for what, values in {**self._by_label(), "group": self.groups}.items():
            if values and self.preset is not None:
                raise ValueError(f"preset {self.preset} takes no `{what}` by label: give a set with `labels`")
            unknown = [label for label in values if label not in known]
            if unknown:
                raise ValueError(f"{what}: there is no label {unknown[0]!r}")
        for label, prompts in self.not_prompts.items():
            if any(not prompt.strip() for prompt in prompts):
                raise ValueError(f"a `not` prompt of {label!r} is empty")

    def _by_label(self) -> dict[str, Mapping[str, Any]]:
        """What only sets with thresholds have by label, by the name that users write."""
        return {
            "not": self.not_prompts, "threshold": self.thresholds, "intercept": self.intercepts,
            "promise": self.promises,
        }  # fmt: skip

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the fields of version 3 at their defaults: older workers refuse unknown keys."""
        found: dict[str, Any] = handler(self)
        given = self._given_since_version_3()
        return {name: value for name, value in found.items() if name in given or name not in _SINCE_VERSION_3}

    def _given_since_version_3(self) -> set[str]:
        return {name for name, default in _SINCE_VERSION_3.items() if getattr(self, name) != default}

    @property
    def has_thresholds(self) -> bool:
        """Whether labels are accepted by their thresholds, rather than the best one by a softmax."""
        return self.none or self.kind is LabelKind.MULTI

    @property
    def needs_version_3(self) -> bool:
        """Whether older workers cannot read it: it has a key or a preset that came with schema version 3."""
        return self.preset not in (None, Preset.IMAGENET1K) or bool(self._given_since_version_3())

    def threshold(self, label: str) -> float:
        """The threshold of a label, a probability."""
        return self.thresholds.get(label, DEFAULT_THRESHOLD)

    @property
    def hash(self) -> str:
        """Short hash of all that rows depend on, equal on every machine; the name is not part of it."""
        if not self.has_thresholds:
            return self.prompts_hash
        values = self.model_dump(mode="json", exclude={"name", "groups", "promises", "certificates"})
        return short_hash(values)

    @property
    def prompts_hash(self) -> str:
        """Short hash of what the text matrix depends on."""
        return short_hash([list(self.labels), list(self.templates), self.preset])


NONE_OF_MULTI = "`none` is for sets of kind single: in a multi set any image may have no label; leave it out"
EMPTY_BACKGROUND = "the background is empty: leave `background` out to get the default prompts"


def no_thresholds(what: str) -> str:
    """The problem of a value that only sets with thresholds have, in a set without."""
    return (
        f"`{what}` has no meaning for a softmax, which always chooses a label: "
        "add `none: true` or `kind: multi`"
    )


def short_hash(value: object) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
