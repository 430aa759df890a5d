"""Reads an export with images with `datasets` as its users do, in an environment of its own.

    python read_images.py LAYOUT FOLDER

Prints one JSON object: by `item_id` the size of the image, the label and its number. Imports nothing of
clipfleet.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets


def webdataset(folder: Path, cache: str) -> dict[str, list[Any]]:
    shards = str(folder / "*.tar")
    samples = datasets.load_dataset("webdataset", data_files=shards, split="train", cache_dir=cache)
    return {one["json"]["item_id"]: [one["jpg"].size, one["json"]["label"], one["cls"]] for one in samples}


def hugging_face_images(folder: Path, cache: str) -> dict[str, list[Any]]:
    samples = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
    names = samples.features["label"].names
    return {
        one["item_id"]: [one["image"].size, names[one["label"]], one["label"]]
        for one in samples
        if one["image"] is not None
    }


LAYOUTS = {"webdataset": webdataset, "huggingface-images": hugging_face_images}


def main(layout: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as cache:
        print(json.dumps(LAYOUTS[layout](folder, cache)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
