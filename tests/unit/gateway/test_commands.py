"""What `clipfleet-gateway keys` prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clipfleet.errors import UsageError
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


POLICY = """
name: uploads
version: "{version}"
model: demo
label_sets:
  things: {{kind: multi, labels: [cat, dog]}}
rules:
  - when: {{label: cat}}
    action: flag
"""


def policies(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["policies", *arguments], catch_exceptions=False)


def test_policies_are_added_listed_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    for version in ("1", "2", "2"):
        file.write_text(POLICY.format(version=version))
        assert policies("add", str(file)).exit_code == 0

    (line,) = policies("list").stdout.splitlines()
    found = json.loads(policies("list", "--json").stdout)

    assert (found["name"], found["version"], found["model"]) == ("uploads", "2", "demo")
    assert line.startswith(f"uploads@{found['sha256'][:12]}: model demo, version 2, since ")
    assert line.endswith(f", before uploads@{found['earlier'][0][:12]}")
    assert policies("remove", "uploads").exit_code == 0
    assert policies("list", "--json").stdout == ""
    with pytest.raises(UsageError, match="there is no policy 'uploads'"):
        policies("remove", "uploads")
