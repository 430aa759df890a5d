"""Datasets of stores with rows as a commit writes them, and sources of items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.parts import VERSION_COLUMN
from clipfleet.contract.stores import LISTED_VERSION
from clipfleet.sources.batches import item_batch
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import EmbeddedBy, StorePlace, store_place
from clipfleet.store.rows import digests, store_schema

DIMENSION = 4
FINGERPRINT = "0123456789abcdef"
LISTED_AT = datetime(2026, 11, 1, tzinfo=UTC)
NO_ADDRESSES = np.empty(0, np.uint64)


def item(item_id: str, version: str | None = "5 v1", **values: Any) -> dict[str, Any]:
    """An item of a source that lists versions; its URI follows from its id."""
    return {"item_id": item_id, "uri": f"s3://bucket/{item_id}", "version": version, **values}


class ListedItems:
    """A source of `item`s, in batches of so many."""

    def __init__(self, items: Sequence[Mapping[str, Any]], batch_size: int = 3) -> None:
        self._items = items
        self._size = batch_size
        self._own = [
            name for name in (items[0] if items else ()) if name not in ("item_id", "uri", "version")
        ]
        self.description = SourceDescription(kind="test", uri="/list", extra_columns=tuple(self._own))

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self._items), self._size):
            some = pa.Table.from_pylist([*self._items[start : start + self._size]])
            columns = {name: some[name].combine_chunks() for name in self._own}
            columns[VERSION_COLUMN] = some["version"].combine_chunks().cast(pa.string())
            yield item_batch(start, some["item_id"].combine_chunks(), some["uri"].combine_chunks(), columns)


def stored_rows(
    items: Sequence[Mapping[str, Any]], *, vectors: Sequence[Sequence[float]] = (), **values: Any
) -> pa.Table:
    """Rows of these items as the store has them, all embedded; `values` of columns for all of them."""
    vectors = vectors or [[1.0, number, 0.0, 0.0] for number in range(len(items))]
    named = {"item_id", "uri", "version"}
    own = [name for name in items[0] if name not in named]
    listed = pa.RecordBatch.from_pylist([{**one} for one in items])
    typed = [pa.field(name, listed.schema.field(name).type) for name in own]
    if pa.types.is_null(listed.schema.field("version").type):
        listed = listed.set_column(2, "version", pa.nulls(len(items), pa.string()))
    listed = listed.append_column(LISTED_VERSION, listed["version"])
    digest = digests(listed, ["item_id", "uri", LISTED_VERSION, *own]).tolist()
    rows = [
        {
            **one, "digest": digest[number], "listed_at": LISTED_AT, "embedded_at": LISTED_AT,
            "content_hash": f"hash of {one['item_id']}", "embedding": vectors[number], **values,
        }
        for number, one in enumerate(items)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=store_schema(DIMENSION, typed))


def make_dataset(uri: str | Path, items: Sequence[Mapping[str, Any]], **values: Any) -> VectorDataset:
    """A dataset that has these items."""
    rows = stored_rows(items, **values)
    return VectorDataset.create(str(uri), rows.schema).replace(NO_ADDRESSES, rows.to_batches(), {})


def make_store(
    uri: str | Path, items: Sequence[Mapping[str, Any]], *, model: str = "demo", **values: Any
) -> StorePlace:
    """A store whose current dataset has these items, at version 2."""
    place = store_place(str(uri))
    place.create(EmbeddedBy(model=model, fingerprint=FINGERPRINT, dimension=DIMENSION))
    make_dataset(place.dataset_uri(FINGERPRINT), items, **values)
    return place


def commit_gone(dataset: VectorDataset, items: Sequence[Mapping[str, Any]]) -> VectorDataset:
    """A version in which these items are rows that are gone, at the end."""
    rows = stored_rows(items, gone_at=LISTED_AT)
    return dataset.replace(addresses_of(dataset, items), rows.to_batches(), {})


def addresses_of(dataset: VectorDataset, items: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Where the rows of these items are."""
    wanted = {one["item_id"] for one in items}
    return np.array(
        [
            row["_rowaddr"]
            for batch in dataset.batches(["item_id"], with_address=True)
            for row in batch.to_pylist()
            if row["item_id"] in wanted
        ],
        np.uint64,
    )
