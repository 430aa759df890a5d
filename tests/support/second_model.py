"""A small model beside that of the demo, with vectors of another length."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path


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
