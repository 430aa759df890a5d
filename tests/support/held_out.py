"""The held-out drawings of the demo model by their emoji group, see `ops/demo_model/groups.py`."""

from __future__ import annotations

import csv
from pathlib import Path
from zipfile import ZipFile

PACKED = Path(__file__).with_name("held_out_drawings.zip")
# With the names of the groups the mean of these is better than `a photo of a {}` alone.
TEMPLATES = ("{}", "a photo of a {}", "a drawing of a {}", "an icon of {}", "a sticker of {}")


def unpack_drawings(folder: Path) -> dict[Path, str]:
    """Write all drawings below a folder; returns the group of each."""
    with ZipFile(PACKED) as packed:
        names = [name for name in packed.namelist() if name.endswith(".webp")]
        packed.extractall(folder, names)
    return {folder / name: name.partition("/")[0] for name in names}


def write_truth(path: Path, groups: dict[Path, str]) -> Path:
    """Write a list of images with the column `group`."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "group"])
        writer.writerows([str(image), group] for image, group in groups.items())
    return path
