"""The columns of a store's datasets, the hashes of ids and the digests of items. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import VectorType
from clipfleet.contract.parts import embedding_field

if TYPE_CHECKING:
    import numpy as np

TIME_TYPE = pa.timestamp("us", "UTC")
_BEFORE_THE_VECTOR = (
    pa.field("item_id", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("version", pa.string()),  # as the source lists it: size and ETag, size and mtime
    pa.field("etag", pa.string()),  # of the HTTP answer, like the next one
    pa.field("last_modified", pa.string()),
    pa.field("content_hash", pa.string()),
    pa.field("size_bytes", pa.int64()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("embedded_at", TIME_TYPE),  # when the job was submitted that made the vector
    pa.field("listed_at", TIME_TYPE, nullable=False),  # when the listing began that the row is of
    pa.field("gone_at", TIME_TYPE),  # null: the source has the item
    pa.field("digest", pa.int64(), nullable=False),  # see `digests`
)
PRESENT = "gone_at IS NULL"  # the condition of rows whose items the source has
VECTOR_COLUMN = "embedding"
OWN_COLUMNS = (*(field.name for field in _BEFORE_THE_VECTOR), VECTOR_COLUMN)  # the others are the source's
# Names that Lance gives columns of its own, and that results of a search add.
SIMILARITY = "similarity"
_RESERVED = (
    SIMILARITY, "query_index", "_distance", "_score", "_rowid", "_rowaddr", "_rowoffset",
    "_row_created_at_version", "_row_last_updated_at_version",
)  # fmt: skip

_SEPARATOR, _NULL = "\x1f", "\x1e"


def store_schema(dimension: int, extra_fields: Sequence[pa.Field[Any]] = ()) -> pa.Schema:
    """Schema of a dataset; `extra_fields` are the source's columns, renamed by `store_column_name`."""
    vector = embedding_field(dimension, VectorType.FLOAT16)
    return pa.schema([*_BEFORE_THE_VECTOR, vector.with_nullable(False), *extra_fields])


def store_column_name(name: str) -> str:
    """Name of a source's column in a dataset: unchanged, or `source_<name>` if it clashes with another."""
    return f"source_{name}" if name in (*OWN_COLUMNS, *_RESERVED) else name


def id_hashes(ids: pa.Array) -> np.ndarray:
    """64 bits of the hash of each id, uint64. Two of 10 million clash by chance once in 370,000 nights."""
    return wide_id_hashes(ids)[:, 0]


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Type of a source's column in a dataset: one without any value may have texts one day."""
    return pa.string() if pa.types.is_null(kind) else kind


def wide_id_hashes(ids: pa.Array) -> np.ndarray:
    """128 bits of the hash of each id, uint64 (ids, 2): no two of any number clash."""
    import numpy as np

    raw = b"".join(blake2b(one.encode(), digest_size=16).digest() for one in ids.to_pylist())
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


def digests(items: pa.RecordBatch, columns: Sequence[str]) -> np.ndarray:
    """64 bits of the hash of these columns of each item and their names, int64; equal items have equal ones.

    Args:
        items: strings, numbers and lists of them; others as their text.
        columns: in any order.
    """
    import numpy as np

    names = sorted(columns)
    texts = pc.binary_join_element_wise(
        _SEPARATOR.join(names),
        *(_as_text(items[name]) for name in names),
        _SEPARATOR,
        null_handling="replace",
        null_replacement=_NULL,
    )
    raw = b"".join(blake2b(one, digest_size=8).digest() for one in texts.cast(pa.binary()).to_pylist())
    return np.frombuffer(raw, np.int64)


def _as_text(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type):
        return values
    if pa.types.is_nested(values.type):
        return pa.array([None if one is None else repr(one) for one in values.to_pylist()], pa.string())
    return pc.cast(values, pa.string())
