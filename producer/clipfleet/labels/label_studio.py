"""Marks from the JSON that Label Studio exports: a list of tasks with their annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipfleet.errors import UsageError
from clipfleet.labels.written_files import read_text_file

_COPIED = ("item_index", "item_id", "inclusion_probability", "content_hash", "threshold")  # of our sample
_VERDICTS = ("yes", "no", "skip")
LABEL_SETS_KEY = (
    "label_sets"  # in the data of a task of our export: the sets that have a control of their name
)


def tasks_to_marks(
    path: Path, labels: Sequence[str], set_name: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each mark is, and its values, for each annotation and label in question.

    A task with `label` in its data, as imported from `clipfleet sample`, asks for this label only: the choice
    is `yes`, `no` or `skip`, or the label itself where it is shown; an annotation without a choice has an
    empty verdict. Any other task asks for all labels: the chosen ones are shown, the others are not; its
    marks are fit marks of an evenly drawn item, but corrections if `clipfleet export` wrote the task, for
    people choose which of them they look at. A cancelled annotation is a skip. Case counts in choices only
    where labels differ by nothing else.

    Args:
        path: the file.
        labels: of the label set.
        set_name: of the label set: a task that `clipfleet export` wrote has choices for each set of the job,
            and is no mark if it does not ask for this one.

    Raises:
        UsageError: the file is not such an export, or a choice is neither an answer nor a label.
    """
    for where, task in _tasks(path):
        for annotation in task["annotations"]:
            try:
                marks = list(_marks(where, task["data"], annotation, labels, set_name))
            except (AttributeError, KeyError, TypeError):
                raise UsageError(f"{where}: an annotation is not one of Label Studio") from None
            yield from ((where, mark) for mark in marks)


def named_sets(path: Path) -> set[str] | None:
    """The label sets that the tasks of an export ask for; None: a task names none, as it is not of ours.

    Raises:
        UsageError: the file is not an export of Label Studio.
    """
    found: set[str] = set()
    for where, task in _tasks(path):
        names = task["data"].get(LABEL_SETS_KEY)
        if names is None:
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"{where}: `{LABEL_SETS_KEY}` in its data is no list of names")
        found.update(names)
    return found


def _tasks(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each task is, and the task; it has data and annotations."""
    try:
        tasks = json.loads(read_text_file(path))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise UsageError(f"{path}:{line}: not JSON: {getattr(error, 'msg', 'nested too deeply')}") from None
    if not isinstance(tasks, list):
        raise UsageError(f"{path}: not a list of tasks, as Label Studio exports it (format JSON)")
    for number, task in enumerate(tasks, 1):
        where = f"{path}: task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise UsageError(f"{where}: it has no `data`: export tasks in the format JSON, not JSON-MIN")
        if not isinstance(task.get("annotations"), list):
            raise UsageError(f"{where}: it has no `annotations`: export in the format JSON, not JSON-MIN")
        yield where, task


def _marks(
    where: str, data: Mapping[str, Any], annotation: Any, labels: Sequence[str], set_name: str
) -> Iterator[dict[str, Any]]:
    sets = data.get(LABEL_SETS_KEY)
    if sets and set_name and set_name not in sets:
        return
    results = annotation["result"]
    if sets and set_name:
        controls = sorted({str(one.get("from_name")) for one in results})
        if controls and not {*controls} & {*sets}:
            raise UsageError(
                f"{where}: its answers are of the control {controls[0]!r}: name the controls as in the "
                f"exported config.xml: {', '.join(sets)}"
            )
        results = [one for one in results if one.get("from_name") == set_name]
    chosen = [
        str(choice)
        for result in results
        if result["type"] == "choices"
        for choice in result["value"]["choices"]
    ]
    about = {
        **{name: data[name] for name in _COPIED if name in data},
        "uri": data.get("uri") or data.get("image"),
        "by": _person(annotation.get("completed_by")),
        "at": annotation.get("updated_at") or annotation.get("created_at"),
    }
    is_skipped = bool(annotation.get("was_cancelled"))
    if asked := data.get("label"):
        verdict = "skip" if is_skipped else _answer(where, asked, chosen, labels)
        yield {**about, "label": asked, "verdict": verdict, "purpose": data.get("purpose") or "fit"}
        return
    if sets:
        about |= {"purpose": "correct", "inclusion_probability": None}
    else:
        about.setdefault("inclusion_probability", 1.0)
        about["purpose"] = data.get("purpose") or "fit"
    shown = {_named(choice, labels) or choice for choice in chosen}
    if not is_skipped and results and not chosen:
        raise UsageError(f"{where}: its results are no choices: mark with `Choices`")
    for label in dict.fromkeys((*labels, *sorted(shown))):  # an unknown one is refused by its name later
        verdict = "skip" if is_skipped else "yes" if label in shown else "no"
        yield {**about, "label": label, "verdict": verdict}


def _answer(where: str, asked: str, chosen: Sequence[str], labels: Sequence[str]) -> str:
    """The verdict on the label in question; other labels that are chosen say no. Empty: nothing is chosen."""
    if not chosen:
        return ""
    shown, words = set(), set()
    for choice in chosen:
        # A label of the set may be called `no`: the label in question and the answers come before others.
        if choice == asked or choice.strip().casefold() not in _VERDICTS:
            label = asked if _is_alike(choice, asked) and choice not in labels else _named(choice, labels)
            if label is None:
                raise UsageError(
                    f"{where}: the choice {choice!r} is neither yes, no or skip nor a label of the set"
                )
            shown.add(label)
        else:
            words.add(choice.strip().casefold())
    if len(words) > 1 or (words and shown):
        raise UsageError(f'{where}: several answers: {", ".join(chosen)}; use `choice="single"`')
    return next(iter(words), "yes" if asked in shown else "no")


def _named(choice: str, labels: Sequence[str]) -> str | None:
    """The label that a choice names, by case where labels differ by nothing else; None: no single one."""
    if choice in labels:
        return choice
    alike = [label for label in labels if _is_alike(choice, label)]
    return alike[0] if len(alike) == 1 else None


def _is_alike(choice: str, label: str) -> bool:
    return choice.strip().casefold() == label.strip().casefold()


def _person(completed_by: Any) -> str:
    if isinstance(completed_by, dict):
        return str(completed_by.get("email") or completed_by.get("id") or "")
    return "" if completed_by is None else str(completed_by)
