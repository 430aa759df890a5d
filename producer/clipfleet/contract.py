"""What producer and worker agree on: jobs, label sets, error codes, the schema of a part.

Frozen data and pure functions only, no I/O. A worker reads `SCHEMA_VERSION` and the version before it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1
READABLE_SCHEMA_VERSIONS = (SCHEMA_VERSION, SCHEMA_VERSION - 1)

MAX_CHUNK_SIZE = 4096
DEFAULT_CHUNK_SIZE = 512
DEFAULT_MODEL = "ViT-B-32:datacomp_xl_s13b_b90k"
DEMO_MODEL = "demo"
DEFAULT_TEMPLATE = "a photo of a {}"

JOB_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Task(StrEnum):
    """What is done with every image."""

    CLASSIFY = "classify"
    EMBED = "embed"


class Lane(StrEnum):
    """Priority of a job, best first."""

    HIGH = "high"
    NORMAL = "normal"
    BULK = "bulk"


class Precision(StrEnum):
    """Arithmetic of the forward pass. `auto`: bf16 where the device has it in hardware, else fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class DecodeRoute(StrEnum):
    """`fast`: scaled JPEG decoding, a few grey levels off; `exact`: open_clip's own transform."""

    FAST = "fast"
    EXACT = "exact"


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
        """True once nothing more will happen to the job by itself."""
        return self in _FINAL_STATES


_FINAL_STATES = frozenset(
    {JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS, JobState.CANCELLED, JobState.FAILED}
)


class ItemStatus(StrEnum):
    """Column `status` of a part."""

    OK = "ok"
    FAILED = "failed"


class ErrorCode(StrEnum):
    """Why a row has `status=failed`. A closed set: columns, metrics and documentation use these words."""

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

    @property
    def retryable(self) -> bool:
        """True where the same item may succeed later without anybody changing it."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        ErrorCode.RATE_LIMITED,
        ErrorCode.SERVER_ERROR,
        ErrorCode.DNS_FAILED,
        ErrorCode.CONNECT_FAILED,
        ErrorCode.TLS_FAILED,
        ErrorCode.TIMEOUT,
        ErrorCode.INCOMPLETE_BODY,
        ErrorCode.DECODE_TIMEOUT,
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.MODEL_UNAVAILABLE,
        ErrorCode.OUTPUT_UNREACHABLE,
        ErrorCode.CHUNK_FAILED,
    }
)


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one item failed: the code, and one line for people (no secrets, at most 300 characters)."""

    code: ErrorCode
    detail: str


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelSet(_Frozen):
    """Labels and the prompt templates that are averaged for each of them (open_clip's ensembling)."""

    labels: tuple[str, ...] = Field(min_length=1)
    templates: tuple[str, ...] = Field(default=(DEFAULT_TEMPLATE,), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        blank = [position for position, label in enumerate(self.labels) if not label.strip()]
        if blank:
            raise ValueError(f"label number {blank[0] + 1} is empty")
        seen: set[str] = set()
        for label in self.labels:
            if label in seen:
                raise ValueError(f"label {label!r} appears twice")
            seen.add(label)
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"template {template!r} must contain {{}} exactly once, where the label goes"
                )
        return self

    @property
    def hash(self) -> str:
        """Short name of this label set; equal content gives the equal hash on every machine."""
        return short_hash([list(self.labels), list(self.templates)])

    def prompts(self) -> list[str]:
        """All prompts, label by label: `prompts()[i * len(templates) + j]` is label i in template j."""
        return [template.replace("{}", label) for label in self.labels for template in self.templates]


class SourceDescription(_Frozen):
    """What a source is, as far as it can be told without reading it through."""

    kind: str  # folder, glob, txt, csv
    uri: str  # absolute path or pattern
    options: dict[str, str] = Field(default_factory=dict)  # what changes the meaning: columns, size, mtime
    extra_columns: tuple[str, ...] = ()  # the source's own columns that are carried into the parts


class Job(_Frozen):
    """One submission. `_clipfleet/job.json` of an output holds exactly this."""

    schema_version: int = SCHEMA_VERSION
    job_id: Annotated[str, Field(pattern=JOB_ID_PATTERN)]
    task: Task
    model: str
    precision: Precision = Precision.AUTO
    decode: DecodeRoute = DecodeRoute.FAST
    label_set: LabelSet | None = None
    top_k: Annotated[int, Field(ge=1)] = 5
    lane: Lane = Lane.NORMAL
    chunk_size: Annotated[int, Field(ge=1, le=MAX_CHUNK_SIZE)] = DEFAULT_CHUNK_SIZE
    source: SourceDescription
    output: str  # absolute path of a folder
    created_at: datetime

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.task is Task.CLASSIFY) != (self.label_set is not None):
            raise ValueError("a classify job needs a label set, an embed job has none")
        return self

    def identity(self) -> dict[str, Any]:
        """What makes two jobs the same: everything but the id, the time, the lane and the versions."""
        return self.model_dump(mode="json", exclude={"schema_version", "job_id", "created_at", "lane"})

    @property
    def fingerprint(self) -> str:
        """Short hash of `identity()`."""
        return short_hash(self.identity())

    def differences(self, other: Job) -> list[str]:
        """Names of the parts of `identity()` in which the two jobs differ, e.g. `["model", "top_k"]`."""
        mine, theirs = self.identity(), other.identity()
        return [name for name in mine if mine[name] != theirs.get(name)]


