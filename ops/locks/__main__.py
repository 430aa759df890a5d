"""Write the lock files of this folder: `make lock`. Needs uv and a package index.

Each pins versions and hashes for every Python and platform that pyproject.toml allows:

- `ci.txt`: all that tests need, without torch.
- `worker.txt`: all that the worker's image needs, without torch, and what builds the package there.
- `producer.txt`: the same for the image of producers, of the gateway and of the exporter.
- `torch.txt`: torch and torchvision of the default build, with what only they need. It is a file of its own,
  because each build of torch (CPU, CUDA, ROCm) has its own index, and so its own hashes.

The versions of torch are those in `torch.in`, with which the tests ran.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OLDEST_PYTHON = "3.11"
OF_TORCH = ("torch", "torchvision", "triton", "nvidia-", "cuda-")
BUILDS = "hatchling"  # see build-system in pyproject.toml
EXTRAS = {
    "ci.txt": ("worker", "embedded", "otel", "fit", "gateway", "store", "test", "dev"),
    "worker.txt": ("worker", "store"),
    "producer.txt": ("exporter", "gateway", "store"),
}

_HEADER = "# {}\n# Written by `make lock`; do not edit. Install with --require-hashes --no-deps.\n"
_TITLES = {
    "ci.txt": "What tests need, but torch: see torch.txt.",
    "worker.txt": "What the image of a worker needs, but torch: see torch.txt.",
    "producer.txt": "What the image of producers, of the gateway and of the exporter needs.",
    "torch.txt": "The default build of torch, and what only it needs.",
}


def main() -> None:
    compiled = {
        name: blocks(_compile(extras, "" if "dev" in extras else BUILDS)) for name, extras in EXTRAS.items()
    }
    for name, entries in compiled.items():
        _write(name, [entry for package, entry in entries.items() if not is_of_torch(package)])
    _write("torch.txt", [block for package, block in compiled["ci.txt"].items() if is_of_torch(package)])


def _compile(extras: Sequence[str], more: str) -> str:
    """The pins of uv, as the text of a requirements file."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "-", "--quiet"]
    command += ["--constraints", str(HERE / "torch.in"), "--universal", "--python-version", OLDEST_PYTHON]
    command += ["--generate-hashes", "--no-emit-package", "clipfleet", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--no-emit-find-links"]
    for extra in extras:
        command += ["--extra", extra]
    return subprocess.run(command, cwd=ROOT, input=more, stdout=subprocess.PIPE, text=True, check=True).stdout


def blocks(text: str) -> dict[str, str]:
    """One entry for each requirement, with its markers, and its hashes on the lines below."""
    found: dict[str, str] = {}
    key = ""
    for line in text.splitlines(keepends=True):
        if line.startswith("#"):
            continue
        if not line[0].isspace():
            key = line.split("\\")[0].strip()
        found[key] = found.get(key, "") + line
    return found


def is_of_torch(requirement: str) -> bool:
    name = requirement.partition("==")[0]
    return any(name == known or (known.endswith("-") and name.startswith(known)) for known in OF_TORCH)


def _write(name: str, entries: Sequence[str]) -> None:
    (HERE / name).write_text(_HEADER.format(_TITLES[name]) + "".join(entries), encoding="utf-8")
    print(f"{name}: {len(entries)} requirements")


if __name__ == "__main__":
    main()
