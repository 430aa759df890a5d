"""The rendered data set on disk: emoji concepts and one image file per icon set.

`render.py` writes it; `train.py`, `evaluate.py` and `samples.py` read it. Imports neither SVG tools nor
torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

TRAINING_SETS = ("noto", "twemoji", "emojione")
HELD_OUT_SET = "fluent-emoji"
IMAGE_SIZE = 72


@dataclass(frozen=True)
class Concept:
    """One emoji as a thing that can be named."""

    label: str  # emojibase's name: "red apple", "flag: Japan"
    slug: str  # as icon sets spell it: "red-apple"; only "keycap" occurs twice
    tags: tuple[str, ...]  # emojibase's keywords, never empty
    group: str  # "food & drink"
    subgroup: str  # "fruit"


@dataclass(frozen=True)
class ImageSet:
    """The images of one icon set, at most one per concept, in the order of the concepts."""

    concept_ids: npt.NDArray[np.int64]  # (n,) positions in the list of concepts
    pixels: npt.NDArray[np.uint8]  # (n, size, size, 4) RGBA, alpha not premultiplied


def write_concepts(concepts: list[Concept], folder: Path) -> None:
    """Write `concepts.json`; an existing file is replaced."""
    rows = [asdict(concept) for concept in concepts]
    text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    (folder / "concepts.json").write_text(text, encoding="utf-8")


def read_concepts(folder: Path) -> list[Concept]:
    """The concepts in the order that `ImageSet.concept_ids` counts in."""
    rows = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
    return [Concept(**{**row, "tags": tuple(row["tags"])}) for row in rows]


def write_images(images: ImageSet, set_name: str, folder: Path) -> None:
    """Write `<set_name>.npz`; an existing file is replaced."""
    np.savez_compressed(folder / f"{set_name}.npz", concept_ids=images.concept_ids, pixels=images.pixels)


def read_images(set_name: str, folder: Path) -> ImageSet:
    """The images of one icon set."""
    with np.load(folder / f"{set_name}.npz") as arrays:
        return ImageSet(concept_ids=arrays["concept_ids"], pixels=arrays["pixels"])


def read_held_out(folder: Path) -> ImageSet:
    """The images of the held-out style whose concept occurs in at least one training set."""
    trained = [read_images(name, folder).concept_ids for name in TRAINING_SETS]
    held_out = read_images(HELD_OUT_SET, folder)
    known = np.isin(held_out.concept_ids, np.concatenate(trained))
    return ImageSet(held_out.concept_ids[known], held_out.pixels[known])


def on_white(image: Image.Image) -> Image.Image:
    """An RGBA image laid on white, as RGB."""
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image).convert("RGB")
