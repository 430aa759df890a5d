"""Reads outputs with another program as its users do, by the folder `data`, in an environment of its own.

    python read_output.py PEER OUTPUT...

Prints one JSON object per output, on a line of its own: `items` (the `item_index` of each row), `labels` (by
item, where there are any), `vectors` (by item, of the rows that have one). Imports nothing of clipfleet.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = tuple[int, Any, Any]  # item_index, label, embedding

COLUMNS = ["item_index", "label", "embedding"]


def of_pandas(output: Path) -> Iterable[Row]:
    import pandas

    frame = pandas.read_parquet(output / "data")
    return _rows({name: frame[name].tolist() for name in COLUMNS if name in frame})


def of_pyarrow(output: Path) -> Iterable[Row]:
    import pyarrow.parquet as pq

    return _rows(pq.read_table(output / "data").to_pydict())


def of_polars(output: Path) -> Iterable[Row]:
    import polars

    return _rows(polars.read_parquet(output / "data").to_dict(as_series=False))


def of_duckdb(output: Path, pattern: str = "data/*.parquet") -> Iterable[Row]:
    import duckdb

    found = duckdb.sql(f"from '{output}/{pattern}'")
    return _rows(dict(zip(found.columns, zip(*found.fetchall(), strict=True), strict=True)))


def of_duckdb_below(output: Path) -> Iterable[Row]:
    return of_duckdb(output, "**/*.parquet")


def of_datasets(output: Path) -> Iterable[Row]:
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        return _rows(datasets.load_dataset(str(output / "data"), split="train", cache_dir=cache)[:])


def of_hugging_face_export(output: Path) -> Iterable[Row]:
    """The folder of the export, whose card declares the features; images are read where they are."""
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        rows = datasets.load_dataset(str(output), split="train", cache_dir=cache)
        images = rows.filter(lambda row: row["status"] == "ok").cast_column("uri", datasets.Image())
        assert images[0]["uri"].size == (images[0]["width"], images[0]["height"])
        columns = rows[:]
        label = rows.features["label"]
        if isinstance(label, datasets.ClassLabel):
            columns["label"] = [one if one is None else label.int2str(one) for one in columns["label"]]
        return _rows(columns)


def of_spark(output: Path) -> Iterable[Row]:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    frame = builder.config("spark.sql.shuffle.partitions", "1").getOrCreate().read.parquet(f"{output}/data")
    rows = [row.asDict() for row in frame.collect()]
    return _rows({name: [row[name] for row in rows] for name in frame.columns})


def of_faiss(output: Path) -> Iterable[Row]:
    import faiss
    import numpy as np

    items, matrix = _matrix(output)
    vectors = matrix.astype(np.float32)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    _, nearest = index.search(vectors, 1)
    assert nearest[:, 0].tolist() == list(range(len(items)))
    return _with_nothing(output, dict(zip(items, index.reconstruct_n(0, index.ntotal), strict=True)))


def of_usearch(output: Path) -> Iterable[Row]:
    from usearch.index import Index

    items, matrix = _matrix(output)
    index = Index(ndim=matrix.shape[1], metric="ip", dtype="f16" if matrix.dtype.itemsize == 2 else "f32")
    index.add(items, matrix)
    assert index.search(matrix, 1).keys[:, 0].tolist() == items.tolist()
    return _with_nothing(output, dict(zip(items, index.get(items), strict=True)))


def of_lancedb(output: Path) -> Iterable[Row]:
    import lancedb
    import pyarrow.dataset as ds

    with tempfile.TemporaryDirectory() as folder:
        rows = ds.dataset(output / "data")
        # By default a row without a vector is an error.
        table = lancedb.connect(folder).create_table("rows", rows, on_bad_vectors="null")
        found = table.to_arrow().to_pydict()
        for item, vector in zip(found["item_index"], found.get("embedding", []), strict=False):
            if vector is not None:
                (nearest,) = table.search(vector, vector_column_name="embedding").limit(1).to_list()
                assert nearest["item_index"] == item
        return _rows(found)


def _rows(columns: dict[str, Any]) -> list[Row]:
    nothing = [None] * len(columns["item_index"])
    return list(zip(*(columns.get(name, nothing) for name in COLUMNS), strict=True))


def _matrix(output: Path) -> tuple[Any, Any]:
    """Item indexes and vectors of the rows that have one, as the pages show it."""
    import numpy as np
    import pyarrow.dataset as ds

    rows = ds.dataset(output / "data").to_table(filter=ds.field("status") == "ok")
    return rows["item_index"].to_numpy(), np.stack(rows["embedding"].to_numpy())


def _with_nothing(output: Path, vectors: dict[int, Any]) -> list[Row]:
    """All rows, those without a vector too, which an index does not hold."""
    return [(item, label, vectors.get(item)) for item, label, _ in of_pyarrow(output)]


PEERS: dict[str, Callable[[Path], Iterable[Row]]] = {
    "pandas": of_pandas,
    "pyarrow": of_pyarrow,
    "polars": of_polars,
    "DuckDB, data/*": of_duckdb,
    "DuckDB, **": of_duckdb_below,
    "datasets": of_datasets,
    "datasets, export": of_hugging_face_export,
    "Spark": of_spark,
    "faiss": of_faiss,
    "usearch": of_usearch,
    "lancedb": of_lancedb,
}


def main(peer: str, outputs: list[str]) -> None:
    for output in outputs:
        rows = list(PEERS[peer](Path(output)))
        labels = {int(item): label for item, label, _ in rows if isinstance(label, str)}
        vectors = {int(item): list(map(float, vector)) for item, _, vector in rows if vector is not None}
        items = [int(item) for item, _, _ in rows]
        print(json.dumps({"items": items, "labels": labels, "vectors": vectors}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
