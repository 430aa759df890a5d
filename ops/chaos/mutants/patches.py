"""The patches, and a copy of the product with one of them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PRODUCT = ("producer", "worker")
_FOLDER = Path(__file__).parent


class PatchError(Exception):
    """A patch does not fit the product any more: it must be made anew, or go."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault."""

    name: str
    breaks: str  # in a sentence
    patch: Path


def all_mutants() -> list[Mutant]:
    """By name."""
    return [_mutant(patch) for patch in sorted(_FOLDER.glob("*.patch"))]


def _mutant(patch: Path) -> Mutant:
    first = patch.read_text().partition("\n")[0]
    return Mutant(patch.stem, first.removeprefix("#").strip(), patch)


def require_fit(mutant: Mutant, root: Path = ROOT) -> None:
    """Raise `PatchError` if the patch does not apply to the product below a folder."""
    apply(mutant, root, "--check")


def copy_product(folder: Path, mutant: Mutant | None) -> None:
    """Put a copy of the product into a folder outside of any checkout, with a fault if one is named.

    Raises:
        PatchError: the patch does not apply.
    """
    for name in PRODUCT:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        apply(mutant, folder)


def apply(mutant: Mutant, folder: Path, *options: str) -> None:
    """Run `git apply` in a folder. Raises `PatchError`."""
    result = subprocess.run(
        ["git", "apply", *options, mutant.patch], cwd=folder, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise PatchError(f"{mutant.name} does not apply: {result.stderr.strip()}")
