"""Renders the icon sets of the npm packages into the data set of the demo model.

Writes `concepts.json`, one `<set>.npz` per icon set and `render.json`, which states the versions of
everything that had a hand in it and a digest of the pixels: equal versions give equal digests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from emoji_dataset import (
    HELD_OUT_SET,
    PICTURE_SIZE,
    TRAINING_SETS,
    Concept,
    PictureSet,
    write_concepts,
    write_pictures,
)
from icon_sets import IconSet, draw, package_version, read_emojibase, read_icon_set

logger = logging.getLogger(__name__)


def render(icon_set: IconSet, concepts: list[Concept]) -> PictureSet:
    """Draw every concept that the icon set knows; a drawing that cannot be rendered raises."""
    found = [(index, icon_set.find(concept.slug)) for index, concept in enumerate(concepts)]
    drawn = [(index, draw(icon, PICTURE_SIZE)) for index, icon in found if icon is not None]
    return PictureSet(
        concept_ids=np.array([index for index, _ in drawn], dtype=np.int64),
        pixels=np.stack([np.asarray(picture) for _, picture in drawn]),
    )


def digest(pictures: PictureSet) -> str:
    """Hex sha256 over concept ids and pixels, independent of the file format."""
    return hashlib.sha256(pictures.concept_ids.tobytes() + pictures.pixels.tobytes()).hexdigest()


def render_all(node_modules: Path, folder: Path) -> dict[str, Any]:
    """Write the whole data set and return what `render.json` holds."""
    concepts = read_emojibase(node_modules)
    write_concepts(concepts, folder)
    npm = {"emojibase-data": package_version("emojibase-data", node_modules)}
    sets: dict[str, Any] = {}
    for name in (*TRAINING_SETS, HELD_OUT_SET):
        pictures = render(read_icon_set(name, node_modules), concepts)
        write_pictures(pictures, name, folder)
        package = f"@iconify-json/{name}"
        npm[package] = package_version(package, node_modules)
        sets[name] = {"pictures": len(pictures.concept_ids), "sha256": digest(pictures)}
        logger.info("%s: %d pictures", name, len(pictures.concept_ids))
    return {
        "concepts": len(concepts),
        "picture_size": PICTURE_SIZE,
        "sets": sets,
        "npm": npm,
        "python": {name: version(name) for name in ("resvg-py", "pillow", "numpy")},
    }


def main() -> None:
    """Parse the arguments and render."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node-modules", type=Path, default=Path(__file__).parent / "node_modules")
    parser.add_argument("--output", type=Path, required=True, help="folder for the data set")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    arguments.output.mkdir(parents=True, exist_ok=True)
    report = render_all(arguments.node_modules, arguments.output)
    (arguments.output / "render.json").write_text(json.dumps(report, indent=2) + "\n")
    logger.info("wrote %s", arguments.output)


if __name__ == "__main__":
    main()
