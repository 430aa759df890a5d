"""The label sets of an output, for programs that explain or change its decisions. Reads no rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from clipfleet.contract.jobs import Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import OutputDamagedError, UsageError, first_problem
from clipfleet.results.rows import RowReader


def label_sets_of(reader: RowReader) -> tuple[LabelSet, ...]:
    """The label sets of the rows, in the order of the job; those of presets with their labels.

    A set of the job is returned as it is. A preset is only a name there: the finished output has its labels
    and templates. The set then has the same name and no preset, so that its hash is another one.

    Raises:
        UsageError: there are none, or a preset is not stored, or has labels that no `LabelSet` can hold.
        OutputDamagedError: the stored ones are not those of the job.
    """
    job = reader.job()
    if job is None:
        raise UsageError(f"{reader.uri}: no job that this version can read: its label sets are unknown")
    if not job.label_sets:
        what = "has heads only" if job.heads else "no label set has labelled its rows"
        command = "relabel" if job.keeps_embeddings and job.task is not Task.EMBED_TEXT else "classify"
        raise UsageError(f"{reader.uri}: {what}: run `clipfleet {command}` with labels")
    presets = [one for one in job.label_sets if one.preset is not None]
    if not presets:
        return job.label_sets
    stored = reader.label_sets()
    if stored is None:
        way_out = (
            "Redis has none: give an `output=`" if job.output_is_redis else "the end of the job stores them"
        )
        raise UsageError(f"{reader.uri}: the labels of {presets[0].preset} are not stored here; {way_out}")
    by_name = {str(one.get("name")): one for one in stored}
    return tuple(
        one if one.preset is None else _expanded(reader.uri, one, by_name.get(one.name))
        for one in job.label_sets
    )


def _expanded(uri: str, label_set: LabelSet, stored: Mapping[str, Any] | None) -> LabelSet:
    """The stored set of a preset."""
    if stored is None or stored.get("preset") != label_set.preset:
        raise OutputDamagedError(f"{uri}: the label set {label_set.name} is not among the stored ones")
    try:
        twice = [label for label, count in Counter(stored["labels"]).items() if count > 1]
        if twice:
            raise UsageError(
                f"{uri}: {label_set.preset} has labels that appear twice ({', '.join(twice)}): use a label "
                "set of your own, whose labels are unique"
            )
        return LabelSet(**{**stored, "preset": None})
    except ValidationError as error:
        problem = first_problem(error)
    except (KeyError, TypeError) as error:
        problem = repr(error)
    raise OutputDamagedError(f"{uri}: the stored label set {label_set.name} is damaged: {problem}")
