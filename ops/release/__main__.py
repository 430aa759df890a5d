"""Check what `make build` has built: its size, and the demo in an empty environment.

    python -m ops.release dist

The wheel and the sdist are installed one after the other into a new virtual environment; each labels the
sixty images. Exits with 1 and one line if something is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

MAX_BYTES = 25_000_000
_EXTRAS = "[worker,embedded]"


def main() -> None:
    folder = Path(sys.argv[1])
    archives = [_only(folder, "*.whl"), _only(folder, "*.tar.gz")]
    for archive in archives:
        size = archive.stat().st_size
        print(f"{archive.name}: {size / 1e6:.1f} MB", flush=True)
        if size > MAX_BYTES:
            sys.exit(f"{archive.name} is larger than {MAX_BYTES / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as place:
        binaries = Path(place) / "venv" / "bin"
        venv.create(binaries.parent, with_pip=True)
        for archive in archives:
            # The first archive installed the requirements; only the package is installed again.
            _run([binaries / "pip", "install", "--quiet", f"{archive.resolve()}{_EXTRAS}"], place)
            _run(
                [binaries / "pip", "install", "--quiet", "--no-deps", "--force-reinstall", archive.resolve()],
                place,
            )
            _run([binaries / "clipfleet-worker", "demo", "--dir", f"demo-{archive.suffix[1:]}"], place)


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder} holds {len(found)} files {pattern}, not one: run `make build`")
    return found[0]


def _run(command: Sequence[str | Path], folder: str) -> None:
    """Run in an empty folder with an empty home, without access to this checkout."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment.setdefault("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip"))
    environment["HOME"] = folder
    if subprocess.run(command, cwd=folder, env=environment, check=False).returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    main()
