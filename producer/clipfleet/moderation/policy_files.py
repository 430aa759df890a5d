"""Policies as users write them: a YAML or JSON file, which is read into a `Policy` and its heads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from clipfleet.contract.jobs import DEFAULT_MODEL, DecodeRoute, Exif
from clipfleet.contract.label_sets import LABEL_SET_NAME_PATTERN, LabelSet
from clipfleet.contract.model_names import normalise_model
from clipfleet.contract.policies import Action, Condition, Policy, Rule
from clipfleet.errors import UsageError, first_problem, usage_errors
from clipfleet.heads.choosing import read_heads, require_model
from clipfleet.heads.files import HeadFile
from clipfleet.labels.sets import LabelSetSpec, read_label_set
from clipfleet.labels.written_files import read_yaml_file
from clipfleet.submit.options import OF_THE_VECTORS, JobOptions

_LABEL_SET_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy with the files of its heads."""

    policy: Policy
    heads: tuple[HeadFile, ...] = ()

    def described(self, options: JobOptions) -> JobOptions:
        """Options of a job that decides by it.

        Raises:
            UsageError: they say something else about the model.
        """
        policy = self.policy
        own = {
            "model": policy.model,
            "decode": DecodeRoute(policy.decode),
            "exif": Exif(policy.exif),
        }
        for name in OF_THE_VECTORS:
            given = getattr(options, name)
            if name in own and given not in (own[name], _default(name)):
                raise UsageError(
                    f"`{name}=` {given}: policy {policy.name!r} is for {own[name]}: "
                    "leave the option out, or change the policy"
                )
        return options.model_copy(update=own)


def _default(name: str) -> Any:
    return JobOptions.model_fields[name].default


def _listed(value: object) -> object:
    return [value] if isinstance(value, str | dict) else value


class _RuleSpec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    when: Annotated[tuple[dict[str, Any], ...], BeforeValidator(_listed)]
    action: Action


class PolicySpec(BaseModel):
    """A policy as users write it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str = ""
    model: str = DEFAULT_MODEL
    decode: DecodeRoute = DecodeRoute.FAST
    exif: Exif = Exif.IGNORE
    label_sets: dict[Annotated[str, Field(pattern=LABEL_SET_NAME_PATTERN)], LabelSetSpec] = Field(
        default_factory=dict
    )
    heads: Annotated[tuple[Path, ...], BeforeValidator(_listed)] = ()
    rules: tuple[_RuleSpec, ...]
    otherwise: Action = Action.ALLOW


def read_policy_file(path: str | Path) -> PolicyFile:
    """Read a policy.

    Raises:
        UsageError: the file is invalid; the message says what to change.
    """
    path = Path(path)
    spec = read_yaml_file(path, PolicySpec)
    folder = path.absolute().parent
    label_sets = []
    for name, one in spec.label_sets.items():
        with usage_errors(f"{path}: label set {name!r}: "):
            label_sets.append(_label_set(folder, name, one))
    heads = read_heads([folder / one for one in spec.heads])
    with usage_errors(f"{path}: "):
        model = normalise_model(spec.model)
    rules = [_rule(path, number, one, label_sets) for number, one in enumerate(spec.rules, 1)]
    try:
        policy = Policy(
            name=spec.name, version=spec.version, model=model, decode=spec.decode.value,
            exif=spec.exif.value, label_sets=tuple(label_sets), heads=tuple(one.of_job for one in heads),
            rules=tuple(rules), otherwise=spec.otherwise,
        )  # fmt: skip
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error)}") from None
    require_model(heads, policy.model, decode=policy.decode, exif=policy.exif)
    return PolicyFile(policy, heads)


def _label_set(folder: Path, name: str, spec: LabelSetSpec) -> LabelSet:
    """The label set; a file is one that `calibrate` and `certify` write, or has one label per line."""
    if spec.file is None or spec.file.suffix.lower() not in _LABEL_SET_SUFFIXES:
        return spec.model_copy(update={"file": spec.file and folder / spec.file}).made(name)
    more = spec.model_fields_set - {"file"}
    if more:
        raise UsageError(f"{spec.file} says it all: leave `{min(more)}` out, or write it there")
    return read_label_set(str(folder / spec.file)).model_copy(update={"name": name})


def _rule(path: Path, number: int, spec: _RuleSpec, label_sets: list[LabelSet]) -> Rule:
    conditions = []
    for values in spec.when:
        values = dict(values)
        if "head" not in values and "label_set" not in values:
            having = [one.name for one in label_sets if values.get("label") in one.labels]
            if len(having) != 1:
                what = f"{len(having)} label sets have" if having else "no label set has"
                raise UsageError(
                    f"{path}: rule {number}: {what} a label {values.get('label')!r}: name one as label_set"
                )
            values["label_set"] = having[0]
        try:
            conditions.append(Condition.model_validate(values))
        except ValidationError as error:
            raise UsageError(f"{path}: rule {number}: {first_problem(error)}") from None
    with usage_errors(f"{path}: rule {number}: "):
        return Rule(name=spec.name, when=tuple(conditions), action=spec.action)
