"""What a part looks like: its columns, whose it is, what it counts. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

from clipfleet.versions import SCHEMA_VERSION


class ItemStatus(StrEnum):
    """Column `status` of a part."""

    OK = "ok"
    FAILED = "failed"


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


# Of `label`, `score`, `labels`, `scores`.
LABEL_TYPES = (pa.string(), pa.float32(), pa.list_(pa.string()), pa.list_(pa.float32()))


def label_columns(set_name: str) -> tuple[str, str, str, str]:
    """Columns of a label set's own, in the order of `label`, `score`, `labels`, `scores`."""
    return f"label_{set_name}", f"score_{set_name}", f"labels_{set_name}", f"scores_{set_name}"


def part_schema(
    embedding_dimension: int,
    extra_fields: Sequence[pa.Field[Any]] = (),
    named_label_sets: Sequence[str] = (),
) -> pa.Schema:
    """Schema of the parts of one job.

    Args:
        embedding_dimension: length of a vector; the parts of a job agree on it even if all vectors are null.
        extra_fields: the source's own columns, already renamed by `extra_column_name`.
        named_label_sets: names of the label sets with columns of their own, see `Job.named_label_sets`.
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
            *(
                pa.field(name, kind)
                for set_name in named_label_sets
                for name, kind in zip(label_columns(set_name), LABEL_TYPES, strict=True)
            ),
            *extra_fields,
        ]
    )


ITEM_COLUMNS = ("item_index", "item_id", "uri")
INLINE_COLUMN = "_bytes"  # of staged items: the image itself, where the source holds it; not in the parts


def extra_column_name(name: str) -> str:
    """Name in the parts of a source's own column: unchanged, or `source_<name>` where ours has that name."""
    return f"source_{name}" if name in PART_COLUMNS or name == INLINE_COLUMN else name
