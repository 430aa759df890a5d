"""The images that the stores of a run are filled with, and a second model to fill them with."""

from __future__ import annotations

import hashlib
import json
import random
from importlib.resources import files
from pathlib import Path

from ops.chaos.material import image_bytes


class Library:
    """A folder of images whose content changes from night to night.

    Attributes:
        hashes: sha256 of each image that is there, lowercase hex, by its name, which is its id.
    """

    def __init__(self, folder: Path, images: int, chance: random.Random) -> None:
        self.folder = folder
        self.hashes: dict[str, str] = {}
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
        (self.folder / name).write_bytes(data)
        self.hashes[name] = hashlib.sha256(data).hexdigest()


def write_second_model(folder: Path) -> str:
    """Write a model with vectors of 48 dimensions; returns its full name."""
    import open_clip
    import safetensors.torch

    folder.mkdir()
    config = json.loads((files("clipfleet_worker") / "demo_model" / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 48
    weights = open_clip.CLIP(**config["model_cfg"]).state_dict()
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"
