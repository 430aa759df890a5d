"""Draw the images that the worker ships for its demo: held-out emoji, a fixed seed, no selection.

Writes `<slug>.png` and `samples.json`; refuses a folder that already holds images, so that none
of an earlier draw remains. The licence beside them is kept by hand.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from pathlib import Path

from emoji_dataset import HELD_OUT_SET, Concept, on_white, read_concepts, read_held_out
from icon_sets import IconSet, draw, read_icon_set

SEED = 0
GROUPS = 3
GROUP_SIZE = 20
SAMPLE_SIZE = 128

logger = logging.getLogger(__name__)


def draw_sample(held_out: list[Concept], seed: int) -> list[Concept]:
    """The concepts to ship, in drawn order, independent of the order of `held_out`."""
    by_slug = {concept.slug: concept for concept in held_out}
    rng = random.Random(seed)
    return [by_slug[slug] for slug in rng.sample(sorted(by_slug), GROUPS * GROUP_SIZE)]


def write_png(concept: Concept, icon_set: IconSet, folder: Path) -> str:
    """Draw one concept on white and return the name of its file."""
    icon = icon_set.find(concept.slug)
    if icon is None:
        raise LookupError(f"{icon_set.name} has no {concept.slug}")
    name = f"{concept.slug}.png"
    on_white(draw(icon, SAMPLE_SIZE)).save(folder / name, optimize=True)
    return name


def write_samples(chosen: list[Concept], icon_set: IconSet, folder: Path) -> None:
    """Write the images and `samples.json`, whose groups are blocks of the drawn order."""
    rows = [
        {
            "file": write_png(concept, icon_set, folder),
            "name": concept.label,
            "group": position // GROUP_SIZE,
        }
        for position, concept in enumerate(chosen)
    ]
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    (folder / "samples.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rendered", type=Path, required=True, help="folder that render.py wrote")
    parser.add_argument("--node-modules", type=Path, default=Path(__file__).parent / "node_modules")
    parser.add_argument("--output", type=Path, required=True, help="folder for the images")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.output.mkdir(parents=True, exist_ok=True)
    if any(arguments.output.glob("*.png")):
        parser.error(f"{arguments.output} holds images already: remove them first")

    concepts = read_concepts(arguments.rendered)
    held_out = [concepts[index] for index in read_held_out(arguments.rendered).concept_ids]
    icon_set = read_icon_set(HELD_OUT_SET, arguments.node_modules)
    write_samples(draw_sample(held_out, SEED), icon_set, arguments.output)
    logger.info("drew %d of %d images", GROUPS * GROUP_SIZE, len(held_out))


if __name__ == "__main__":
    main()
