"""Reads the current vectors of a store with another program, as its users do, in an environment of its own.

    python read_store.py PEER STORE FINGERPRINT

Prints one JSON object: the vector of each item that the source has, by its id. Imports nothing of clipfleet.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

COLUMNS = ["item_id", "embedding"]
PRESENT = "gone_at IS NULL"


def of_lance(store: str, fingerprint: str) -> dict[str, Any]:
    import lance

    return lance.dataset(f"{store}/{fingerprint}.lance").to_table(columns=COLUMNS, filter=PRESENT).to_pydict()


def of_pandas(store: str, fingerprint: str) -> dict[str, Any]:
    import lance

    rows = lance.dataset(f"{store}/{fingerprint}.lance").to_table(columns=COLUMNS, filter=PRESENT)
    frame = rows.to_pandas()
    return {name: frame[name].tolist() for name in COLUMNS}


def of_polars(store: str, fingerprint: str) -> dict[str, Any]:
    import lance
    import polars

    rows = polars.scan_pyarrow_dataset(lance.dataset(f"{store}/{fingerprint}.lance"))
    return rows.filter(polars.col("gone_at").is_null()).select(COLUMNS).collect().to_dict(as_series=False)


def of_duckdb(store: str, fingerprint: str) -> dict[str, Any]:
    """It takes no float16 from Arrow: Lance hands the vectors over as float32."""
    import duckdb
    import lance

    dataset = lance.dataset(f"{store}/{fingerprint}.lance")
    vector = "arrow_cast(embedding, 'List(Float32)')"
    rows = dataset.scanner(columns={"item_id": "item_id", "embedding": vector}, filter=PRESENT).to_reader()
    found = duckdb.sql("SELECT item_id, embedding FROM rows").fetchall()
    assert rows is not None  # DuckDB finds it by its name
    return dict(zip(COLUMNS, zip(*found, strict=True), strict=True))


def of_lancedb(store: str, fingerprint: str) -> dict[str, Any]:
    import lancedb

    table = lancedb.connect(store).open_table(fingerprint)
    found = table.search().where(PRESENT).select(COLUMNS).limit(table.count_rows()).to_arrow().to_pydict()
    for item_id, vector in zip(found["item_id"][:20], found["embedding"], strict=False):
        nearest = table.search(vector, vector_column_name="embedding").where(PRESENT, prefilter=True)
        assert nearest.distance_type("cosine").limit(1).to_list()[0]["item_id"] == item_id
    return dict(found)


def of_datasets(store: str, fingerprint: str) -> dict[str, Any]:
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        rows = datasets.load_dataset(f"{store}/{fingerprint}.lance", split="train", cache_dir=cache)
        return dict(rows.filter(lambda row: row["gone_at"] is None).select_columns(COLUMNS)[:])


PEERS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "Lance": of_lance,
    "pandas": of_pandas,
    "polars": of_polars,
    "DuckDB": of_duckdb,
    "LanceDB": of_lancedb,
    "datasets": of_datasets,
}


def main(peer: str, store: str, fingerprint: str) -> None:
    found = PEERS[peer](store, fingerprint)
    ids, vectors = found["item_id"], found["embedding"]
    assert len({*ids}) == len(ids)
    print(json.dumps({one: [*map(float, vector)] for one, vector in zip(ids, vectors, strict=True)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
