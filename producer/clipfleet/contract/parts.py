"""Format of a part: its columns, identity and counts. No I/O."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import (
    ACCEPTED_COLUMN,
    DECISION_COLUMNS,
    LABEL_COLUMNS,
    VectorType,
    accepted_column,
    label_columns,
)
from clipfleet.contract.heads import JobHead
from clipfleet.contract.stores import (
    DIGEST,
    IS_COPIED,
    KNOWN_ETAG,
    KNOWN_HASH,
    KNOWN_LAST_MODIFIED,
    LISTED_VERSION,
    SIZE_BYTES,
    STORE_COLUMNS,
)
from clipfleet.contract.versions import FIRST_WITH_STORES
from clipfleet.errors import OutputConflictError


class ItemStatus(StrEnum):
    """Column `status` of a part."""

    OK = "ok"
    FAILED = "failed"
    SAME = "same"  # of a job that fills a store: the image is the one that the store has; without a vector


@dataclass(frozen=True, slots=True)
class PartIdentity:
    """Identity of a part, from its footer. A part is adopted only if all three match the claim."""

    job_id: str
    chunk_id: int
    generation: int

    def require(self, job_id: str, chunk_id: int, where: str) -> None:
        """Raise `OutputConflictError`, prefixed with `where`, unless it is the part of this chunk."""
        if (self.job_id, self.chunk_id) != (job_id, chunk_id):
            raise OutputConflictError(f"{where} belongs to job {self.job_id!r}, chunk {self.chunk_id}")


@dataclass(frozen=True, slots=True)
class PartCounts:
    """Rows of one part by outcome."""

    ok: int
    failed: int
    codes: Mapping[str, int]  # failed rows by error code
    same: int = 0  # of the ok ones: those whose image the store has already
    copied: int = 0  # of the ok ones: those whose vector the store has, of an equal image


_OF_STORES = ("same", "copied")


def part_footer(identity: PartIdentity, counts: PartCounts, schema_version: int) -> dict[str, str]:
    """Entries of the footer of a part of a job of this version, without its schema."""
    return {
        "job_id": identity.job_id,
        "chunk_id": str(identity.chunk_id),
        "generation": str(identity.generation),
        "ok": str(counts.ok),
        "failed": str(counts.failed),
        "codes": json.dumps(dict(counts.codes)),
        "schema_version": str(schema_version),
        **{name: str(getattr(counts, name)) for name in _OF_STORES if schema_version >= FIRST_WITH_STORES},
    }


def read_part_footer(entries: Mapping[str, str]) -> tuple[PartIdentity, PartCounts]:
    """Parse what `part_footer` returned.

    Raises:
        ValueError: the entries are not those of a part.
    """
    try:
        identity = PartIdentity(entries["job_id"], int(entries["chunk_id"]), int(entries["generation"]))
        codes = {str(code): int(count) for code, count in json.loads(entries["codes"]).items()}
        of_stores = (int(entries.get(name, 0)) for name in _OF_STORES)
        return identity, PartCounts(int(entries["ok"]), int(entries["failed"]), codes, *of_stores)
    except (KeyError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"not the footer of a part: {error!r}") from error


def count_rows(rows: pa.Table) -> PartCounts:
    """Count rows by outcome."""
    codes = Counter(rows["error_code"].drop_null().to_pylist())
    same = copied = 0
    if IS_COPIED in rows.schema.names:
        same = pc.sum(pc.equal(rows["status"], ItemStatus.SAME.value)).as_py() or 0
        copied = pc.sum(rows[IS_COPIED]).as_py() or 0
    return PartCounts(rows.num_rows - codes.total(), codes.total(), dict(codes), same, copied)


ITEM_COLUMNS = ("item_index", "item_id", "uri")
INLINE_COLUMN = "_bytes"  # of staged items: the image itself if the source contains it; not in parts
VERSION_COLUMN = "\0version"  # of a source's batches: size and ETag or mtime; not staged
# In the order of `LABEL_COLUMNS`.
LABEL_TYPES = (pa.string(), pa.float32(), pa.list_(pa.string()), pa.list_(pa.float32()))
ACCEPTED_TYPE = pa.list_(pa.string())
HEAD_TYPES = (pa.string(), pa.float32(), ACCEPTED_TYPE)  # of `JobHead.columns`
HEAD_SCORES_TYPE = pa.list_(pa.float32())
REASON_TYPE = pa.struct(
    [
        pa.field("rule", pa.string()),  # its name, or `rule 3`
        pa.field("action", pa.string()),  # of the rule; `undecided`: a score is missing
        pa.field("label_set", pa.string()),  # or
        pa.field("head", pa.string()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("threshold", pa.float64()),  # null: a head of kind classify chose the label
        pa.field("test", pa.string()),  # at_least, below or chosen
        pa.field("threshold_source", pa.string()),  # how well the threshold is proven
    ]
)
DECISION_TYPES = (pa.string(), pa.string(), pa.string(), pa.list_(REASON_TYPE))  # of `DECISION_COLUMNS`

KNOWN_FIELDS = (  # of the items of a store's job
    pa.field(LISTED_VERSION, pa.string()),
    pa.field(DIGEST, pa.int64()),
    *(pa.field(name, pa.string()) for name in (KNOWN_ETAG, KNOWN_LAST_MODIFIED, KNOWN_HASH)),
)
STORE_FIELDS = (  # of its rows
    *KNOWN_FIELDS[:4],
    pa.field(SIZE_BYTES, pa.int64()),
    pa.field(IS_COPIED, pa.bool_()),
)

UNKNOWN_DIMENSION = 1  # if all vectors are null and the model is unknown


def item_schema(extra_fields: Sequence[pa.Field[Any]] = ()) -> pa.Schema:
    """Schema of the batches of a source, and of staged files."""
    return pa.schema(
        [
            pa.field("item_index", pa.int64(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            *extra_fields,
        ]
    )


@dataclass(frozen=True, slots=True)
class PartRange:
    """Consecutive whole parts of an earlier job: the items of one chunk of a job over stored vectors."""

    item_index: int  # of its first row
    first_part: int  # position, from 0
    parts: int
    rows: int


_RANGE_COLUMNS = tuple(field.name for field in fields(PartRange))  # of a staged chunk of such a job


def range_batch(ranges: Sequence[PartRange]) -> pa.RecordBatch:
    """The batch of a source of ranges: one row per chunk, with the fields of `PartRange` as int64."""
    return pa.RecordBatch.from_pydict(
        {name: pa.array([getattr(one, name) for one in ranges], pa.int64()) for name in _RANGE_COLUMNS}
    )


def staged_ranges(items: pa.Table | pa.RecordBatch) -> list[PartRange]:
    """The ranges of staged rows, one of each chunk."""
    return [PartRange(**row) for row in items.select(_RANGE_COLUMNS).to_pylist()]


def holds_ranges(schema: pa.Schema) -> bool:
    """Whether staged rows are ranges: those of items have further columns, of these names or not."""
    return tuple(schema.names) == _RANGE_COLUMNS


def count_items(staged: pa.Table | pa.RecordBatch) -> int:
    """Count the items of staged rows: one per row, or as many as the ranges have rows."""
    return sum(staged["rows"].to_pylist()) if holds_ranges(staged.schema) else staged.num_rows


def embedding_field(dimension: int, vector_type: VectorType = VectorType.FLOAT16) -> pa.Field[Any]:
    """The column of the vectors."""
    number = pa.float32() if vector_type is VectorType.FLOAT32 else pa.float16()
    return pa.field("embedding", pa.list_(number, dimension))


def part_schema(
    embedding_dimension: int | None,
    extra_fields: Sequence[pa.Field[Any]] = (),
    named_label_sets: Sequence[str] = (),
    vector_type: VectorType = VectorType.FLOAT16,
    accepted_columns: Collection[str] = (),
    heads: Sequence[JobHead] = (),
    *,
    head_scores: Sequence[str] = (),
    has_decisions: bool = False,
    fills_a_store: bool = False,
) -> pa.Schema:
    """Schema of the parts of one job.

    Args:
        embedding_dimension: length of a vector, the same in all parts of a job even if all vectors are null;
            None: the job keeps no vectors.
        extra_fields: columns of the source, already renamed by `extra_column_name`.
        named_label_sets: label sets with their own columns, see `Job.named_label_sets`.
        vector_type: of the numbers of a vector.
        accepted_columns: see `Job.accepted_columns`.
        heads: of the job.
        head_scores: see `Job.head_scores_columns`.
        has_decisions: see `Job.policy`.
        fills_a_store: see `Job.store`.
    """
    embedding = [] if embedding_dimension is None else [embedding_field(embedding_dimension, vector_type)]
    return pa.schema(
        [
            *item_schema(),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error_code", pa.string()),
            pa.field("error_detail", pa.string()),
            *_label_fields(LABEL_COLUMNS, ACCEPTED_COLUMN, accepted_columns),
            *embedding,
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("content_hash", pa.string()),
            pa.field("model_fingerprint", pa.string()),
            *(
                field
                for set_name in named_label_sets
                for field in _label_fields(
                    label_columns(set_name), accepted_column(set_name), accepted_columns
                )
            ),
            *(pa.field(*column) for head in heads for column in zip(head.columns, HEAD_TYPES, strict=False)),
            *(pa.field(name, HEAD_SCORES_TYPE) for name in head_scores),
            *(map(pa.field, DECISION_COLUMNS, DECISION_TYPES) if has_decisions else ()),
            *(STORE_FIELDS if fills_a_store else ()),
            *extra_fields,
        ]
    )


def _label_fields(
    names: Sequence[str], accepted: str, accepted_columns: Collection[str]
) -> list[pa.Field[Any]]:
    """The columns of one label set."""
    fields = [*map(pa.field, names, LABEL_TYPES)]
    return [*fields, pa.field(accepted, ACCEPTED_TYPE)] if accepted in accepted_columns else fields


PART_COLUMNS = tuple(part_schema(UNKNOWN_DIMENSION).names)  # of every part of any job


_TAKEN = {*PART_COLUMNS, INLINE_COLUMN, VERSION_COLUMN, *STORE_COLUMNS}


def extra_column_name(name: str) -> str:
    """Name of a source's column in the parts: unchanged, or `source_<name>` if it clashes with ours."""
    return f"source_{name}" if name in _TAKEN else name
