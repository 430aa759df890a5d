"""The job that producer and worker agree on, its states and error codes. Frozen data, no I/O."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from clipfleet.contract.columns import (
    ACCEPTED_COLUMN,
    DECISION_COLUMNS,
    VectorType,
    accepted_column,
    head_scores_column,
    label_columns,
)
from clipfleet.contract.heads import HeadKind, JobHead
from clipfleet.contract.label_sets import Fingerprint, FrozenModel, LabelSet, short_hash
from clipfleet.contract.policies import DecisionLog, JobPolicy, rule_problems
from clipfleet.contract.stores import StoreId, StoreTarget
from clipfleet.contract.versions import FIRST_WITH_DATA_FOLDER, READABLE_SCHEMA_VERSIONS, SCHEMA_VERSION
from clipfleet.errors import JobTooNewError, JobUnreadableError
from clipfleet.wording import counted

MAX_CHUNK_SIZE = 4096
MAX_DIMENSION = 8192  # of stored vectors
DEFAULT_CHUNK_SIZE = 512
DEFAULT_MODEL = "ViT-B-32:datacomp_xl_s13b_b90k"
DEMO_MODEL = "demo"

REDIS_OUTPUT = "redis://"  # the output in the ledger's Redis
MAX_ITEMS_IN_REDIS = 100_000  # per job; larger jobs need a folder or a bucket
MAX_SAMPLE = 100_000  # items of a sample, which a submit holds in memory

DEFAULT_CELERY_QUEUE = "celery"  # Celery's own default, where the task of `on_finished` goes

LAST = "last"  # names the newest job of a user; a new job may not have this id
JOB_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
CELERY_NAME_PATTERN = r"^[\w.:-]{1,200}$"  # of a task or a queue
# Keys of clipfleet and kombu in a Redis that is also the broker: a queue with such a name would overwrite
# them.
_RESERVED_QUEUES = re.compile(r"clipfleet(:.*)?|_kombu\..*|unacked(_.*)?")


class Task(StrEnum):
    """What to compute for every item."""

    CLASSIFY = "classify"
    EMBED = "embed"
    EMBED_TEXT = "embed_text"  # the items are texts


class Lane(StrEnum):
    """Priority of a job, best first."""

    HIGH = "high"
    NORMAL = "normal"
    BULK = "bulk"


class Precision(StrEnum):
    """Precision of the forward pass. `auto`: bf16 if the device has it in hardware, else fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class DecodeRoute(StrEnum):
    """`fast`: scaled JPEG decoding, pixel values differ slightly; `exact`: open_clip's own preprocessing."""

    FAST = "fast"
    EXACT = "exact"


class Exif(StrEnum):
    """`apply`: images are turned and mirrored as their EXIF orientation says; `ignore`: as open_clip does."""

    IGNORE = "ignore"
    APPLY = "apply"


class PartFormat(StrEnum):
    """File format of the parts of a job."""

    PARQUET = "parquet"
    JSONL = "jsonl"


class JobState(StrEnum):
    """`submitting -> running <-> paused -> finishing -> completed[_with_errors]`, or an early end."""

    SUBMITTING = "submitting"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHING = "finishing"
    COMPLETED = "completed"
    COMPLETED_WITH_ERRORS = "completed_with_errors"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended: only a retry changes it."""
        return self in _FINAL_STATES


_FINAL_STATES = frozenset(
    {JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS, JobState.CANCELLED, JobState.FAILED}
)


class ErrorCode(StrEnum):
    """Why a row has `status=failed`. A closed set, used in columns, metrics and documentation."""

    BAD_URI = "bad_uri"
    SCHEME_REFUSED = "scheme_refused"
    ADDRESS_REFUSED = "address_refused"
    PATH_REFUSED = "path_refused"
    BUCKET_REFUSED = "bucket_refused"
    ROBOTS_REFUSED = "robots_refused"

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    HTTP_ERROR = "http_error"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"

    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    TLS_FAILED = "tls_failed"
    TIMEOUT = "timeout"
    INCOMPLETE_BODY = "incomplete_body"
    TOO_MANY_REDIRECTS = "too_many_redirects"

    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"

    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    FORMAT_REFUSED = "format_refused"
    BROKEN_IMAGE = "broken_image"

    CRASHED = "crashed"
    DECODE_TIMEOUT = "decode_timeout"
    OUT_OF_MEMORY = "out_of_memory"

    MODEL_UNAVAILABLE = "model_unavailable"
    OUTPUT_UNREACHABLE = "output_unreachable"
    OUTPUT_CONFLICT = "output_conflict"
    CHUNK_FAILED = "chunk_failed"


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one item failed: the code, and one line of detail (no secrets, at most 300 characters)."""

    code: ErrorCode
    detail: str


