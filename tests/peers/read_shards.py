"""Reads exported shards with `datasets` as its users do, in an environment of its own.

    python read_shards.py FOLDER

Prints one JSON object: by `item_id` the size of the image, the label and the class. Imports nothing of
clipfleet.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import datasets


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as cache:
        shards = str(folder / "*.tar")
        samples = datasets.load_dataset("webdataset", data_files=shards, split="train", cache_dir=cache)
        found = {
            one["json"]["item_id"]: [one["jpg"].size, one["json"]["label"], one["cls"]] for one in samples
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
