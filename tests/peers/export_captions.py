"""Writes a retrieval root with `convert_retrieval_dataset`; runs in clip-benchmark's own environment.

    python export_captions.py FOLDER OUTPUT

FOLDER is written by `write_captions`. `clip_benchmark_export_wds --retrieval` itself fails in 1.6.2 on any
data set without classes. Imports nothing of clipfleet.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clip_benchmark.webdataset_builder import convert_retrieval_dataset, path_to_bytes


def main(folder: Path, output: str) -> None:
    captions = json.loads((folder / "captions.json").read_text())
    pairs = [(str(folder / f"{number}.png"), lines) for number, lines in enumerate(captions)]
    convert_retrieval_dataset(pairs, "test", output, transform=path_to_bytes, max_count=20)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