ErrorRate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]  # share of failed rows among those run


# Options that came after version 1, with what there was before: without them the fingerprint is the same.
_SINCE_VERSION_1: Mapping[str, Any] = {
    "vector_type": VectorType.FLOAT16, "exif": Exif.IGNORE, "heads": (), "vectors": None, "store": None,
    "policy": None, "decisions": None,
}  # fmt: skip


class SourceDescription(FrozenModel):
    """Description of a source, made without reading all of it."""

    kind: str  # folder, glob, txt, csv, ...
    uri: str  # absolute path, pattern or URL
    options: dict[str, str] = Field(default_factory=dict)  # what its items depend on: columns, size, mtime
    extra_columns: tuple[str, ...] = ()  # columns of the source that are copied into the parts


class StoredVectors(FrozenModel):
    """The embeddings of an earlier, finished job: the items of a job that labels them again."""

    uri: str  # of its output; redis:// for the ledger's Redis
    job_id: str
    created_at: datetime  # of the job: another one of its id is another job
    model_fingerprint: str  # of its first row that is ok; others are of the same model, in any precision
    dimension: Annotated[int, Field(ge=1, le=MAX_DIMENSION)]

    @property
    def said(self) -> str:
        """Names them in messages."""
        return f"job {self.job_id}"


class StoreVersion(FrozenModel):
    """The embeddings of a store at one version: the items of a job that labels them."""

    uri: str  # of the store
    store_id: StoreId  # another store at the same place has another one
    version: Annotated[int, Field(ge=1)]  # of the dataset
    model_fingerprint: Fingerprint  # names the dataset, whose vectors are of this model in any precision
    dimension: Annotated[int, Field(ge=1, le=MAX_DIMENSION)]

    @property
    def said(self) -> str:
        """Names them in messages."""
        return f"version {self.version} of the store"


