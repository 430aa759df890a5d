"""Pack the held-out drawings by their emoji group, for tests of heads: none is left out, none is chosen.

Writes a zip of small WebP images, `<group>/<slug>.webp`, with the licence of the drawings. The same rendered
data gives the same drawings; the bytes of WebP depend on the version of Pillow.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from emoji_dataset import on_white, read_concepts, read_held_out
from PIL import Image

QUALITY = 75
LICENCE = Path(__file__).parents[2] / "worker" / "clipfleet_worker" / "samples" / "LICENSE"


def main() -> None:
    """Parse the arguments and pack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rendered", type=Path, required=True, help="folder that render.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="the zip")
    arguments = parser.parse_args()
    concepts, held_out = read_concepts(arguments.rendered), read_held_out(arguments.rendered)
    with ZipFile(arguments.output, "w", ZIP_STORED) as packed:
        packed.writestr(ZipInfo("LICENSE"), LICENCE.read_bytes())
        for index, pixels in zip(held_out.concept_ids, held_out.pixels, strict=True):
            concept, content = concepts[index], io.BytesIO()
            on_white(Image.fromarray(pixels)).save(content, "WEBP", quality=QUALITY, method=6)
            packed.writestr(ZipInfo(f"{concept.group}/{concept.slug}.webp"), content.getvalue())


if __name__ == "__main__":
    main()
