"""What a user may give as labels, made into label sets: names, several sets of names, a preset, a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from clipfleet.contract.label_sets import LABEL_SET_NAME_PATTERN, LabelSet, Preset
from clipfleet.errors import UsageError, first_problem
from clipfleet.labels.written_files import read_text_file, read_yaml_file

Labels = Sequence[str] | LabelSet | Sequence[LabelSet] | Mapping[str, Sequence[str] | LabelSet]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class LabelSetSpec(BaseModel):
    """A label set as users write it: labels, a file with one per line, or a preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = ()
    file: Path | None = None
    templates: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    preset: Preset | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_names(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {"labels": value}
        if not isinstance(value, Mapping | LabelSetSpec):
            raise ValueError("give a list of labels, or the keys labels (or file, or preset) and templates")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [bool(self.labels), self.file is not None, self.preset is not None].count(True) != 1:
            raise ValueError("give one of labels, file and preset")
        if self.file is None:
            try:
                self.made("x")
            except ValidationError as error:
                raise ValueError(_problem(error)) from None
        return self

    def made(self, name: str, folder: Path = Path()) -> LabelSet:
        """The label set; a relative `file` counts from the folder.

        Raises:
            UsageError: the file cannot be read.
            ValueError: the labels or templates cannot be used.
        """
        labels = self.labels if self.file is None else tuple(read_label_lines(folder / self.file))
        return LabelSet(name=name, labels=labels, templates=self.templates, preset=self.preset)


class _LabelSetFile(LabelSetSpec):
    name: str | None = None


def label_sets_of(labels: Labels, templates: Sequence[str] = ()) -> tuple[LabelSet, ...]:
    """Label sets from whatever a program gives.

    Args:
        labels: names; one label set or several; or names by the name of their set. The text `imagenet1k`
            stands for the label set that open_clip brings.
        templates: of the sets that are given as names; none: the default.

    Raises:
        UsageError: they cannot be used; the message says why.
    """
    if isinstance(labels, Mapping):
        if not labels:
            raise UsageError("there are no label sets")
        return tuple(_named(name, value, templates) for name, value in labels.items())
    ready = _ready_made(labels)
    if ready is None:
        return (_made(labels=tuple(labels), templates=tuple(templates)),)
    if templates:
        raise UsageError("templates go with names of labels: a label set has its own")
    return ready


def _ready_made(labels: Sequence[str] | LabelSet | Sequence[LabelSet]) -> tuple[LabelSet, ...] | None:
    """The label sets, where the caller has made them; None where there are names only."""
    if isinstance(labels, str):
        if labels not in list(Preset):
            raise UsageError(f"labels: {labels!r} is a single string: give a list of labels")
        return (LabelSet(name=labels, preset=Preset(labels)),)
    if isinstance(labels, LabelSet):
        return (labels,)
    made = tuple(one for one in labels if isinstance(one, LabelSet))
    return made if made and len(made) == len(labels) else None


def _named(name: str, value: Sequence[str] | LabelSet, templates: Sequence[str]) -> LabelSet:
    if isinstance(value, LabelSet):
        return value.model_copy(update={"name": _made(name=name, labels=("x",)).name})
    if isinstance(value, str):
        raise UsageError(f"label set {name!r}: {value!r} is a single string: give a list of labels")
    return _made(name=name, labels=tuple(value), templates=tuple(templates))


def _made(**values: Any) -> LabelSet:
    try:
        return LabelSet(**values)
    except ValidationError as error:
        whose = f" {values['name']!r}" if values.get("name") else ""
        raise UsageError(f"label set{whose}: {_problem(error)}") from None


def _problem(error: ValidationError) -> str:
    if error.errors()[0]["loc"] == ("name",):
        return "its name must begin with a letter, and have at most 40 letters, digits and underscores"
    return first_problem(error)


def read_label_set(text: str) -> LabelSet:
    """A preset by its name, or a `.yaml`, `.yml` or `.json` file with a list of labels or with the keys
    `labels` (or `file`, or `preset`), `templates` and `name`; without a name it is called like the file.

    Raises:
        UsageError: neither, or the file cannot be used.
    """
    if text in list(Preset):
        return LabelSet(name=text, preset=Preset(text))
    path = Path(text)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise UsageError(
            f"--label-set {text}: neither {', '.join(Preset)} nor a .yaml or .json file with labels"
        )
    spec = read_yaml_file(path, _LabelSetFile)
    name = spec.name or re.sub(r"\W", "_", path.stem, flags=re.ASCII)
    if not re.fullmatch(LABEL_SET_NAME_PATTERN, name):
        raise UsageError(
            f"{path}: {name!r} cannot name a label set: add `name:`, a letter and then at most 39 "
            "letters, digits and underscores"
        )
    try:
        return spec.made(name, path.parent)
    except ValidationError as error:
        raise UsageError(f"{path}: {_problem(error)}") from None


def read_label_lines(path: Path) -> list[str]:
    """Labels from a text file, one per line; blank lines and blanks around a label are left out.

    Raises:
        UsageError: the file cannot be read, or holds no label.
    """
    return [line.strip() for line in read_text_file(path).splitlines() if line.strip()]
