"""What `clipfleet-gateway keys` prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipfleet_gateway.commands import app


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPFLEET_GATEWAY_OUTPUT", str(tmp_path / "gateway"))


def keys(*arguments: str) -> str:
    found = CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout


def test_a_list_names_all_that_each_key_reads(tmp_path: Path) -> None:
    keys("add", "plain")
    keys("add", "photos", "--lane", "bulk", "--quota", "1000", "--source", str(tmp_path / "photos"))

    photos, plain = (line.partition(", since ")[0] for line in keys("list").splitlines())

    assert plain == "plain: lane normal, no quota, reads public http(s), data:, its own files"
    assert photos == (
        "photos: lane bulk, 1,000 items a day, reads public http(s), data:, its own files, "
        f"{tmp_path}/photos/"
    )
