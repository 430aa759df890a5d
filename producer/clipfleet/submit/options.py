"""Options of a job, from Python, the command line or a file, and the job built from them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)

from clipfleet.contract.columns import VectorType
from clipfleet.contract.heads import JobHead
from clipfleet.contract.jobs import (
    DEFAULT_CELERY_QUEUE,
    DEFAULT_CHUNK_SIZE,
    DEFAULT_MODEL,
    JOB_ID_PATTERN,
    LAST,
    MAX_CHUNK_SIZE,
    MAX_SAMPLE,
    REDIS_OUTPUT,
    DecodeRoute,
    Exif,
    Job,
    Lane,
    PartFormat,
    Precision,
    StoredVectors,
    StoreVersion,
    Task,
    new_job_id,
)
from clipfleet.contract.label_sets import LABEL_SET_NAME_PATTERN, LabelSet
from clipfleet.contract.model_names import normalise_model
from clipfleet.contract.policies import DecisionLog, JobPolicy
from clipfleet.contract.stores import StoreTarget
from clipfleet.contract.versions import lowest_version
from clipfleet.errors import UsageError, usage_errors
from clipfleet.labels.sets import LabelSetSpec
from clipfleet.labels.written_files import WRITTEN_FILE, read_yaml_file

if TYPE_CHECKING:
    from clipfleet.sources import Source


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _require_output(value: str | None) -> str | None:
    """Refuse an empty output, usually an unset variable, and `-`, which would become a folder."""
    if value == "":
        raise ValueError("empty value: give one, or leave the option out")
    if value == "-":
        raise ValueError("- would be a folder: name one")
    return value


class Options(BaseModel):
    """Options from a program or a file. Invalid values raise `UsageError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Raise `UsageError` for a program's mistake; a file's is explained by its reader, with the line."""
        if info.context is WRITTEN_FILE:
            return handler(values)
        names = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [name for name in values if name not in names] if isinstance(values, dict) else []
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, 1)
            meant = f"; did you mean {near[0]}=?" if near else ""
            raise UsageError(f"there is no option {unknown[0]}={meant}")
        with usage_errors():
            return handler(values)


class JobDescription(Options):
    """Options of a job of any task."""

    # A folder or s3://BUCKET/PREFIX; default: the ledger's Redis, for up to 100,000 items.
    output: Annotated[str | None, BeforeValidator(_as_text), AfterValidator(_require_output)] = None
    model: str = DEFAULT_MODEL
    precision: Precision = Precision.AUTO
    decode: DecodeRoute = DecodeRoute.FAST
    exif: Exif = Exif.IGNORE
    lane: Lane = Lane.NORMAL
    # Default: 512; fewer in a job of less than 4,096 items, so that several workers share it.
    chunk_size: Annotated[int | None, Field(ge=1, le=MAX_CHUNK_SIZE)] = None
    job_id: str | None = None  # repeat it to resume a submit, or to get the existing job
    overwrite: bool = False  # replace the results of another, ended job
    # For a repeated, sealed job id: list the source again and fail if it has changed, even above 1,000,000
    # items.
    check_source: bool = False
    url_column: str | None = None
    id_column: str | None = None
    base_uri: str | None = None  # prefix for bare keys and relative paths in a list
    # So many items of the source, chosen by a hash; `JobHandle.estimate` is about all of them.
    sample: Annotated[int | None, Field(ge=1, le=MAX_SAMPLE)] = None
    part_format: PartFormat = PartFormat.PARQUET
    store_embeddings: bool = False  # of a classify job
    vector_type: VectorType = VectorType.FLOAT16
    # The job stops once a larger share of its rows has failed.
    max_error_rate: Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False)] = None
    on_finished: str | None = None  # a Celery task of yours, sent when the job has ended
    on_finished_queue: str = DEFAULT_CELERY_QUEUE  # the queue of that task


class JobOptions(JobDescription):
    """Options of `Client.classify` and the like."""


DEFAULT_OPTIONS = JobOptions()


@dataclass(frozen=True, slots=True)
class DecisionPlace:
    """Where the records of decisions go, as users say it."""

    place: str | None = None  # a folder or s3://BUCKET/PREFIX; None: the output, unless that is Redis
    keep_days: int | None = None  # None: for ever
    owner: str | None = None  # see `DecisionLog`

    def log_of(self, output: str) -> DecisionLog | None:
        """The log of a job with this output; None: its decisions live as long as its rows.

        Raises:
            UsageError: the place cannot be one, or there is none to keep records in.
        """
        from clipfleet.outputs import output_uri  # here, as in `make_job`

        place = output if self.place is None else output_uri(self.place)
        if place != REDIS_OUTPUT:
            return DecisionLog(uri=place, keep_days=self.keep_days, owner=self.owner)
        if self.place is not None or self.keep_days is not None:
            raise UsageError(
                "records of decisions are kept in a folder or a bucket, not in Redis: give an `output=`, or "
                "another place for them as `decisions=`"
            )
        return None


# What the vectors of a job depend on, and what only images have.
OF_THE_VECTORS = ("model", "precision", "decode", "exif")
OF_IMAGES = ("url_column", "id_column", "base_uri", "sample")


def make_job(
    source: Source,
    described: JobDescription,
    task: Task,
    label_sets: Sequence[LabelSet] = (),
    *,
    heads: Sequence[JobHead] = (),
    vectors: StoredVectors | StoreVersion | None = None,
    store: StoreTarget | None = None,
    policy: JobPolicy | None = None,
    decisions: DecisionPlace | None = None,
    top_k: int = 5,
    label_set_column: str | None = None,
) -> Job:
    """Build a job, created now.

    Raises:
        UsageError: an option is invalid; the message says what to change.
    """
    # Here, because `--help` imports the options above, but no pyarrow.
    from clipfleet.outputs import output_uri
    from clipfleet.sources.texts import TextSource

    job_id = _job_id(described)
    output = output_uri(described.output or REDIS_OUTPUT)
    if output == REDIS_OUTPUT:
        _require_storable_in_redis(described)
    with usage_errors():
        values = described.model_dump(include=set(Job.model_fields)) | {
            "job_id": job_id,
            "task": task,
            "model": normalise_model(described.model),
            "chunk_size": described.chunk_size or DEFAULT_CHUNK_SIZE,
            "label_sets": label_sets,
            "heads": heads,
            "vectors": vectors,
            "store": store,
            "policy": policy,
            "decisions": None if decisions is None else decisions.log_of(output),
            "label_set_column": _column(source, label_set_column),
            "text_column": source.text_column if isinstance(source, TextSource) else None,
            "store_embeddings": described.store_embeddings and task is Task.CLASSIFY,
            "top_k": top_k,
            "source": source.description,
            "output": output,
            "created_at": datetime.now(UTC),
            "schema_version": lowest_version(
                output_is_redis=output == REDIS_OUTPUT,
                applies_exif=described.exif is Exif.APPLY,
                has_newer_label_sets=any(one.needs_version_3 for one in label_sets),
                has_heads_or_vectors=bool(heads) or vectors is not None,
                has_a_store=store is not None or isinstance(vectors, StoreVersion),
                has_a_policy=policy is not None,
            ),
        }
        return Job(**values)


def _job_id(described: JobDescription) -> str:
    """The given id, or a new one."""
    job_id = described.job_id or new_job_id()
    if not re.fullmatch(JOB_ID_PATTERN, job_id):
        raise UsageError(
            f"job id {job_id!r} is invalid: it must start with a letter or digit, and have at most 64 "
            "letters, digits, dots, underscores and hyphens"
        )
    if job_id == LAST:
        raise UsageError(f"job id {LAST!r} is reserved: it names the newest job; choose another `job_id=`")
    return job_id


def _require_storable_in_redis(described: JobDescription) -> None:
    if described.part_format is not PartFormat.PARQUET:
        raise UsageError(
            f"`part_format=` {described.part_format} is for parts, which Redis does not have: "
            "give an `output=`"
        )
    if described.vector_type is not VectorType.FLOAT16:
        raise UsageError(
            f"`vector_type=` {described.vector_type}: Redis holds float16 vectors: give an `output=`"
        )


def _column(source: Source, name: str | None) -> str | None:
    """Staged name of a source column, matched case-insensitively."""
    if name is None:
        return None
    from clipfleet.contract.parts import extra_column_name  # here, as in `make_job`

    wanted = (extra_column_name(name), extra_column_name(name.lower()))
    names = {column.lower(): column for column in source.description.extra_columns}
    return next((names[one.lower()] for one in wanted if one.lower() in names), name)


def _some_heads(value: object) -> object:
    if value in (None, [], ""):
        raise ValueError("give at least one file of a head, or leave the key out")
    return [value] if isinstance(value, str | Path) else value


LabelSetName = Annotated[str, Field(pattern=LABEL_SET_NAME_PATTERN)]


class JobSpec(JobDescription):
    """Input of `clipfleet run` and `Client.run`, with the names of the command line."""

    source: str
    label_sets: dict[LabelSetName, LabelSetSpec] = Field(default_factory=dict)
    label_set_column: str | None = None  # names the one label set of each item
    heads: Annotated[tuple[Path, ...], BeforeValidator(_some_heads)] = ()  # their files
    top_k: Annotated[int, Field(ge=1)] = 5
    store_embeddings: bool = Field(False, alias="embedding")
    part_format: PartFormat = Field(PartFormat.PARQUET, alias="format")

    @field_validator("label_sets", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if value in (None, {}):
            raise ValueError("give at least one label set, or leave the key out to get embeddings only")
        if not isinstance(value, Mapping):
            raise ValueError("give each label set a name, such as label_sets: {animals: [cat, dog]}")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.label_sets or self.heads or self.store_embeddings):
            raise ValueError("nothing to do: give label_sets, heads or embedding: true, or several of them")
        return self

    @property
    def task(self) -> Task:
        """What it asks for; vectors alone, or with heads, are an embedding."""
        embeds = self.store_embeddings or not self.heads
        return Task.EMBED if embeds and not self.label_sets else Task.CLASSIFY

    def made_label_sets(self) -> tuple[LabelSet, ...]:
        """Build the label sets, in order, reading label files.

        Raises:
            UsageError: a label file is invalid.
        """
        made = []
        for name, spec in self.label_sets.items():
            with usage_errors(f"label set {name!r}: "):
                made.append(spec.made(name))
        return tuple(made)


def read_job_spec(path: Path) -> JobSpec:
    """Read a job from a YAML or JSON file, with paths relative to its folder.

    Raises:
        UsageError: the file is invalid; the message starts with file and line.
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
    heads = tuple(folder / one for one in spec.heads)
    return spec.model_copy(update={"label_sets": label_sets, "heads": heads, **places})


def _below(folder: Path, place: str) -> str:
    from clipfleet.sources.uris import has_scheme  # here, as in `make_job`

    if place == "-" or has_scheme(place) or place.startswith("~"):
        return place
    return str(folder / place)
