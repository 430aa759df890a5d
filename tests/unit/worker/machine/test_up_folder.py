"""The folder of an `up`, and what others may have put into it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipfleet.errors import UsageError
from clipfleet_worker.machine.up_folder import RunningUp, UpFolder

SETTINGS = {"CLIPFLEET_REDIS_URL": "redis://:p@127.0.0.1:1/0", "AWS_REGION": "it's here"}
FILES = ["lock", "up.json", "env"]


@pytest.fixture
def folder(tmp_path: Path) -> UpFolder:
    made = UpFolder(tmp_path / "up")
    made.make()
    with made.held(RunningUp.this_process(has_command=False)):
        made.write_settings(SETTINGS)
    return made


@pytest.mark.parametrize("mode", [0o720, 0o702])
@pytest.mark.parametrize("name", ["", *FILES])
def test_one_that_others_can_write_to_is_refused(folder: UpFolder, name: str, mode: int) -> None:
    (folder.path / name).chmod(mode)
    for use in (folder.make, folder.running):
        with pytest.raises(UsageError, match="other users can write to it; give another --dir"):
            use()


def test_one_of_another_user_is_refused(folder: UpFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = folder.path.owner()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for use in (folder.make, folder.running):
        with pytest.raises(UsageError, match=rf"{folder.path}: it belongs to {owner}; give another --dir"):
            use()
    assert folder.settings() == {}


def test_settings_that_others_can_have_written_are_not_read(folder: UpFolder) -> None:
    folder.env_file.chmod(0o620)
    assert folder.settings() == {}


def test_settings_are_read_as_they_were_written_and_other_variables_are_not(folder: UpFolder) -> None:
    with folder.env_file.open("a") as file:
        for name in ("PATH", "LD_PRELOAD", "AWS_CONFIG_FILE", "CLIPFLEET_MODELS"):
            file.write(f"export {name}=/tmp/x\n")
    assert folder.settings() == {**SETTINGS, "_CLIPFLEET_UP_FOLDER": str(folder.path)}
