"""Scratch files of outputs that are elsewhere: written and read like any file, and nothing of them stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.errors import OutputUnreachableError
from clipfleet.outputs import scratch as module
from clipfleet.outputs.scratch import local_scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's folder of temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("has_proc", [True, False])
def test_it_is_like_any_file(temporary: Path, monkeypatch: pytest.MonkeyPatch, has_proc: bool) -> None:
    if not has_proc:
        monkeypatch.setattr(module, "OPEN_FILES", temporary / "none")
    table = pa.table({"number": [1, 2, 3]})

    with local_scratch() as path:
        path.write_bytes(b"x" * 100_000)
        path.write_bytes(b"short")
        assert path.read_bytes() == b"short"
        pq.write_table(table, path)
        with path.open("rb") as file:
            assert pq.read_table(file).equals(table)
        assert bool(list(temporary.iterdir())) != has_proc

    assert list(temporary.iterdir()) == []


def test_nothing_of_a_process_that_was_killed_stays(temporary: Path) -> None:
    program = """
import os, signal, tempfile
from clipfleet.outputs.scratch import local_scratch
with local_scratch() as path:
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(temporary)}, check=False
    )

    assert killed.returncode < 0
    assert list(temporary.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "none"))

    with pytest.raises(OutputUnreachableError, match="none"), local_scratch():
        pass
