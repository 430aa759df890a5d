"""`make chaos-stores` in small: broken nights, a broken migration and races of all kinds end as promised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT

pytestmark = [pytest.mark.figures, pytest.mark.timeout(600), pytest.mark.usefixtures("chaos_servers")]


@pytest.mark.parametrize(
    "few",
    [
        ("--kills", "6", "--races", "2", "--vacuums", "0", "--switches", "0"),
        ("--kills", "0", "--races", "0", "--vacuums", "2", "--switches", "1"),
    ],
    ids=["kills", "races"],
)
def test_stores_equal_fresh_ones_over_the_same_source(tmp_path: Path, few: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ops.chaos.stores.run", "--folder", tmp_path, "--seed", "3", *few],
        cwd=ROOT, text=True, capture_output=True, timeout=500, check=False,
    )  # fmt: skip

    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
