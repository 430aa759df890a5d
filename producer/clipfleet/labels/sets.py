"""Label sets from what users give: names, several sets of names, a preset, a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from clipfleet.contract.label_sets import (
    EMPTY_BACKGROUND,
    LABEL_SET_NAME_PATTERN,
    NONE_OF_MULTI,
    Certificate,
    LabelKind,
    LabelSet,
    Number,
    Preset,
    Probability,
    Promise,
    no_thresholds,
)
from clipfleet.errors import UsageError, first_problem
from clipfleet.labels.written_files import EXPLAINED, read_text_file, read_yaml_file

Labels = Sequence[str] | LabelSet | Sequence[LabelSet] | Mapping[str, Sequence[str] | LabelSet]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Prompts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class LabelSpec(BaseModel):
    """A label as users write it: a name, or a name with what only this label has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(strip_whitespace=True)]  # as `--labels` and text files are read
    not_prompts: _Prompts = Field((), alias="not")
    threshold: Probability | None = None
    group: str | None = None
    intercept: Number | None = None
    promise: Promise | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping | LabelSpec) else {"name": value}


class LabelSetSpec(BaseModel):
    """A label set as users write it: labels, a file with one per line, or a preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: LabelKind = LabelKind.SINGLE
    none: bool = False
    labels: tuple[LabelSpec, ...] = ()
    file: Path | None = None
    templates: _Prompts = ()
    preset: Preset | None = None
    background: _Prompts | None = None  # None: the default prompts
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    certificates: tuple[Certificate, ...] = ()

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
        given = ["labels" in self.model_fields_set, self.file is not None, self.preset is not None]
        if given.count(True) != 1:
            raise ValueError("give one of labels, file and preset")
        for place, problem in self._misplaced():
            raise _at(place, problem)
        if self.file is None:
            try:
                self.made("x")
            except ValidationError as error:
                raise ValueError(_problem(error)) from None
            except ValueError as error:
                raise _at(("labels",), str(error)) from None
        return self

    def _misplaced(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Problems of one key or label, with the place: what `LabelSet` says, it says of the whole set."""
        if self.labels == () and "labels" in self.model_fields_set:
            yield ("labels",), "the list is empty: name at least two, or one and `none: true`"
        seen: set[str] = set()
        for position, label in enumerate(self.labels):
            if label.name in seen:
                yield ("labels", position), f"label {label.name!r} appears twice"
            seen.add(label.name)
        if self.none or self.kind is LabelKind.MULTI:
            if self.none and self.kind is LabelKind.MULTI:
                yield ("none",), NONE_OF_MULTI
            if "background" in self.model_fields_set and not self.background:
                yield ("background",), EMPTY_BACKGROUND
            return
        for position, label in enumerate(self.labels):
            for key in sorted(label.model_fields_set.intersection(_BY_LABEL.values()) - {"group"}):
                word = key.removesuffix("_prompts")
                yield ("labels", position, word), no_thresholds(word)
        for key in ("background", "slope", "certificates"):
            if key in self.model_fields_set:
                yield (key,), no_thresholds(key)

    def made(self, name: str, folder: Path = Path()) -> LabelSet:
        """Build the label set; a relative `file` is resolved against the folder.

        Raises:
            UsageError: the file cannot be read.
            ValidationError: the labels or templates are invalid.
            ValueError: there is nothing to choose, see `is_without_choice`.
        """
        labels = tuple(label.name for label in self.labels)
        if self.file is not None:
            labels = tuple(read_label_lines(folder / self.file))
        values: dict[str, Any] = {} if self.background is None else {"background": self.background}
        made = LabelSet(
            name=name,
            labels=labels,
            templates=self.templates,
            preset=self.preset,
            kind=self.kind,
            none=self.none,
            slope=self.slope,
            certificates=self.certificates,
            **{field: self._by_label(key) for field, key in _BY_LABEL.items()},
            **values,
        )
        if is_without_choice(made):
            raise ValueError(
                f"{labels[0]!r} is the only label, so every image would get it with score 1.000: add "
                "`none: true` to ask whether an image shows it, or add labels"
            )
        return made

    def _by_label(self, key: str) -> dict[str, Any]:
        values = {label.name: getattr(label, key) for label in self.labels}
        return {name: value for name, value in values.items() if value not in (None, ())}


# Fields of a `LabelSet` that are keyed by label, with the names that they have in a `LabelSpec`.
_BY_LABEL = {
    "not_prompts": "not_prompts", "thresholds": "threshold", "groups": "group", "intercepts": "intercept",
    "promises": "promise",
}  # fmt: skip


class _LabelSetFile(LabelSetSpec):
    name: str | None = None


def require_no_labels_needed(
    options: Mapping[str, object], labels: str, *, has_heads: bool, otherwise: str
) -> None:
    """Check that a job may do without labels: it has heads, and nothing that is for labels.

    Args:
        options: that are for labels, by the name that a user knows.
        labels: how labels are given.
        has_heads: whether the job has heads.
        otherwise: what to give, in words.

    Raises:
        UsageError: it needs labels.
    """
    if not has_heads:
        raise UsageError(f"no labels: give {otherwise}")
    for option, value in options.items():
        if value:
            raise UsageError(f"{option} is for labels: give {labels}, too")