@dataclass(frozen=True, slots=True)
class PartIdentity:
    """Whose part it is, as its footer says; a part is adopted only if all three fit the claim."""

    job_id: str
    chunk_id: int
    generation: int


@dataclass(frozen=True, slots=True)
class PartCounts:
    """Rows of one part by outcome."""

    ok: int
    failed: int
    codes: Mapping[str, int]  # failed rows by error code


def part_footer(identity: PartIdentity, counts: PartCounts) -> dict[str, str]:
    """What the footer of a part says, beside its schema."""
    return {
        "job_id": identity.job_id,
        "chunk_id": str(identity.chunk_id),
        "generation": str(identity.generation),
        "ok": str(counts.ok),
        "failed": str(counts.failed),
        "codes": json.dumps(dict(counts.codes)),
        "schema_version": str(SCHEMA_VERSION),
    }


def read_part_footer(entries: Mapping[str, str]) -> tuple[PartIdentity, PartCounts]:
    """The inverse of `part_footer`.

    Raises:
        ValueError: these are not the entries of a part.
    """
    try:
        identity = PartIdentity(entries["job_id"], int(entries["chunk_id"]), int(entries["generation"]))
        codes = {str(code): int(count) for code, count in json.loads(entries["codes"]).items()}
        return identity, PartCounts(int(entries["ok"]), int(entries["failed"]), codes)
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"no footer of a part: {error!r}") from error


PART_COLUMNS = (
    "item_index",
    "item_id",
    "uri",
    "status",
    "error_code",
    "error_detail",
    "label",
    "score",
    "labels",
    "scores",
    "embedding",
    "width",
    "height",
    "content_hash",
    "model_fingerprint",
)


def part_schema(embedding_dimension: int, extra_fields: list[pa.Field[Any]] | None = None) -> pa.Schema:
    """Schema of the parts of one job.

    Args:
        embedding_dimension: length of a vector; the parts of a job agree on it even if all vectors are null.
        extra_fields: the source's own columns, already renamed by `extra_column_name`.
    """
    embedding = pa.list_(pa.float16(), embedding_dimension)
    return pa.schema(
        [
            pa.field("item_index", pa.int64(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error_code", pa.string()),
            pa.field("error_detail", pa.string()),
            pa.field("label", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("labels", pa.list_(pa.string())),
            pa.field("scores", pa.list_(pa.float32())),
            pa.field("embedding", embedding),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("content_hash", pa.string()),
            pa.field("model_fingerprint", pa.string()),
            *(extra_fields or []),
        ]
    )


ITEM_COLUMNS = ("item_index", "item_id", "uri")


def extra_column_name(name: str) -> str:
    """Name in the parts of a source's own column: unchanged, or `source_<name>` where ours has that name."""
    return f"source_{name}" if name in PART_COLUMNS else name


def short_hash(value: object) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def new_job_id() -> str:
    """A fresh job id that sorts by day: `20261124-3f9a1c2b7d4e`."""
    return f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(6)}"


_LOCAL_MODEL = re.compile(r"^(hf-hub|local-dir):.+")


def normalise_model(name: str) -> str:
    """The full name of a model as given by a user.

    `ViT-B-32` alone means the default weights; any other architecture must name its weights, since open_clip
    would otherwise fill it with random numbers.

    Raises:
        ValueError: the name does not say which weights are meant.
    """
    name = name.strip()
    if name in (DEMO_MODEL, DEFAULT_MODEL) or _LOCAL_MODEL.match(name):
        return name
    architecture, colon, pretrained = name.partition(":")
    if name == DEFAULT_MODEL.partition(":")[0]:
        return DEFAULT_MODEL
    if not (architecture and colon and pretrained):
        raise ValueError(
            f"model {name!r} does not say which weights: write NAME:PRETRAINED "
            f"(for example {DEFAULT_MODEL}), hf-hub:ORG/REPOSITORY, local-dir:PATH or {DEMO_MODEL}"
        )
    return name
