"""What a caller may say of a job, and the job that is made of it. Nothing is read or written here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

from clipfleet.contract import (
    DEFAULT_CELERY_QUEUE,
    DEFAULT_CHUNK_SIZE,
    DEFAULT_MODEL,
    JOB_ID_PATTERN,
    MAX_CHUNK_SIZE,
    REDIS_OUTPUT,
    DecodeRoute,
    Job,
    LabelSet,
    Lane,
    PartFormat,
    Precision,
    Task,
    new_job_id,
)
from clipfleet.errors import UsageError, usage_errors
from clipfleet.model_names import normalise_model
from clipfleet.outputs import output_uri
from clipfleet.parts import extra_column_name
from clipfleet.sources import Source
from clipfleet.sources.texts import TextSource


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


class JobDescription(BaseModel):
    """What may be said of a job whatever its task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # A folder or s3://BUCKET/PREFIX; by default the ledger's own Redis, for up to 100,000 items.
    output: Annotated[str | None, BeforeValidator(_as_text)] = None
    model: str = DEFAULT_MODEL
    precision: Precision = Precision.AUTO
    decode: DecodeRoute = DecodeRoute.FAST
    lane: Lane = Lane.NORMAL
    chunk_size: Annotated[int, Field(ge=1, le=MAX_CHUNK_SIZE)] = DEFAULT_CHUNK_SIZE
    job_id: str | None = None  # repeat it to resume a submit, or to get the existing job back
    overwrite: bool = False  # of an output that holds another, ended job
    # Of a job id whose items are all staged: list the source again however many items it has, not only up to
    # 1,000,000 of them, and refuse it if it has changed.
    check_source: bool = False
    url_column: str | None = None
    id_column: str | None = None
    base_uri: str | None = None  # what bare keys and relative paths of a manifest are below
    part_format: PartFormat = PartFormat.PARQUET
    store_embeddings: bool = False  # also of a classify job
    # The job stops early once more of its rows have failed.
    max_error_rate: Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False)] = None
    on_finished: str | None = None  # a Celery task of yours, sent when the job has ended
    on_finished_queue: str = DEFAULT_CELERY_QUEUE  # where its worker takes it from


class JobOptions(JobDescription):
    """What goes with a source and a question. A value that cannot be is a `UsageError`."""

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        with usage_errors():
            return handler(values)


DEFAULT_OPTIONS = JobOptions()


def make_job(
    source: Source,
    described: JobDescription,
    task: Task,
    label_sets: Sequence[LabelSet] = (),
    *,
    top_k: int = 5,
    label_set_column: str | None = None,
) -> Job:
    """The job that a caller means, created now.

    Raises:
        UsageError: it cannot be; the message says what to change.
    """
    job_id = described.job_id or new_job_id()
    if not re.fullmatch(JOB_ID_PATTERN, job_id):
        raise UsageError(
            f"job id {job_id!r} cannot be used: it must begin with a letter or digit, and have at most 64 "
            "letters, digits, dots, underscores and hyphens"
        )
    output = output_uri(described.output or REDIS_OUTPUT)
    if output == REDIS_OUTPUT and described.part_format is not PartFormat.PARQUET:
        raise UsageError(f"--format {described.part_format} is for parts: give an --output, Redis has none")
    with usage_errors():
        values = described.model_dump(include=set(Job.model_fields)) | {
            "job_id": job_id,
            "task": task,
            "model": normalise_model(described.model),
            "label_sets": label_sets,
            "label_set_column": _column(source, label_set_column),
            "text_column": source.text_column if isinstance(source, TextSource) else None,
            "store_embeddings": described.store_embeddings and task is Task.CLASSIFY,
            "top_k": top_k,
            "source": source.description,
            "output": output,
            "created_at": datetime.now(UTC),
        }
        return Job(**values)


def _column(source: Source, name: str | None) -> str | None:
    """The staged name of a column of the source, which may be told without regard to case."""
    if name is None:
        return None
    wanted = (extra_column_name(name), extra_column_name(name.lower()))
    names = {column.lower(): column for column in source.description.extra_columns}
    return next((names[one.lower()] for one in wanted if one.lower() in names), name)