def label_sets_of(
    labels: Labels, templates: Sequence[str] = (), *, multi: bool = False, none: bool = False
) -> tuple[LabelSet, ...]:
    """Convert labels given by a program to label sets.

    Args:
        labels: names; one or several label sets; or a mapping of set names to names. The name of a preset
            stands for a label set that ships with open_clip.
        templates: for the sets that are given as names; empty: the default.
        multi: whether the sets that are given as names, or the preset, are of kind multi.
        none: likewise, whether an image may have no label.

    Raises:
        UsageError: they are invalid; the message says why.
    """
    rules = {"kind": LabelKind.MULTI if multi else LabelKind.SINGLE, "none": none}
    if isinstance(labels, Mapping) and not labels:
        raise UsageError("there are no label sets")
    if isinstance(labels, Mapping):
        made = tuple(_named(name, value, templates, rules) for name, value in labels.items())
    elif isinstance(labels, str) and labels in list(Preset):
        made = (_made(name=_name_of(labels), preset=Preset(labels), **rules),)
        _refuse_own(templates=templates)
    elif (ready := _ready_made(labels)) is None:
        made = (_made(labels=tuple(labels), templates=tuple(templates), **rules),)
    else:
        made = ready
        _refuse_own(templates=templates, multi=multi, none=none)
    for label_set in filter(is_without_choice, made):
        where = f"label set {label_set.name!r}: " if len(made) > 1 else ""
        raise UsageError(
            f"{where}{label_set.labels[0]!r} is the only label, so every image would get it with score "
            "1.000: ask with `none=` whether an image shows it, or add labels"
        )
    return made


def _refuse_own(**given: object) -> None:
    """Raise `UsageError` for an option that sets which are not given as names have of their own."""
    for name, value in given.items():
        if value:
            raise UsageError(f"`{name}=` is for labels given as names: a label set has its own")


def is_without_choice(label_set: LabelSet) -> bool:
    """Whether a set is a softmax over one label, which every image gets: new jobs must not have it."""
    return not label_set.has_thresholds and len(label_set.labels) == 1


def _ready_made(labels: Sequence[str] | LabelSet | Sequence[LabelSet]) -> tuple[LabelSet, ...] | None:
    """The label sets that the caller built; None if the labels are names."""
    if isinstance(labels, str):
        raise UsageError(f"labels: {labels!r} is a single string: give a list of labels")
    if isinstance(labels, LabelSet):
        return (labels,)
    made = tuple(one for one in labels if isinstance(one, LabelSet))
    return made if made and len(made) == len(labels) else None


def _named(
    name: str, value: Sequence[str] | LabelSet, templates: Sequence[str], rules: Mapping[str, Any]
) -> LabelSet:
    if isinstance(value, LabelSet):
        _refuse_own(multi=rules["kind"] is LabelKind.MULTI, none=rules["none"])
        return value.model_copy(update={"name": _made(name=name, labels=("x",)).name})
    if isinstance(value, str):
        raise UsageError(f"label set {name!r}: {value!r} is a single string: give a list of labels")
    return _made(name=name, labels=tuple(value), templates=tuple(templates), **rules)


def _made(**values: Any) -> LabelSet:
    try:
        return LabelSet(**values)
    except ValidationError as error:
        whose = f" {values['name']!r}" if values.get("name") else ""
        raise UsageError(f"label set{whose}: {_problem(error)}") from None


def _at(place: tuple[str | int, ...], problem: str) -> ValidationError:
    """An error of a part of the value that is validated, so that a reader of files finds its line."""
    explained = PydanticCustomError(EXPLAINED, "{problem}", {"problem": problem})
    details = InitErrorDetails(type=explained, loc=place, input=None)
    return ValidationError.from_exception_data("label set", [details])


def _problem(error: ValidationError) -> str:
    if error.errors()[0]["loc"] == ("name",):
        return "its name must begin with a letter, and have at most 40 letters, digits and underscores"
    return first_problem(error)


def read_label_set(text: str) -> LabelSet:
    """Read a preset by name, or a `.yaml`, `.yml` or `.json` file.

    The file has a list of labels, or the keys `labels` (or `file`, or `preset`), `templates` and `name`. The
    default name is that of the file.

    Raises:
        UsageError: neither, or the file is invalid.
    """
    if text in list(Preset):
        return LabelSet(name=_name_of(text), preset=Preset(text))
    path = Path(text)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise UsageError(
            f"label set {text}: neither {', '.join(Preset)} nor a .yaml or .json file with labels"
        )
    spec = read_yaml_file(path, _LabelSetFile)
    name = spec.name or _name_of(path.stem)
    if not re.fullmatch(LABEL_SET_NAME_PATTERN, name):
        raise UsageError(
            f"{path}: {name!r} cannot name a label set: add `name:`, a letter and then at most 39 "
            "letters, digits and underscores"
        )
    try:
        return spec.made(name, path.parent)
    except ValidationError as error:
        raise UsageError(f"{path}: {_problem(error)}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def _name_of(text: str) -> str:
    """The name of a set that is called so elsewhere."""
    return re.sub(r"\W", "_", text, flags=re.ASCII)


def label_set_yaml(label_set: LabelSet) -> str:
    """Write a label set as `read_label_set` reads it, with everything that it holds."""
    plain = label_set.model_dump(mode="json", exclude={"labels", *_BY_LABEL})
    by_label = {
        key: label_set.model_dump(mode="json", include={field}).get(field, {})
        for field, key in _BY_LABEL.items()
    }
    labels: list[Any] = []
    for label in label_set.labels:
        own = {
            key.replace("not_prompts", "not"): values[label]
            for key, values in by_label.items()
            if label in values
        }
        labels.append({"name": label, **own} if own else label)
    found = {name: value for name, value in plain.items() if value not in (None, [])}
    if labels:
        found["labels"] = labels
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=100)


def read_label_lines(path: Path) -> list[str]:
    """Read labels from a text file, one per line, without blank lines and surrounding blanks.

    Raises:
        UsageError: the file cannot be read.
    """
    return [line.strip() for line in read_text_file(path).splitlines() if line.strip()]
