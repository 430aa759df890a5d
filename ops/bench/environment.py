"""The environment of the programs that benches start."""

from __future__ import annotations

import os

_UNWANTED = ("CLIPFLEET_", "AWS_", "OMP_")


def clean_environment() -> dict[str, str]:
    """Our environment, without variables that set their servers or their number of threads."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_UNWANTED)}
