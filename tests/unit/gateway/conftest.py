"""A place of a gateway, and its keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.keys.ring import KeyRing


@pytest.fixture
def place(tmp_path: Path) -> FolderOutput:
    """A folder that is not there yet."""
    return FolderOutput(tmp_path / "gateway")


@pytest.fixture
def ring(place: FolderOutput) -> KeyRing:
    return KeyRing(place)
