"""`make test-gpu` on a machine without a device: nothing ran, so it fails."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.documents import ROOT


@pytest.mark.parametrize(
    ("also", "code"),
    [([], 1), (["tests/unit/worker/fetch/http/test_target.py"], 0), (["--collect-only"], 0)],
    ids=["alone", "beside tests that need none", "only collected"],
)
def test_a_run_of_the_gpu_tests_alone_fails_where_there_is_no_gpu(also: list[str], code: int) -> None:
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_here, "tests/gpu/test_worker.py", *also], cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == code, done.stdout + done.stderr
    assert ("no test of a CUDA device has run" in done.stdout) == bool(code)
