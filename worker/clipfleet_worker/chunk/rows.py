"""Turns outcomes into the rows of a part: one row per item, in item order, including failures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import VectorType
from clipfleet.contract.heads import JobHead
from clipfleet.contract.jobs import ItemError, Job
from clipfleet.contract.parts import (
    INLINE_COLUMN,
    ITEM_COLUMNS,
    PART_COLUMNS,
    UNKNOWN_DIMENSION,
    ItemStatus,
    part_schema,
)
from clipfleet.contract.stores import (
    DIGEST,
    IS_COPIED,
    KNOWN_ETAG,
    KNOWN_LAST_MODIFIED,
    LISTED_VERSION,
    SIZE_BYTES,
    STORE_COLUMNS,
)
from clipfleet.results.vector_ranges import VECTORS_COLUMN
from clipfleet.sources.uris import without_userinfo
from clipfleet_worker.chunk.stored_items import StoredItems
from clipfleet_worker.outcomes import Outcomes, Validators


def part_table(
    items: pa.Table,
    outcomes: Outcomes,
    *,
    embedding_dimension: int | None,
    model_fingerprint: str | None,
    store_embeddings: bool,
    has_embedding_column: bool = True,
    vector_type: VectorType = VectorType.FLOAT16,
    label_set_names: Sequence[str] = (),
    accepted_columns: Collection[str] = (),
    heads: Sequence[JobHead] = (),
    labels: Mapping[str, pa.Array] | None = None,
    head_scores: Sequence[str] = (),
    has_decisions: bool = False,
    fills_a_store: bool = False,
) -> pa.Table:
    """Build the rows of one part.

    Args:
        items: the staged chunk; the source's own columns have their final names.
        outcomes: of the items, which must all have ended.
        embedding_dimension: None: unknown.
        model_fingerprint: None: no model was loaded.
        store_embeddings: whether the part has the vectors.
        has_embedding_column: whether it has their column; it has where there are vectors.
        vector_type: of the numbers of a vector.
        label_set_names: of the label sets that have their own columns.
        accepted_columns: see `Job.accepted_columns`.
        heads: of the job.
        labels: the columns of label sets and heads by name, see `label_items`; None: there are no labels.
        head_scores: see `Job.head_scores_columns`.
        has_decisions: see `Job.policy`; the columns are null here.
        fills_a_store: see `Job.store`.
    """
    staged_only = {*ITEM_COLUMNS, INLINE_COLUMN, *(STORE_COLUMNS if fills_a_store else ())}
    extra = [items.schema.field(name) for name in items.schema.names if name not in staged_only]
    dimension = embedding_dimension or UNKNOWN_DIMENSION if has_embedding_column else None
    schema = part_schema(
        dimension, extra, label_set_names, vector_type, accepted_columns, heads,
        head_scores=head_scores, has_decisions=has_decisions, fills_a_store=fills_a_store,
    )  # fmt: skip
    columns = {
        **_common_columns(items, outcomes, model_fingerprint),
        **(labels or {}),
        **{field.name: items[field.name].combine_chunks() for field in extra},
        **(_store_columns(items, outcomes) if fills_a_store else {}),
    }
    if has_embedding_column:
        kind = schema.field("embedding").type
        columns["embedding"] = _embeddings(outcomes.features, kind, store_embeddings)
    return _table(columns, schema)


def _common_columns(
    items: pa.Table, outcomes: Outcomes, model_fingerprint: str | None
) -> dict[str, pa.Array]:
    """The columns that depend on neither labels nor the source."""
    ok = pa.array([feature is not None for feature in outcomes.features], pa.bool_())
    codes, details = _error_columns(outcomes.errors)
    return {
        "item_index": items["item_index"].combine_chunks(),
        "item_id": items["item_id"].combine_chunks(),
        "uri": _without_userinfo(items["uri"].combine_chunks()),
        "status": _statuses(ok, outcomes.same),
        "error_code": codes,
        "error_detail": details,
        "width": pa.array(outcomes.widths, pa.int32()),
        "height": pa.array(outcomes.heights, pa.int32()),
        "content_hash": pa.array(outcomes.content_hashes, pa.string()),
        "model_fingerprint": pc.if_else(ok, pa.scalar(model_fingerprint, pa.string()), None),
    }


def _store_columns(items: pa.Table, outcomes: Outcomes) -> dict[str, pa.Array]:
    """The columns of a job that fills a store; validators of the answers, not those that were known."""
    found = [outcomes.validators.get(position, Validators()) for position in range(items.num_rows)]
    is_copied = [position in outcomes.copied for position in range(items.num_rows)]
    return {
        **{name: items[name].combine_chunks() for name in (LISTED_VERSION, DIGEST)},
        KNOWN_ETAG: pa.array([one.etag or None for one in found], pa.string()),
        KNOWN_LAST_MODIFIED: pa.array([one.last_modified or None for one in found], pa.string()),
        SIZE_BYTES: pa.array(outcomes.sizes_bytes, pa.int64()),
        IS_COPIED: pa.array(is_copied, pa.bool_()),
    }


def stored_part_table(items: StoredItems, job: Job, labels: Mapping[str, pa.Array] | None = None) -> pa.Table:
    """Build the rows of one part of a job over stored vectors; what the rows had stays but for their labels.

    Args:
        items: with their outcomes.
        job: theirs.
        labels: see `part_table`.
    """
    rows, ok = items.rows, items.ok
    extra = [rows.schema.field(name) for name in rows.schema.names if name not in PART_COLUMNS]
    dimension = items.vectors.dimension if job.has_embedding_column else None
    label_set_names = [label_set.name for label_set in job.named_label_sets]
    schema = part_schema(
        dimension, extra, label_set_names, job.vector_type, job.accepted_columns, job.heads,
        head_scores=job.head_scores_columns, has_decisions=job.policy is not None,
    )  # fmt: skip
    columns: dict[str, pa.Array] = {
        **{name: rows[name].combine_chunks() for name in rows.schema.names if name != VECTORS_COLUMN},
        "status": _statuses(ok),
        "error_code": items.error_codes,
        "error_detail": items.error_details,
        "model_fingerprint": pc.if_else(ok, rows["model_fingerprint"].combine_chunks(), None),
        **(labels or {}),
    }
    if job.keeps_embeddings and VECTORS_COLUMN in rows.schema.names:
        columns["embedding"] = _copied_vectors(items, schema.field("embedding").type)
    return _table(columns, schema)


def _table(columns: Mapping[str, pa.Array], schema: pa.Schema) -> pa.Table:
    """A table in the order of the schema; columns that are not there are null."""
    rows = len(columns["item_index"])
    found = [columns[field.name] if field.name in columns else pa.nulls(rows, field.type) for field in schema]
    return pa.table(found, schema=schema)


def _statuses(ok: pa.Array, same: Collection[int] = ()) -> pa.Array:
    statuses = pc.if_else(ok, ItemStatus.OK.value, ItemStatus.FAILED.value)
    if not same:
        return statuses
    is_same = pa.array([position in same for position in range(len(statuses))])
    return pc.if_else(is_same, ItemStatus.SAME.value, statuses)


def _copied_vectors(items: StoredItems, kind: pa.DataType) -> pa.Array:
    """The vectors of the rows that are ok, as they were stored, in the type of the job."""
    column = items.rows[VECTORS_COLUMN].combine_chunks()
    if len(items.features.positions) < len(column):
        places = np.arange(len(column))
        column = column.take(pa.array(places, mask=~items.ok.to_numpy(zero_copy_only=False)))
    if column.type.equals(kind):
        return column
    if column.null_count == len(column):
        return pa.nulls(len(column), kind)
    return column.cast(kind)


def _error_columns(errors: Sequence[ItemError | None]) -> tuple[pa.Array, pa.Array]:
    """Codes and details."""
    if not any(errors):
        nothing = pa.nulls(len(errors), pa.string())
        return nothing, nothing
    codes = [error and error.code.value for error in errors]
    return pa.array(codes, pa.string()), pa.array([error and error.detail for error in errors], pa.string())


def _without_userinfo(uris: pa.Array) -> pa.Array:
    if not pc.any(pc.match_substring(uris, "@")).as_py():
        return uris
    return pa.array([without_userinfo(uri) for uri in uris.to_pylist()], pa.string())


def _embeddings(features: Sequence[np.ndarray | None], kind: pa.DataType, store: bool) -> pa.Array:
    present = [feature for feature in features if feature is not None]
    if not store or not present:
        return pa.nulls(len(features), kind)
    missing = np.array([feature is None for feature in features], dtype=bool)
    values = np.zeros((len(features), kind.list_size), dtype=kind.value_type.to_pandas_dtype())
    values[~missing] = np.concatenate(present).reshape(len(present), -1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), kind.list_size, mask=pa.array(missing)
    )
