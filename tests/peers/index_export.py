"""Opens an export with embedding-reader and indexes it with autofaiss; runs in their own environment.

    python index_export.py EXPORT

Prints one JSON object: what the reader says of the matrix, the metadata and vectors as it pairs them, and for
every vector the row that the index finds nearest. Imports nothing of clipfleet, whose requirements differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from autofaiss import build_index
from embedding_reader import EmbeddingReader

COLUMNS = ["item_index", "item_id", "image_path", "url"]


def main(export: Path) -> None:
    embeddings = str(export / "img_emb")
    reader = EmbeddingReader(
        embeddings,
        file_format="parquet_npy",
        metadata_folder=str(export / "metadata"),
        meta_columns=COLUMNS,
    )
    vectors, rows = [], []
    for batch, metadata in reader(batch_size=64, show_progress=False):
        vectors.append(batch)
        rows += metadata.to_dict("records")
    matrix = np.concatenate(vectors)
    index, _ = build_index(
        embeddings,
        save_on_disk=False,  # its notes on the index are no JSON with numpy 2
        index_path=None,
        index_infos_path=None,
        metric_type="ip",
        max_index_memory_usage="100M",
        current_memory_available="1G",
        nb_cores=2,
        verbose=40,
    )
    _, nearest = index.search(matrix, 1)
    answer = {
        "count": reader.count,
        "dimension": reader.dimension,
        "rows": rows,
        "vectors": matrix.tolist(),
        "indexed": index.ntotal,
        "index_dimension": index.d,
        "nearest": nearest[:, 0].tolist(),
    }
    print(json.dumps(answer, default=int))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
