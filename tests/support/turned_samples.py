"""A collection for the demo model: turned copies of the samples in the package."""

from __future__ import annotations

import random
from collections.abc import Collection
from importlib.resources import as_file, files
from pathlib import Path

from PIL import Image

from clipfleet_worker.cli.demo import samples

COPIES, COPIES_OF_OTHERS = 50, 3


def write_turned_samples(folder: Path, labels: Collection[str]) -> None:
    """Write copies of the sixty samples, many of each label; a file's name begins with what it shows."""
    folder.mkdir()
    angle = random.Random(16)
    with as_file(files("clipfleet_worker") / "samples") as images:
        for sample in samples():
            with Image.open(images / sample.file) as opened:
                image = opened.convert("RGBA")
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image)
            for number in range(COPIES if sample.name in labels else COPIES_OF_OTHERS):
                turned = page.convert("RGB").rotate(angle.uniform(-20, 20), fillcolor="white")
                turned.save(folder / f"{sample.name}.{number:02d}.png")
