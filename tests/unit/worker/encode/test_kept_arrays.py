"""Arrays in the user's cache folder."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest

from clipfleet_worker.encode.kept_arrays import cache_folder, forget, keep, kept_file, recall

A, B, C = (["of", name] for name in "abc")
VALUES = {"x": np.arange(3), "y": np.eye(2, dtype=np.float32)}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_what_was_kept_comes_back_by_kind_and_key() -> None:
    keep("kind", A, VALUES)

    found = recall("kind", A)

    assert list(found) == ["x", "y"]
    for name, values in VALUES.items():
        np.testing.assert_array_equal(found[name], values)
    assert recall("kind", B) == recall("other", A) == {}


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_is_not_the_users_alone_is_not_used_and_a_warning_says_so_once(
    mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    keep("kind", A, VALUES)
    cache_folder().chmod(mode)

    keep("kind", B, VALUES)

    assert recall("kind", A) == {}
    assert not kept_file("kind", B).exists()
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"others may write to {cache_folder()} too" in said
    assert f"mount a volume at {cache_folder().parent}" in said


@pytest.mark.parametrize("place", [-1, 100])
def test_what_is_damaged_is_not_there(place: int) -> None:
    keep("kind", A, {"values": np.zeros(1000)})
    content = bytearray(kept_file("kind", A).read_bytes())
    content[place] ^= 1
    kept_file("kind", A).write_bytes(content)

    assert recall("kind", A) == {}


def test_what_is_forgotten_is_not_there() -> None:
    keep("kind", A, VALUES)

    assert forget("kind", A) and recall("kind", A) == {}
    assert forget("kind", B)  # as it was not there


def test_what_a_process_left_that_died_while_it_wrote_is_removed() -> None:
    keep("kind", A, VALUES)
    old, new = cache_folder() / "tmpold", cache_folder() / "tmpnew"
    for folder in (old, new):
        folder.mkdir()
        (folder / "new").write_bytes(b"half")
    hours_ago = time.time() - 2 * 3600
    os.utime(old, (hours_ago, hours_ago))

    keep("kind", B, VALUES)

    assert not old.exists()
    assert new.exists()  # somebody may be writing it


def test_a_link_to_another_folder_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    cache_folder().parent.mkdir()
    cache_folder().symlink_to(tmp_path / "theirs")

    keep("kind", A, VALUES)

    assert list((tmp_path / "theirs").iterdir()) == []


def test_those_of_a_kind_that_were_used_last_are_kept() -> None:
    keep("another-kind", A, VALUES)
    for age, key in ((30, A), (20, B)):
        keep("kind", key, VALUES)
        os.utime(kept_file("kind", key), (age, age))
    recall("kind", A)

    keep("kind", C, VALUES, most=2)

    assert [bool(recall("kind", key)) for key in (A, B, C)] == [True, False, True]
    assert recall("another-kind", A)
