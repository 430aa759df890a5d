"""The files of the demo model, also altered: its configuration, or its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

DEMO = Path(str(files("clipfleet_worker"))) / "demo_model"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def altered_demo(folder: Path, alter: Callable[[Any, dict[str, Any]], None]) -> str:
    """Write a copy, whose configuration and weights `alter` may change; returns its name."""
    configuration, weights = json.loads((DEMO / CONFIG).read_text()), load_file(DEMO / WEIGHTS)
    alter(configuration, weights)
    (folder / CONFIG).write_text(json.dumps(configuration))
    save_file(weights, folder / WEIGHTS)
    return f"local-dir:{folder}"
