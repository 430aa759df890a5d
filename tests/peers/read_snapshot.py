"""Reads a snapshot of a store with embedding-reader, in an environment of its own.

    python read_snapshot.py FOLDER

Prints one JSON object: the vector of each item, by its id. Imports nothing of clipfleet.
"""

from __future__ import annotations

import json
import sys

from embedding_reader import EmbeddingReader


def main(folder: str) -> None:
    reader = EmbeddingReader(
        folder, file_format="parquet", embedding_column="embedding", meta_columns=["item_id"]
    )
    found: dict[str, list[float]] = {}
    rows = 0
    for vectors, metadata in reader(batch_size=64, show_progress=False):
        rows += len(vectors)
        found.update(zip(metadata["item_id"], vectors.tolist(), strict=True))
    assert rows == len(found) == reader.count
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
