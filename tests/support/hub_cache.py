"""A cache of the Hugging Face hub, made by hand: models are found in it by name, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubCache:
    """The folder that `HF_HOME` names."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def add(self, repository: str, files: Mapping[str, bytes | Path]) -> Path:
        """Put files into a repository; those given by path are linked. Returns their folder."""
        folder = self.home / "hub" / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / _COMMIT
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(_COMMIT)
        for name, content in files.items():
            path = snapshot / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                path.symlink_to(content)
            else:
                path.write_bytes(content)
        return snapshot

    def environment(self) -> dict[str, str]:
        """Variables for a process that is to use this cache and no network."""
        return {"HF_HOME": str(self.home), "HF_HUB_OFFLINE": "1"}

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process use it: the hub's client reads the variables only once."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.home / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
