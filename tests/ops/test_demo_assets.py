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


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header, which follows its own length in 8 little-endian bytes."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    return header


def test_samples_json_lists_the_images_in_three_groups(samples: list[dict[str, Any]]) -> None:
    listed = {sample["file"] for sample in samples}
    assert {path.name for path in SAMPLES.iterdir()} == listed | {"samples.json", "LICENSE"}
    assert len(listed) == len(samples) == 60
    assert {frozenset(sample) for sample in samples} == {frozenset({"file", "name", "group"})}
    assert [sample["group"] for sample in samples] == [0] * 20 + [1] * 20 + [2] * 20


@pytest.mark.parametrize("group", [0, 1, 2])
def test_names_are_unique_within_a_group(samples: list[dict[str, Any]], group: int) -> None:
    names = [sample["name"] for sample in samples if sample["group"] == group]
    assert len({name.casefold() for name in names}) == len(names)


def test_sample_images_are_small_rgb_pngs(samples: list[dict[str, Any]]) -> None:
    for sample in samples:
        with Image.open(SAMPLES / sample["file"]) as image:
            image.load()
            found = (image.format, image.mode, image.size)
        assert found == ("PNG", "RGB", (128, 128)), sample["file"]


def test_model_config_says_what_open_clip_needs() -> None:
    config = json.loads((MODEL / "open_clip_config.json").read_text(encoding="utf-8"))
    assert config["model_cfg"]["embed_dim"] == 128
    assert config["model_cfg"]["vision_cfg"]["image_size"] == 64
    assert config["model_cfg"]["text_cfg"]["context_length"] == 16
    assert len(config["preprocess_cfg"]["mean"]) == len(config["preprocess_cfg"]["std"]) == 3


def test_weights_are_whole_float16_tensors() -> None:
    path = MODEL / "open_clip_model.safetensors"
    tensors = read_safetensors_header(path)
    tensors.pop("__metadata__", None)
    header_bytes = struct.unpack("<Q", path.read_bytes()[:8])[0]
    end = max(tensor["data_offsets"][1] for tensor in tensors.values())
    assert path.stat().st_size == 8 + header_bytes + end
    assert {tensor["dtype"] for tensor in tensors.values()} == {"F16", "I64"}  # I64: batch counters
    assert tensors["text_projection"]["shape"] == [96, 128]


def test_what_is_shipped_stays_small() -> None:
    paths = [path for folder in (MODEL, SAMPLES) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) < MAX_SHIPPED_BYTES


def test_every_source_is_attributed_beside_the_weights() -> None:
    notice = (MODEL / "NOTICE").read_text(encoding="utf-8")
    for source in ("Noto Emoji", "Twemoji", "Emoji One 2.3", "emojibase-data", "Fluent Emoji"):
        assert source in notice


@pytest.mark.parametrize(
    ("file", "phrase"),
    [
        ("demo_model/LICENSES/Apache-2.0.txt", "Apache License"),
        ("demo_model/LICENSES/CC-BY-4.0.txt", "Attribution 4.0 International"),
        ("demo_model/LICENSES/MIT-emojibase.txt", "Miles Johnson"),
        ("samples/LICENSE", "Copyright (c) Microsoft Corporation."),
    ],
)
def test_licence_texts_exist(file: str, phrase: str) -> None:
    assert phrase in (WORKER / file).read_text(encoding="utf-8")
