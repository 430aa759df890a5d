"""The rendered data set on disk: emoji concepts and one picture file per icon set.

`render.py` writes it; `train.py`, `evaluate.py` and `samples.py` read it. Knows neither SVG nor
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
PICTURE_SIZE = 72


@dataclass(frozen=True)
class Concept:
    """One emoji as a thing that can be named."""

    label: str  # emojibase's name: "red apple", "flag: Japan"
    slug: str  # as icon sets spell it: "red-apple"; only "keycap" occurs twice
    tags: tuple[str, ...]  # emojibase's keywords, never empty
    group: str  # "food & drink"
    subgroup: str  # "fruit"


@dataclass(frozen=True)
class PictureSet:
    """The pictures of one icon set, at most one per concept, in the order of the concepts."""

    concept_ids: npt.NDArray[np.int64]  # (n,) positions in the list of concepts
    pixels: npt.NDArray[np.uint8]  # (n, size, size, 4) RGBA, alpha not premultiplied


def write_concepts(concepts: list[Concept], folder: Path) -> None:
    """Write `concepts.json`; an existing file is replaced."""
    rows = [asdict(concept) for concept in concepts]
    text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    (folder / "concepts.json").write_text(text, encoding="utf-8")


def read_concepts(folder: Path) -> list[Concept]:
    """The concepts in the order that `PictureSet.concept_ids` counts in."""
    rows = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
    return [Concept(**{**row, "tags": tuple(row["tags"])}) for row in rows]


def write_pictures(pictures: PictureSet, set_name: str, folder: Path) -> None:
    """Write `<set_name>.npz`; an existing file is replaced."""
    np.savez_compressed(folder / f"{set_name}.npz", concept_ids=pictures.concept_ids, pixels=pictures.pixels)


def read_pictures(set_name: str, folder: Path) -> PictureSet:
    """The pictures of one icon set."""
    with np.load(folder / f"{set_name}.npz") as arrays:
        return PictureSet(concept_ids=arrays["concept_ids"], pixels=arrays["pixels"])


def read_held_out(folder: Path) -> PictureSet:
    """The pictures of the held-out style whose concept occurs in at least one training set."""
    trained = [read_pictures(name, folder).concept_ids for name in TRAINING_SETS]
    held_out = read_pictures(HELD_OUT_SET, folder)
    known = np.isin(held_out.concept_ids, np.concatenate(trained))
    return PictureSet(held_out.concept_ids[known], held_out.pixels[known])


def on_white(picture: Image.Image) -> Image.Image:
    """An RGBA picture laid on white, as RGB."""
    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture).convert("RGB")
