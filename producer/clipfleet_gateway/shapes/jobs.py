"""`/v1/jobs`: what is submitted, and what is known of it, with the names of `clipfleet run`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from clipfleet.contract.columns import VectorType
from clipfleet.contract.jobs import (
    DEFAULT_MODEL,
    MAX_SAMPLE,
    DecodeRoute,
    ErrorRate,
    Exif,
    JobState,
    Lane,
    PartFormat,
    Precision,
)
from clipfleet.contract.label_sets import LABEL_SET_NAME_PATTERN, Certificate, LabelKind, Preset
from clipfleet.labels.sets import LabelSpec
from clipfleet_gateway.shapes.bodies import Shape, StrictShape
from clipfleet_gateway.shapes.embeddings import ModelName

MOST_JOBS = 100  # of a list
_DEFAULT_JOBS = 20
_MOST_LABELS = 100_000

_OF_POLICIES = ("model", "top_k", "decode", "exif", "label_set_column", "templates", "multi", "none")

ItemBody: TypeAlias = str | dict[str, str | int | float | bool | None]
_Prompts = Annotated[tuple[str, ...], Field(max_length=1000, fail_fast=True)]


class JobTask(StrEnum):
    """What to do with every item."""

    CLASSIFY = "classify"
    EMBED = "embed"
    EMBED_TEXT = "embed_text"
    MODERATE = "moderate"  # decide by a policy, which has labels, heads and the model


class LabelSetBody(StrictShape):
    """A label set, as docs/label-sets.md describes it: labels, or a preset."""

    kind: Annotated[LabelKind, Field(description="`multi`: an image has any number of the labels")] = (
        LabelKind.SINGLE
    )
    none: Annotated[bool, Field(description="whether an image may have none of the labels")] = False
    labels: Annotated[
        Annotated[tuple[str | LabelSpec, ...], Field(fail_fast=True)] | None,
        Field(max_length=_MOST_LABELS, description="names, or objects"),
    ] = None
    templates: Annotated[_Prompts, Field(description="prompts with {} in place of the label")] = ()
    preset: Annotated[Preset | None, Field(description="labels that ship with open_clip")] = None
    background: Annotated[
        _Prompts | None, Field(description="prompts of what has none of the labels; null: the default ones")
    ] = None
    slope: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="of a calibrated label set")
    ] = None
    certificates: Annotated[tuple[Certificate, ...], Field(fail_fast=True)] = ()


class JobBody(StrictShape):
    """What to compute, and how."""

    task: Annotated[JobTask, Field(description="what to do with every item")]
    model: ModelName = DEFAULT_MODEL
    policy: Annotated[
        ModelName | None,
        Field(description="of a task moderate: a policy, as in `/v1/moderations`; it has the model"),
    ] = None
    labels: Annotated[
        Annotated[tuple[str, ...], Field(fail_fast=True)] | None,
        Field(max_length=_MOST_LABELS, description="names, of a task classify"),
    ] = None
    label_sets: Annotated[
        dict[Annotated[str, Field(pattern=LABEL_SET_NAME_PATTERN)], LabelSetBody] | None,
        Field(max_length=100, description="instead of labels: label sets by name"),
    ] = None
    label_set_column: Annotated[
        str | None, Field(description="column that names the one label set of each item")
    ] = None
    templates: Annotated[
        _Prompts, Field(description="of `labels`: prompts with {} in place of the label")
    ] = ()
    multi: Annotated[bool, Field(description="of `labels`: an image has any number of them")] = False
    none: Annotated[bool, Field(description="of `labels`: an image may have none of them")] = False
    top_k: Annotated[int, Field(ge=1, description="labels to keep per image and label set")] = 5
    precision: Precision = Precision.AUTO
    decode: DecodeRoute = DecodeRoute.FAST
    exif: Exif = Exif.IGNORE
    url_column: Annotated[str | None, Field(description="column with the URLs or paths")] = None
    id_column: Annotated[str | None, Field(description="column with the ids of the items")] = None
    text_column: Annotated[str | None, Field(description="column with the texts, of a task embed_text")] = (
        None
    )
    base_uri: Annotated[str | None, Field(description="prefix of relative names in a list")] = None
    sample: Annotated[
        int | None, Field(ge=1, le=MAX_SAMPLE, description="so many items, chosen by a hash")
    ] = None
    embedding: Annotated[bool, Field(description="of a task classify: keep the vectors, too")] = False
    vector_type: VectorType = VectorType.FLOAT16
    format: Annotated[PartFormat, Field(description="of the files in the gateway's place")] = (
        PartFormat.PARQUET
    )
    max_error_rate: Annotated[
        ErrorRate | None,
        Field(
            description="the job is cancelled, with a `reason`, once a larger share of its rows has failed; "
            "one that has run all of its rows by then is `completed_with_errors`"
        ),
    ] = None

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        has_labels = self.labels is not None, self.label_sets is not None
        if (self.task is JobTask.MODERATE) != (self.policy is not None):
            raise ValueError("a task moderate needs a policy, and no other task takes one")
        for name in _OF_POLICIES if self.task is JobTask.MODERATE else ():
            if getattr(self, name) != type(self).model_fields[name].get_default():
                raise ValueError(f"a task moderate takes no {name}: the policy decides it")
        if self.task is JobTask.CLASSIFY and has_labels.count(True) != 1:
            raise ValueError("a task classify needs one of labels and label_sets")
        if self.task is not JobTask.CLASSIFY and any(has_labels):
            raise ValueError(f"a task {self.task} takes no labels")
        if self.text_column is not None and self.task is not JobTask.EMBED_TEXT:
            raise ValueError("text_column is for a task embed_text")
        return self


class JobRequest(JobBody):
    """A job: what to compute, and for which items."""

    items: Annotated[
        Annotated[tuple[ItemBody, ...], Field(fail_fast=True)] | None,
        Field(
            min_length=1,
            description="instead of a source: URLs, data: URIs, ids of own files or texts, each bare or in "
            "an object with further columns",
        ),
    ] = None
    source: Annotated[
        str | None,
        Field(
            min_length=1, max_length=8192,
            description="instead of items: the id of an own file with a list (.txt, .csv, .tsv, .jsonl, "
            ".parquet), or a folder, pattern, list, table or archive that the key may read",
        ),
    ] = None  # fmt: skip

    @model_validator(mode="after")
    def _check_items(self) -> Self:
        if (self.items is None) == (self.source is None):
            raise ValueError("give one of items and source")
        return self


class JobError(Shape):
    """Why a job was not run, or not to its end."""

    code: str | None
    message: str
    param: Annotated[str | None, Field(description="what of the request is wrong")] = None


class JobObject(Shape):
    """A job of the key."""

    id: str
    object: Literal["job"] = "job"
    created_at: Annotated[int, Field(description="in seconds since 1970")]
    finished_at: Annotated[int | None, Field(description="in seconds since 1970; null: it has not ended")]
    state: Annotated[
        JobState,
        Field(description="`submitting` until all items are known; `completed`, `completed_with_errors`, "
                          "`cancelled` and `failed` are final"),
    ]  # fmt: skip
    task: JobTask
    model: str
    policy: Annotated[str | None, Field(description="`NAME@DIGITS` of a task moderate")]
    lane: Lane
    source: Annotated[str | None, Field(description="as it was submitted; null: items")]
    total: Annotated[int, Field(description="items known so far")]
    is_total_final: Annotated[bool, Field(description="whether all items are known")]
    ok: Annotated[int, Field(description="rows without an error")]
    failed: Annotated[int, Field(description="rows with an error")]
    error_codes: Annotated[dict[str, int], Field(description="failed rows by error code")]
    items_per_second: Annotated[float | None, Field(description="mean since the submit; null: not known")]
    reason: Annotated[str | None, Field(description="why the job has ended early, or pauses")]
    error: JobError | None


class JobsQuery(Shape):
    """Which jobs to list."""

    after: Annotated[str | None, Field(description="id of the last job of the page before")] = None
    limit: Annotated[int, Field(ge=1, le=MOST_JOBS, description="jobs of a page")] = _DEFAULT_JOBS


class JobList(Shape):
    """Some jobs of the key, newest first."""

    object: Literal["list"] = "list"
    data: tuple[JobObject, ...]
    first_id: str | None
    last_id: str | None
    has_more: Annotated[bool, Field(description="whether a page follows: ask for it with `after`")]


class RowsQuery(StrictShape):
    """Which rows to read."""

    limit: Annotated[int | None, Field(ge=1, description="rows at most; default: all that are there")] = None
    failed: Annotated[bool, Field(description="rows with an error only")] = False
    label: Annotated[str | None, Field(description="rows with this label only")] = None
