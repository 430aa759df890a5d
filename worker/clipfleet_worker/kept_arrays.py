"""Small arrays in the user's cache folder: what would be computed again at every start. They are data only.

Whatever keeps them from being written or read costs time, nothing else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipfleet.contract import short_hash

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Below the user's own cache; a user without a home has one in no place that can be made."""
    home = os.environ.get("HOME") or "/nonexistent"
    return Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "clipfleet"


def recall(kind: str, key: Sequence[str]) -> np.ndarray | None:
    """What was kept; None if nothing was, or it cannot be read."""
    try:
        found: np.ndarray = np.load(kept_file(kind, key), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found


def keep(kind: str, key: Sequence[str], what: np.ndarray) -> None:
    """Keep an array under a key that says all that it depends on."""
    file = kept_file(kind, key)
    scratch = file.with_name(f"{file.stem}.{os.getpid()}.npy")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        np.save(scratch, what, allow_pickle=False)
        scratch.replace(file)
    except OSError as error:
        log.info("nothing is kept in %s: %s", file.parent, error, extra={"action": "cache_unusable"})


def kept_file(kind: str, key: Sequence[str]) -> Path:
    """Where an array of this key is, or would be."""
    return cache_folder() / f"{kind}-{short_hash(list(key))}.npy"
