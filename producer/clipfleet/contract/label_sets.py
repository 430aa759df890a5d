"""Label sets: labels, the prompt templates around them, and the presets that open_clip ships."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DEFAULT_TEMPLATE = "a photo of a {}"
DEFAULT_LABEL_SET_NAME = "labels"
LABEL_SET_NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,39}$"


class Preset(StrEnum):
    """Label sets that ship with open_clip."""

    IMAGENET1K = "imagenet1k"  # 1,000 class names in 80 templates


class FrozenModel(BaseModel):
    """A frozen model that refuses unknown keys, and text that is not UTF-8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        """A job is sent as JSON, which cannot contain lone surrogates, as in undecodable file names."""
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"{text!r} is not UTF-8")
        return value


class LabelSet(FrozenModel):
    """Labels, and the prompt templates that are averaged for each (open_clip's ensembling).

    A preset stands for labels and templates that ship with open_clip, which only workers install.
    """

    name: Annotated[str, Field(pattern=LABEL_SET_NAME_PATTERN)] = DEFAULT_LABEL_SET_NAME
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    preset: Preset | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("preset") and not values.get("templates"):
            return {**values, "templates": (DEFAULT_TEMPLATE,)}
        return values

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
        return self

    @property
    def hash(self) -> str:
        """Short hash of the content, equal on every machine; the name is not part of it."""
        return short_hash([list(self.labels), list(self.templates), self.preset])


def short_hash(value: object) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
