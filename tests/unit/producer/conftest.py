"""What many tests of the producer begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.outputs.folder import FolderOutput
from tests.support.doubles import Clock


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    """A folder that is not there yet."""
    return FolderOutput(tmp_path / "out")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
