"""From outcomes to the rows of a part: one row per item, in the order of the items, failures included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from clipfleet.contract import ITEM_COLUMNS, ItemError, ItemStatus, PartCounts, part_schema
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.scoring import Ranking

_UNKNOWN_DIMENSION = 1  # of a model that no worker could load: all vectors are null then


def part_table(
    items: pa.Table,
    outcomes: Outcomes,
    *,
    embedding_dimension: int | None,
    model_fingerprint: str | None,
    store_embeddings: bool,
    labels: Sequence[str] = (),
    ranking: Ranking | None = None,
) -> pa.Table:
    """The rows of one part.

    Args:
        items: the staged chunk, with the source's own columns already under their final names.
        outcomes: one per item; every item must have ended.
        embedding_dimension: None if it is not known.
        model_fingerprint: None if no model was loaded.
        store_embeddings: whether the vectors go into the part.
        labels: the label set's labels, for `ranking`.
        ranking: one row per item that is ok, in item order; None for a job without labels.
    """
    extra = [items.schema.field(name) for name in items.schema.names if name not in ITEM_COLUMNS]
    schema = part_schema(embedding_dimension or _UNKNOWN_DIMENSION, extra)
    ok = np.array([feature is not None for feature in outcomes.features], dtype=bool)
    errors = outcomes.errors
    columns: dict[str, pa.Array] = {
        "item_index": items["item_index"].combine_chunks(),
        "item_id": items["item_id"].combine_chunks(),
        "uri": pa.array([without_userinfo(uri) for uri in items["uri"].to_pylist()], pa.string()),
        "status": pa.array([ItemStatus.OK.value if good else ItemStatus.FAILED.value for good in ok]),
        "error_code": pa.array([error and error.code.value for error in errors], pa.string()),
        "error_detail": pa.array([error and error.detail for error in errors], pa.string()),
        **_label_columns(ok, labels, ranking),
        "embedding": _embeddings(outcomes.features, schema.field("embedding").type, store_embeddings),
        "width": pa.array(outcomes.widths, pa.int32()),
        "height": pa.array(outcomes.heights, pa.int32()),
        "content_hash": pa.array(outcomes.content_hashes, pa.string()),
        "model_fingerprint": pa.array([model_fingerprint if good else None for good in ok], pa.string()),
        **{field.name: items[field.name].combine_chunks() for field in extra},
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def failed_outcomes(count: int, error: ItemError) -> Outcomes:
    """Outcomes of a chunk that is given up: every item fails with the chunk's error."""
    outcomes = Outcomes(count)
    for position in range(count):
        outcomes.fail(position, error)
    return outcomes


def count_rows(outcomes: Outcomes) -> PartCounts:
    """Rows by outcome."""
    codes = Counter(error.code.value for error in outcomes.errors if error is not None)
    failed = sum(codes.values())
    return PartCounts(len(outcomes.errors) - failed, failed, dict(codes))


def without_userinfo(uri: str) -> str:
    """The URI without `user:password@`; other URIs as they are."""
    if "@" not in uri or "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        scheme, _, rest = uri.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def _label_columns(ok: np.ndarray, labels: Sequence[str], ranking: Ranking | None) -> dict[str, pa.Array]:
    if ranking is None:
        return {
            "label": pa.nulls(len(ok), pa.string()),
            "score": pa.nulls(len(ok), pa.float32()),
            "labels": pa.nulls(len(ok), pa.list_(pa.string())),
            "scores": pa.nulls(len(ok), pa.list_(pa.float32())),
        }
    rows = np.cumsum(ok) - 1  # item -> its row in the ranking
    names = [[labels[i] for i in ranked] for ranked in ranking.label_indices.tolist()]
    scores = ranking.scores.tolist()
    best = [names[row] if good else None for row, good in zip(rows, ok, strict=True)]
    best_scores = [scores[row] if good else None for row, good in zip(rows, ok, strict=True)]
    return {
        "label": pa.array([ranked and ranked[0] for ranked in best], pa.string()),
        "score": pa.array([ranked and ranked[0] for ranked in best_scores], pa.float32()),
        "labels": pa.array(best, pa.list_(pa.string())),
        "scores": pa.array(best_scores, pa.list_(pa.float32())),
    }


def _embeddings(features: Sequence[np.ndarray | None], kind: pa.DataType, store: bool) -> pa.Array:
    if not store or all(feature is None for feature in features):
        return pa.nulls(len(features), kind)
    missing = np.array([feature is None for feature in features], dtype=bool)
    values = np.zeros((len(features), kind.list_size), dtype=np.float16)
    values[~missing] = np.stack([feature for feature in features if feature is not None])
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), kind.list_size, mask=pa.array(missing)
    )
