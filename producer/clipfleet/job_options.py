"""What a caller may say of a job, and the job that is made of it. Nothing is read or written here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from clipfleet.contract import (
    DEFAULT_CELERY_QUEUE,
    DEFAULT_CHUNK_SIZE,
    DEFAULT_MODEL,
    JOB_ID_PATTERN,
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
from clipfleet.errors import UsageError
from clipfleet.model_names import normalise_model
from clipfleet.outputs import output_uri
from clipfleet.parts import extra_column_name
from clipfleet.sources import Source
from clipfleet.sources.texts import TextSource
from clipfleet.validation import first_problem


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What may be said of a job whatever its task."""

    # A folder or s3://BUCKET/PREFIX; by default the ledger's own Redis, for up to 100,000 items.
    output: str | Path | None = None
    model: str = DEFAULT_MODEL
    precision: Precision = Precision.AUTO
    decode: DecodeRoute = DecodeRoute.FAST
    lane: Lane = Lane.NORMAL
    chunk_size: int = DEFAULT_CHUNK_SIZE
    job_id: str | None = None  # repeat it to resume a submit, or to get the existing job back
    overwrite: bool = False  # of an output that holds another, ended job
    # Of a job id whose items are all staged: list the source again however many items it has, not only up to
    # 1,000,000 of them, and refuse it if it has changed.
    check_source: bool = False
    url_column: str | None = None
    id_column: str | None = None
    base_uri: str | None = None  # what bare keys and relative paths of a manifest are below
    store_embeddings: bool = False  # also of a classify job
    part_format: PartFormat = PartFormat.PARQUET
    max_error_rate: float | None = None  # from 0 to 1: the job stops early once more of its rows have failed
    on_finished: str | None = None  # a Celery task of yours, sent when the job has ended
    on_finished_queue: str = DEFAULT_CELERY_QUEUE  # where its worker takes it from


DEFAULT_OPTIONS = JobOptions()


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about every item, beside its vector."""

    task: Task
    label_sets: tuple[LabelSet, ...] = ()
    top_k: int = 5
    label_set_column: str | None = None
    text_column: str | None = None  # of a table, where it has no usual name


def make_job(source: Source, question: Question, options: JobOptions) -> Job:
    """The job that a caller means, created now.

    Raises:
        UsageError: it cannot be; the message says what to change.
    """
    job_id = options.job_id or new_job_id()
    if not re.fullmatch(JOB_ID_PATTERN, job_id):
        raise UsageError(
            f"job id {job_id!r} cannot be used: it must begin with a letter or digit, and have at most 64 "
            "letters, digits, dots, underscores and hyphens"
        )
    output = output_uri(str(options.output or REDIS_OUTPUT))
    if output == REDIS_OUTPUT and options.part_format is not PartFormat.PARQUET:
        raise UsageError(f"--format {options.part_format} is for parts: give an --output, Redis has none")
    try:
        return Job(
            job_id=job_id,
            task=question.task,
            model=normalise_model(options.model),
            precision=options.precision,
            decode=options.decode,
            label_sets=question.label_sets,
            label_set_column=_column(source, question.label_set_column),
            text_column=source.text_column if isinstance(source, TextSource) else None,
            store_embeddings=options.store_embeddings and question.task is Task.CLASSIFY,
            part_format=options.part_format,
            max_error_rate=options.max_error_rate,
            on_finished=options.on_finished,
            on_finished_queue=options.on_finished_queue,
            top_k=question.top_k,
            lane=options.lane,
            chunk_size=options.chunk_size,
            source=source.description,
            output=output,
            created_at=datetime.now(UTC),
        )
    except ValidationError as error:
        raise UsageError(first_problem(error)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _column(source: Source, name: str | None) -> str | None:
    """The staged name of a column of the source, which may be told without regard to case."""
    if name is None:
        return None
    wanted = (extra_column_name(name), extra_column_name(name.lower()))
    names = {column.lower(): column for column in source.description.extra_columns}
    return next((names[one.lower()] for one in wanted if one.lower() in names), name)
