"""The images that the stores of a run are filled with."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from pathlib import Path

from ops.chaos.material import image_bytes


class Library:
    """A folder of images whose content changes from night to night.

    Attributes:
        hashes: sha256 of each image that is there, lowercase hex, by its name, which is its id.
        ever: all that were there under a name, by the name.
    """

    def __init__(self, folder: Path, images: int, chance: random.Random) -> None:
        self.folder = folder
        self.hashes: dict[str, str] = {}
        self.ever: defaultdict[str, set[str]] = defaultdict(set)
        self._chance = chance
        self._images = 0  # made so far: no image comes twice
        self._names = 0
        folder.mkdir()
        self.change(new=images, changed=0, gone=0)

    def change(self, *, new: int, changed: int, gone: int) -> None:
        """Add images, give some that were there another content, and remove others."""
        chosen = self._chance.sample(sorted(self.hashes), changed + gone)
        for name in chosen[changed:]:
            (self.folder / name).unlink()
            del self.hashes[name]
        for name in chosen[:changed]:
            self._write(name)
        for _ in range(new):
            self._names += 1
            self._write(f"{self._names:05}.jpg")

    def _write(self, name: str) -> None:
        self._images += 1
        data = image_bytes(self._images)
        scratch = self.folder.with_name(f"{self.folder.name}-next.jpg")
        scratch.write_bytes(data)
        scratch.replace(self.folder / name)  # whole, whoever reads it meanwhile
        self.hashes[name] = hashlib.sha256(data).hexdigest()
        self.ever[name].add(self.hashes[name])