class Job(FrozenModel):
    """One job, as stored in `_clipfleet/job.json` of its output."""

    schema_version: int = SCHEMA_VERSION
    job_id: Annotated[str, Field(pattern=JOB_ID_PATTERN)]
    task: Task
    model: str
    precision: Precision = Precision.AUTO
    decode: DecodeRoute = DecodeRoute.FAST
    exif: Exif = Exif.IGNORE
    label_sets: tuple[LabelSet, ...] = ()
    heads: tuple[JobHead, ...] = ()
    vectors: StoredVectors | StoreVersion | None = None  # None: the items are images or texts
    store: StoreTarget | None = None  # that its finish commits the rows to
    policy: JobPolicy | None = None  # decides on each row, by the label sets and heads
    decisions: DecisionLog | None = None  # where the decisions are recorded, beside the rows
    text_column: str | None = None  # source column with the text of an item
    label_set_column: str | None = None  # source column that names the one label set of an item
    top_k: Annotated[int, Field(ge=1)] = 5
    store_embeddings: bool = False  # of a classify job; others always store them
    vector_type: VectorType = VectorType.FLOAT16
    part_format: PartFormat = PartFormat.PARQUET
    lane: Lane = Lane.NORMAL
    chunk_size: Annotated[int, Field(ge=1, le=MAX_CHUNK_SIZE)] = DEFAULT_CHUNK_SIZE
    max_error_rate: ErrorRate | None = None  # the job stops once a larger share has failed; None: no limit
    source: SourceDescription
    output: str  # absolute path of a folder, s3://BUCKET/PREFIX, or redis:// for the ledger's Redis
    on_finished: str | None = None  # name of a user's Celery task, sent when the job has ended
    on_finished_queue: str = DEFAULT_CELERY_QUEUE  # where it is sent to
    created_at: datetime

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_task()
        if (self.task is Task.EMBED_TEXT) != (self.text_column is not None):
            raise ValueError("a job that embeds texts needs a text column, other jobs must not have one")
        if self.text_column is not None:
            self._check_column(self.text_column, "with the texts")
        if self.label_set_column is not None:
            self._check_column(self.label_set_column, "to choose label sets by")
            if not self.label_sets:
                raise ValueError("a label set column needs label sets to choose from")
        for field in ("on_finished", "on_finished_queue"):
            name = getattr(self, field)
            if name is not None and not re.fullmatch(CELERY_NAME_PATTERN, name):
                raise ValueError(
                    f"{field.replace('_', '-')} {name!r} must be a name without spaces, "
                    "such as myapp.tasks.handle for a task and celery for a queue"
                )
        if not is_queue_of_users(self.on_finished_queue):
            raise ValueError(
                f"on-finished-queue {self.on_finished_queue!r} is reserved for clipfleet and Celery"
            )
        ours = {name: label_columns(name) for name in (one.name for one in self.named_label_sets)}
        for label_set in self.label_sets:
            of_this = {*ours.get(label_set.name, ()), *self._accepted_columns_of(label_set)}
            clash = sorted(of_this.intersection(self.source.extra_columns))
            if clash:
                # No name of the set frees the column of the set that comes first.
                which = "the column of the source" if clash[0] == ACCEPTED_COLUMN else "one of them"
                raise ValueError(
                    f"label set {label_set.name!r} would fill the column {clash[0]!r}, which the source has "
                    f"too: rename {which}"
                )
        self._check_head_columns()
        self._check_policy()
        return self

    def _check_policy(self) -> None:
        if self.policy is None:
            if self.decisions is not None:
                raise ValueError("decisions are recorded of jobs with a policy only")
            return
        if self.label_set_column is not None:
            raise ValueError("a policy uses all its label sets on every item: leave the label set column out")
        if self.policy.is_dry and self.decisions is not None:
            raise ValueError("the decisions of a dry run are not recorded")
        for problem in rule_problems(self.policy.rules, self.label_sets, self.heads):
            raise ValueError(problem)
        if any(not one.has_thresholds or len(one.labels) > self.top_k for one in self.label_sets):
            raise ValueError("a policy needs the score of every label, and no softmax")
        clash = sorted({*DECISION_COLUMNS, *self.head_scores_columns} & {*self.source.extra_columns})
        if clash:
            raise ValueError(
                f"the policy would fill the column {clash[0]!r}, which the source has too: rename that"
            )

    def _check_task(self) -> None:
        if self.label_sets and self.task is not Task.CLASSIFY:
            raise ValueError("a job that embeds must not have a label set")
        if self.task is Task.CLASSIFY and not (self.label_sets or self.heads):
            raise ValueError("a classify job needs a label set or a head")
        if self.vectors is not None and self.task is not Task.CLASSIFY:
            raise ValueError("a job over stored vectors labels them: it does not embed")
        if self.heads and self.task is Task.EMBED_TEXT:
            raise ValueError("heads are for images: a job that embeds texts must not have one")
        if self.store is not None and (self.task is not Task.EMBED or self.output_is_redis):
            raise ValueError("a job that fills a store embeds images, and its output is beside the store")
        for what, names in {
            "label sets": [label_set.name for label_set in self.label_sets],
            "heads": [head.name for head in self.heads],
        }.items():
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"two {what} are named {twice[0]!r}: rename one of them")

    def _check_head_columns(self) -> None:
        ours = {name for one in self.named_label_sets for name in label_columns(one.name)}
        ours |= {*self.accepted_columns, *self.source.extra_columns}
        for head in self.heads:
            clash = ours.intersection(head.columns)
            if clash:
                raise ValueError(
                    f"head {head.name!r} would fill the column {min(clash)!r}, which is there already: "
                    "rename one of them"
                )
            ours.update(head.columns)

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options newer than version 1 at their defaults: older workers refuse unknown keys."""
        found: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in found.items()
            if name not in _SINCE_VERSION_1 or getattr(self, name) != _SINCE_VERSION_1[name]
        }

    def _check_column(self, name: str, purpose: str) -> None:
        columns = self.source.extra_columns
        if name not in columns:
            raise ValueError(
                f"the source has no column {name!r} {purpose}; it has {', '.join(columns) or 'none at all'}"
            )

    @property
    def output_is_redis(self) -> bool:
        """Whether the results are stored in the ledger's Redis."""
        return self.output == REDIS_OUTPUT

    @property
    def announces_decisions(self) -> bool:
        """Whether its decisions are recorded and announced, beside its rows."""
        return self.policy is not None and not self.policy.is_dry

    @property
    def keeps_embeddings(self) -> bool:
        """Whether the parts contain embeddings."""
        return self.store_embeddings or self.task is not Task.CLASSIFY

    @property
    def has_embedding_column(self) -> bool:
        """Whether its rows have the column `embedding`: in Redis, and at first, even without vectors."""
        is_old = self.schema_version < FIRST_WITH_DATA_FOLDER
        return self.keeps_embeddings or self.output_is_redis or is_old

    @property
    def named_label_sets(self) -> tuple[LabelSet, ...]:
        """Label sets with their own columns: all of them, if several are used on every item; else none.

        `label`, `score`, `labels` and `scores` are of the first set, or of the one that the item names.
        """
        return self.label_sets if self.label_set_column is None and len(self.label_sets) > 1 else ()

    @property
    def accepted_columns(self) -> tuple[str, ...]:
        """Columns with the labels that a label set with thresholds accepts, in the order of the sets.

        `accepted` is that of the first set, or of the one that the item names; null if it has no thresholds.
        """
        return tuple(
            dict.fromkeys(name for one in self.label_sets for name in self._accepted_columns_of(one))
        )

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Columns of label sets, heads and the policy, which not every job has, in the order of a part."""
        of_sets = (name for one in self.named_label_sets for name in label_columns(one.name))
        of_heads = (name for head in self.heads for name in head.columns)
        decision = () if self.policy is None else DECISION_COLUMNS
        found = [*self.accepted_columns, *of_sets, *of_heads, *self.head_scores_columns, *decision]
        return tuple(dict.fromkeys(found))

    @property
    def head_scores_columns(self) -> tuple[str, ...]:
        """Columns with all scores of a head: of a job with a policy, for heads with several labels."""
        if self.policy is None:
            return ()
        some = (head for head in self.heads if head.head.kind is not HeadKind.REGRESS)
        return tuple(head_scores_column(head.name) for head in some)

    def _accepted_columns_of(self, label_set: LabelSet) -> list[str]:
        if not label_set.has_thresholds:
            return []
        is_first = label_set is self.label_sets[0] or self.label_set_column is not None
        own = [accepted_column(label_set.name)] if self.named_label_sets else []
        return [ACCEPTED_COLUMN, *own] if is_first else own

    def identity(self) -> dict[str, Any]:
        """Everything that the rows depend on: neither the lane nor the error rate."""
        unlike = {
            "schema_version", "job_id", "created_at", "lane", "max_error_rate", "on_finished",
            "on_finished_queue",
        }  # fmt: skip
        found = self.model_dump(mode="json", exclude=unlike)
        for label_set in found["label_sets"]:
            for name in ("groups", "promises", "certificates"):  # no row depends on them
                label_set.pop(name, None)
        if self.heads:
            found["heads"] = [[head.name, head.sha256] for head in self.heads]
        if self.store is not None:  # other jobs may commit before a killed submit resumes
            for name in ("base_version", "listed_at", "same", "left"):
                found["store"].pop(name, None)
        return found

    @property
    def fingerprint(self) -> str:
        """Short hash of `identity()`."""
        return short_hash(self.identity())

    def is_same(self, other: Job) -> bool:
        """Whether both have the same id and fingerprint, as a repeated submit has."""
        return (self.job_id, self.fingerprint) == (other.job_id, other.fingerprint)

    def differences(self, other: Job) -> list[str]:
        """Names of the entries of `identity()` that differ, for example `["model", "top_k"]`."""
        mine, theirs = self.identity(), other.identity()
        return [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]


def is_queue_of_users(name: str) -> bool:
    """Whether a name is a valid Celery queue for users, not a key of clipfleet or kombu."""
    return bool(re.fullmatch(CELERY_NAME_PATTERN, name)) and not _RESERVED_QUEUES.fullmatch(name)


def read_job(text: str | bytes) -> Job:
    """Parse what `Job.model_dump_json` wrote.

    Raises:
        JobTooNewError: a newer version wrote it.
        JobUnreadableError: an unsupported older version wrote it, or it is not a job.
    """
    try:
        version = json.loads(text)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise JobUnreadableError("not the description of a job") from None
    if version not in READABLE_SCHEMA_VERSIONS:
        is_newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise (JobTooNewError if is_newer else JobUnreadableError)(
            f"the job has schema version {version}, this clipfleet reads {min(READABLE_SCHEMA_VERSIONS)} to "
            f"{max(READABLE_SCHEMA_VERSIONS)}: update it"
        )
    try:
        return Job.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise JobUnreadableError(
            f"not the description of a job ({counted(error.error_count(), 'problem')}, "
            f"the first in {where!r})"
        ) from None


def new_job_id() -> str:
    """Generate a job id that sorts by day: `20261124-3f9a1c2b7d4e`."""
    return f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(6)}"
