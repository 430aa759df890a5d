"""A whole job in one value, or in one file: source, output, model, label sets, vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from clipfleet.contract import LABEL_SET_NAME_PATTERN, LabelSet, PartFormat
from clipfleet.errors import usage_errors
from clipfleet.job_options import JobDescription
from clipfleet.label_sets import LabelSetSpec
from clipfleet.sources.uris import has_scheme
from clipfleet.yaml_files import read_yaml_file

LabelSetName = Annotated[str, Field(pattern=LABEL_SET_NAME_PATTERN)]


class JobSpec(JobDescription):
    """What `clipfleet run` and `Client.run` take; the keys are those of the command line."""

    source: str
    label_sets: dict[LabelSetName, LabelSetSpec] = Field(default_factory=dict)
    label_set_column: str | None = None  # names the one label set of an item
    top_k: Annotated[int, Field(ge=1)] = 5
    store_embeddings: bool = Field(False, alias="embedding")
    part_format: PartFormat = Field(PartFormat.PARQUET, alias="format")

    @field_validator("label_sets", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if value in (None, {}):
            raise ValueError("there is no label set: leave the key out to get vectors only")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.label_sets and not self.store_embeddings:
            raise ValueError("there is nothing to do: give label_sets, or embedding: true, or both")
        return self

    def made_label_sets(self) -> tuple[LabelSet, ...]:
        """The label sets, in their order, with the files of labels read.

        Raises:
            UsageError: a file of labels cannot be used.
        """
        made = []
        for name, spec in self.label_sets.items():
            with usage_errors(f"label set {name!r}: "):
                made.append(spec.made(name))
        return tuple(made)


def read_job_spec(path: Path) -> JobSpec:
    """The job that a YAML or JSON file describes; relative paths in it count from the file's folder.

    Raises:
        UsageError: the file cannot be used; the message begins with the file and the line.
    """
    spec = read_yaml_file(path, JobSpec)
    folder = path.absolute().parent
    label_sets = {
        name: one.model_copy(update={"file": one.file and folder / one.file})
        for name, one in spec.label_sets.items()
    }
    places = {"source": _below(folder, spec.source), "output": spec.output and _below(folder, spec.output)}
    if spec.model.startswith(("./", "../")):
        places["model"] = str(folder / spec.model)
    return spec.model_copy(update={"label_sets": label_sets, **places})


def _below(folder: Path, place: str) -> str:
    if place == "-" or has_scheme(place) or place.startswith("~"):
        return place
    return str(folder / place)
