"""Reads and validates small YAML and JSON files written by users; errors name the line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from clipfleet.errors import UsageError, problem_text

M = TypeVar("M", bound=BaseModel)
Key = tuple[str | int, ...]

WRITTEN_FILE = {"source": "file"}  # context of the validation of a file, whose errors get a line
EXPLAINED: Final = "explained"  # type of a problem whose message needs no path: its line is enough

_TRUE_FALSE = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_MAX_VALUES = 1_000_000
_KEPT_TAGS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


_MAX_MEGABYTES = 64  # refuses an endless device or a wrong file, not a million labels


def read_text_file(path: Path) -> str:
    """Read the text of a file, or of a pipe.

    Raises:
        UsageError: it cannot be read, is too large, or is not UTF-8.
    """
    limit = _MAX_MEGABYTES << 20
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise UsageError(f"{path}: larger than {_MAX_MEGABYTES} MB")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None


class _Loader(yaml.SafeLoader):
    """YAML loader that keeps `yes`, `no`, `on` and dates as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _TRUE_FALSE, list("tTfF"))


# What is wanted instead, by pydantic's type of the problem.
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "keys and values",
    "enum": "{expected}",
    "finite_number": "a number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than_equal": "at least {ge:g}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than_equal": "at most {le:g}",
}


@dataclass(frozen=True, slots=True)
class _Document:
    """Parsed content of a file, with line numbers."""

    value: Any
    lines: dict[Key, int]  # keyed by path: ("label_sets", "animals", 0)

    def line_of(self, way: Sequence[str | int]) -> int:
        """Line of a value, or of its nearest parent in the file."""
        key: Key = ()
        for step in way:
            key = (*key, step) if (*key, step) in self.lines else key
        return self.lines[key]


def read_yaml_file(path: Path, model: type[M]) -> M:
    """Read a file into a model.

    Raises:
        UsageError: the file cannot be read, is not YAML, or does not match the model; the message starts with
            file and line.
    """
    document = _parsed(path)
    try:
        return model.model_validate(document.value, context=WRITTEN_FILE)
    except ValidationError as error:
        problem = error.errors()[0]
        line = document.line_of(problem["loc"])
        raise UsageError(f"{path}:{line}: {_explained(problem, model)}") from None


def _parsed(path: Path) -> _Document:
    text = read_text_file(path)
    return _from_json(path, text) if path.suffix.lower() == ".json" else _from_yaml(path, text)


def _from_json(path: Path, text: str) -> _Document:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UsageError(f"{path}: {twice[0]!r} appears twice")
        return dict(pairs)

    try:
        return _Document(json.loads(text, object_pairs_hook=unique), {(): 1})
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UsageError(f"{path}: not JSON: nested too deeply") from None


def _from_yaml(path: Path, text: str) -> _Document:
    lines: dict[Key, int] = {(): 1}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return _Document(None if node is None else _value(loader, node, (), lines, path), lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None


def _value(loader: _Loader, node: yaml.Node, key: Key, lines: dict[Key, int], path: Path) -> Any:
    lines.setdefault(key, node.start_mark.line + 1)
    if len(lines) > _MAX_VALUES:  # nested aliases expand exponentially
        raise UsageError(f"{path}: more than {_MAX_VALUES:,} values")
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, child, (*key, n), lines, path) for n, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    values: dict[str, Any] = {}
    for name_node, child in node.value:
        name, line = name_node.value, name_node.start_mark.line + 1
        if not isinstance(name, str):
            raise UsageError(f"{path}:{line}: a key must be a word")
        if name in values:
            raise UsageError(f"{path}:{line}: {name!r} appears twice")
        lines[(*key, name)] = line
        values[name] = _value(loader, child, (*key, name), lines, path)
    return values


def _explained(problem: Any, model: type[BaseModel]) -> str:
    *above, last = problem["loc"] or ("",)
    where = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case kind if kind == EXPLAINED:
            return str(problem["msg"])
        case "extra_forbidden":
            return f"unknown key {where!r}{_hint(str(last), [] if above else _keys(model))}"
        case "string_pattern_mismatch" if last == "[key]":
            name = where.removesuffix(".[key]")
            return f"{name}: a name begins with a letter and has only letters, digits and _, at most 40"
        case "missing":
            return f"the key {where!r} is missing"
        case "string_type" if problem["input"] is None:
            return f"the key {where!r} is empty"
        case "tuple_type":
            return f"{where}: give a list, such as [a, b]"
        case "string_type":
            return f"{where}: {_not_text(problem['input'])}"
        case "model_type" | "dict_type" if not where:
            return f"the file must hold keys and values, such as {_keys(model)[0]}: ..."
        case kind if kind in _EXPECTED and where:
            return f"{where}: give {_EXPECTED[kind].format_map(problem.get('ctx', {}))}"
        case _:
            return f"{where}: {problem_text(problem)}" if where else problem_text(problem)


def _not_text(value: object) -> str:
    """What it is instead, and the way out."""
    if isinstance(value, bool):
        return f'{str(value).lower()} is true or false; quote it: "{str(value).lower()}"'
    if isinstance(value, int | float):
        return f'{value} is a number; quote it: "{value}"'
    return "give a text, not a list" if isinstance(value, list) else "give a text, not keys and values"


def _keys(model: type[BaseModel]) -> list[str]:
    """Keys of a model, required ones first."""
    fields = sorted(model.model_fields.items(), key=lambda pair: not pair[1].is_required())
    return [field.alias or name for name, field in fields]


def _hint(word: str, known: list[str]) -> str:
    meant = difflib.get_close_matches(word, known, 1)
    if meant:
        return f", did you mean {meant[0]!r}?"
    return f"; known are {', '.join(known)}" if known else ""
