"""clip-retrieval, in an environment of its own in the cache, because its requirements differ from ours.

Measured are the rate that it reports itself, and its whole process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from clipfleet.errors import WorldError

_REQUIREMENTS = Path(__file__).with_name("peers-requirements.txt")


def install(cache: Path) -> None:
    """Install it once, and again if the requirements change.

    Raises:
        WorldError: it cannot be installed.
    """
    done = _environment(cache) / "installed.txt"
    if done.exists() and done.read_text() == _REQUIREMENTS.read_text():
        return
    _run(sys.executable, "-m", "venv", "--clear", _environment(cache))
    _run(_environment(cache) / "bin" / "pip", "install", "--quiet", "--requirement", _REQUIREMENTS)
    done.write_text(_REQUIREMENTS.read_text())


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        last_words = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise WorldError(f"clip-retrieval cannot be installed; pip's last words: {last_words}")


def command(cache: Path, images: Path, output: Path) -> list[str]:
    """The command that embeds a folder, as users start it on a CPU."""
    options = {
        "input_dataset": images,
        "output_folder": output,
        "clip_model": "open_clip:ViT-B-32/datacomp_xl_s13b_b90k",
        "use_jit": False,
        "enable_text": False,
        "input_format": "files",
        "batch_size": 64,
        "num_prepro_workers": 2,
    }
    program = _environment(cache) / "bin" / "clip-retrieval"
    return [str(program), "inference", *(f"--{name}={value}" for name, value in options.items())]


def images_per_second(output: Path) -> float:
    """The rate that it counted inside its own loop."""
    (file,) = (output / "stats").glob("*.json")
    stats = json.loads(file.read_text())
    return float(stats["sample_count"] / stats["total_duration"])  # both summed over its batches


def _environment(cache: Path) -> Path:
    return cache / "peers"
