"""A test that hangs fails within its bound, is cleaned up, and leaves the next test alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.documents import ROOT

HANGING = """
import subprocess, threading
from pathlib import Path
import pytest

HERE = Path(__file__).parent

@pytest.fixture(scope="module")
def server():
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()

@pytest.fixture
def file():
    yield HERE / "made"
    (HERE / "made").unlink()

@pytest.fixture
def stubborn():
    yield
    threading.Event().wait()

@pytest.mark.timeout(1)
def test_hangs(server, stubborn, file):
    file.touch()
    (HERE / "first server").write_text(str(server.pid))
    threading.Event().wait()

def test_fails(server):
    raise AssertionError

def test_next(server):
    assert not (HERE / "made").exists()
    assert str(server.pid) != (HERE / "first server").read_text()
    assert server.poll() is None
"""


def test_a_hanging_test_fails_alone_and_is_cleaned_up(tmp_path: Path) -> None:
    file = tmp_path / "test_hanging.py"
    file.write_text(HANGING)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--basetemp", tmp_path / "work", file], cwd=ROOT,
        env=os.environ | {"TESTS_CLEAN_UP_SECONDS": "1"}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip

    said = result.stdout + result.stderr
    assert result.returncode == 1, said
    assert "2 failed, 1 passed, 1 error" in result.stdout, said
    assert "Timeout (>1.0s)" in said
    assert "the clean-up takes longer than 1 s" in said
    first = int((tmp_path / "first server").read_text())
    assert not Path("/proc", str(first)).exists()
