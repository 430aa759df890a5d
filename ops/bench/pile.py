"""The data of the benches, made once in a cache folder: JPEGs, and ViT-B-32 as a hub cache.

The images are 640x480, with texture down to single pixels, about 68 KB each, all different. The weights are
random, in the hub's layout, so that the real loading code finds them by name without a network. Speed does
not depend on them; fidelity cannot be judged with them.
"""

from __future__ import annotations

import io
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from tests.support.images import photo

DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipfleet-bench"
MODEL = "ViT-B-32:datacomp_xl_s13b_b90k"

_REPOSITORY = "models--laion--CLIP-ViT-B-32-DataComp.XL-s13B-b90K"
_COMMIT = "0" * 40
_WIDTH, _HEIGHT, _QUALITY = 640, 480, 90


def image_folder(cache: Path, count: int) -> Path:
    """A folder with a number of images."""
    folder = cache / f"images-{count}"
    if not folder.is_dir():
        making = folder.with_suffix(".making")
        making.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(_write, making), range(count), chunksize=16))
        making.rename(folder)
    return folder


def _write(folder: Path, number: int) -> None:
    image = photo(number, _WIDTH // 2, _HEIGHT // 2).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    grain = photo(number + 1_000_000, _WIDTH, _HEIGHT)
    buffer = io.BytesIO()
    Image.blend(image, grain, 0.7).save(buffer, "JPEG", quality=_QUALITY)
    (folder / f"{number:06d}.jpg").write_bytes(buffer.getvalue())


def hub_environment(cache: Path) -> dict[str, str]:
    """The variables by which a process without a network finds the model."""
    home = cache / "hub-home"
    snapshot = home / "hub" / _REPOSITORY / "snapshots" / _COMMIT
    weights = snapshot / "open_clip_model.safetensors"
    if not weights.exists():
        snapshot.mkdir(parents=True, exist_ok=True)
        _write_weights(weights)
        references = home / "hub" / _REPOSITORY / "refs"
        references.mkdir(exist_ok=True)
        (references / "main").write_text(_COMMIT)
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def _write_weights(path: Path) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    module = open_clip.create_model("ViT-B-32")
    making = path.with_suffix(".making")
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, making)
    making.rename(path)
