"""What the worker ships for its demo is whole, small and licensed: the demo model and the sample images.

Reads files only. ops/demo_model/evaluate.py measures how good the model is.
"""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

WORKER = Path(__file__).parents[2] / "worker" / "clipfleet_worker"
MODEL = WORKER / "demo_model"
SAMPLES = WORKER / "samples"
MAX_SHIPPED_BYTES = 20_000_000


@pytest.fixture(scope="module")
def samples() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    return rows


def test_samples_json_lists_the_images_in_three_groups(samples: list[dict[str, Any]]) -> None:
    listed = {sample["file"] for sample in samples}
    assert {path.name for path in SAMPLES.iterdir()} == listed | {"samples.json", "LICENSE"}
    assert len(listed) == len(samples) == 60
    assert {frozenset(sample) for sample in samples} == {frozenset({"file", "name", "group"})}
    assert [sample["group"] for sample in samples] == [0] * 20 + [1] * 20 + [2] * 20

    for group in range(3):
        assert len({sample["name"].casefold() for sample in samples if sample["group"] == group}) == 20


def test_sample_images_are_small_rgb_pngs(samples: list[dict[str, Any]]) -> None:
    for sample in samples:
        with Image.open(SAMPLES / sample["file"]) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (128, 128)), sample["file"]


def test_weights_are_whole_float16_tensors() -> None:
    path = MODEL / "open_clip_model.safetensors"
    with path.open("rb") as file:  # a JSON header follows its own length
        (length,) = struct.unpack("<Q", file.read(8))
        tensors: dict[str, Any] = json.loads(file.read(length))
    tensors.pop("__metadata__", None)
    assert path.stat().st_size == 8 + length + max(one["data_offsets"][1] for one in tensors.values())
    assert {tensor["dtype"] for tensor in tensors.values()} == {"F16", "I64"}  # I64: batch counters


def test_what_is_shipped_stays_small() -> None:
    paths = [path for folder in (MODEL, SAMPLES) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) < MAX_SHIPPED_BYTES


LICENCES = {
    "demo_model/NOTICE": ("Noto Emoji", "Twemoji", "Emoji One 2.3", "emojibase-data", "Fluent Emoji"),
    "demo_model/LICENSES/Apache-2.0.txt": ("Apache License",),
    "demo_model/LICENSES/CC-BY-4.0.txt": ("Attribution 4.0 International",),
    "demo_model/LICENSES/MIT-emojibase.txt": ("Miles Johnson",),
    "samples/LICENSE": ("Copyright (c) Microsoft Corporation.",),
}


@pytest.mark.parametrize("file", LICENCES)
def test_every_source_is_attributed_with_its_licence(file: str) -> None:
    text = (WORKER / file).read_text(encoding="utf-8")
    assert [phrase for phrase in LICENCES[file] if phrase not in text] == []
