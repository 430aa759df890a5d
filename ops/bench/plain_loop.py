"""The plain loop: an open_clip model and a DataLoader, from a folder to one array of vectors.

    python -m ops.bench.plain_loop FOLDER

In fp32, batches of 64, two loader processes. Prints one line of JSON. Uses no part of clipfleet.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

_BATCH, _LOADERS = 64, 2


class Images(Dataset[torch.Tensor]):
    """The files of a folder."""

    def __init__(self, folder: Path, preprocess: Any) -> None:
        self._files = sorted(folder.glob("*.jpg"))
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels: torch.Tensor = self._preprocess(Image.open(self._files[index]).convert("RGB"))
        return pixels


def main() -> None:
    """Embed the folder."""
    began = time.monotonic()
    model, _, preprocess = open_clip.create_model_and_transforms(
        "ViT-B-32", pretrained="datacomp_xl_s13b_b90k"
    )
    model.eval()
    loaded = time.monotonic()
    found = []
    loader = DataLoader(Images(Path(sys.argv[1]), preprocess), batch_size=_BATCH, num_workers=_LOADERS)
    with torch.inference_mode():
        for batch in loader:
            features = model.encode_image(batch)
            found.append(features / features.norm(dim=-1, keepdim=True))
    vectors = torch.cat(found).numpy()
    ended = time.monotonic()
    print(json.dumps({"images": len(vectors), "load": loaded - began, "loop": ended - loaded}))


if __name__ == "__main__":
    main()
