"""Turns outcomes into the rows of a part: one row per item, in item order, including failures."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import (
    ACCEPTED_COLUMN,
    LABEL_COLUMNS,
    VectorType,
    accepted_column,
    label_columns,
)
from clipfleet.contract.jobs import ItemError
from clipfleet.contract.parts import (
    ACCEPTED_TYPE,
    INLINE_COLUMN,
    ITEM_COLUMNS,
    LABEL_TYPES,
    UNKNOWN_DIMENSION,
    ItemStatus,
    part_schema,
)
from clipfleet.sources.uris import without_userinfo
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.score.labelling import ChunkLabels, ItemLabels


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
    labels: ChunkLabels | None = None,
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
        labels: None: there are no labels.
    """
    staged_only = {*ITEM_COLUMNS, INLINE_COLUMN}
    extra = [items.schema.field(name) for name in items.schema.names if name not in staged_only]
    dimension = embedding_dimension or UNKNOWN_DIMENSION if has_embedding_column else None
    schema = part_schema(dimension, extra, label_set_names, vector_type, accepted_columns)
    ok = pa.array([feature is not None for feature in outcomes.features], pa.bool_())
    codes, details = _error_columns(outcomes.errors)
    columns: dict[str, pa.Array] = {
        "item_index": items["item_index"].combine_chunks(),
        "item_id": items["item_id"].combine_chunks(),
        "uri": _without_userinfo(items["uri"].combine_chunks()),
        "status": pc.if_else(ok, ItemStatus.OK.value, ItemStatus.FAILED.value),
        "error_code": codes,
        "error_detail": details,
        **_all_label_columns(items.num_rows, label_set_names, labels),
        "width": pa.array(outcomes.widths, pa.int32()),
        "height": pa.array(outcomes.heights, pa.int32()),
        "content_hash": pa.array(outcomes.content_hashes, pa.string()),
        "model_fingerprint": pc.if_else(ok, pa.scalar(model_fingerprint, pa.string()), None),
        **{field.name: items[field.name].combine_chunks() for field in extra},
    }
    if has_embedding_column:
        kind = schema.field("embedding").type
        columns["embedding"] = _embeddings(outcomes.features, kind, store_embeddings)
    return pa.table([columns[name] for name in schema.names], schema=schema)


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


def _all_label_columns(
    count: int, label_set_names: Sequence[str], labels: ChunkLabels | None
) -> dict[str, pa.Array]:
    nothing = ItemLabels(count)
    by_columns: dict[tuple[str, ...], ItemLabels] = {
        (*LABEL_COLUMNS, ACCEPTED_COLUMN): labels.chosen if labels else nothing
    }
    for name in label_set_names:
        columns = (*label_columns(name), accepted_column(name))
        by_columns[columns] = labels.by_set[name] if labels else nothing
    return {
        column: array
        for columns, item_labels in by_columns.items()
        for column, array in zip(columns, _label_arrays(item_labels), strict=True)
    }


def _label_arrays(one: ItemLabels) -> list[pa.Array]:
    """The columns of a label set; the last one is only in parts of sets with thresholds."""
    values = (one.best, one.best_scores, one.labels, one.scores, one.accepted)
    return [pa.array(value, kind) for value, kind in zip(values, (*LABEL_TYPES, ACCEPTED_TYPE), strict=True)]


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
