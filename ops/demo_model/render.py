"""Render the icon sets of the npm packages into the data set of the demo model.

Writes `concepts.json`, one `<set>.npz` per icon set and `render.json`, which has the versions of
all inputs and a digest of the pixels: equal versions give equal digests.
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
    IMAGE_SIZE,
    TRAINING_SETS,
    Concept,
    ImageSet,
    write_concepts,
    write_images,
)
from icon_sets import IconSet, draw, package_version, read_emojibase, read_icon_set

logger = logging.getLogger(__name__)


def render(icon_set: IconSet, concepts: list[Concept]) -> ImageSet:
    """Draw every concept that the icon set knows; a drawing that cannot be rendered raises."""
    found = [(index, icon_set.find(concept.slug)) for index, concept in enumerate(concepts)]
    drawn = [(index, draw(icon, IMAGE_SIZE)) for index, icon in found if icon is not None]
    return ImageSet(
        concept_ids=np.array([index for index, _ in drawn], dtype=np.int64),
        pixels=np.stack([np.asarray(image) for _, image in drawn]),
    )


def digest(images: ImageSet) -> str:
    """Hex sha256 over concept ids and pixels, independent of the file format."""
    return hashlib.sha256(images.concept_ids.tobytes() + images.pixels.tobytes()).hexdigest()


def render_all(node_modules: Path, folder: Path) -> dict[str, Any]:
    """Write the whole data set and return what `render.json` holds."""
    concepts = read_emojibase(node_modules)
    write_concepts(concepts, folder)
    npm = {"emojibase-data": package_version("emojibase-data", node_modules)}
    sets: dict[str, Any] = {}
    for name in (*TRAINING_SETS, HELD_OUT_SET):
        images = render(read_icon_set(name, node_modules), concepts)
        write_images(images, name, folder)
        package = f"@iconify-json/{name}"
        npm[package] = package_version(package, node_modules)
        sets[name] = {"images": len(images.concept_ids), "sha256": digest(images)}
        logger.info("%s: %d images", name, len(images.concept_ids))
    return {
        "concepts": len(concepts),
        "image_size": IMAGE_SIZE,
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
