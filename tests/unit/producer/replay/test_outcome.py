"""The document of a replay, and the file of its changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipfleet.errors import UsageError
from clipfleet.replay.outcome import Replayed, changes_format, replaced_file
from clipfleet.results.kinds import ResultFormat

FACTS = {"name": "uploads", "version": "1", "sha256": "0" * 64}


def replayed(**values: Any) -> Replayed:
    defaults: dict[str, Any] = {
        "source": "/out", "old_policy": FACTS, "new_policy": FACTS, "from_scores": False,
        "counts": {("flag", "allow"): 2, ("flag", "flag"): 3, ("undecided", "undecided"): 1},
        "failed": {"timeout": 1}, "examples": {"timeout": "a.jpg"}, "decided_otherwise": 0, "shown": [],
        "outputs": None, "changes_file": None,
    }  # fmt: skip
    return Replayed(**(defaults | values))


def test_the_document_has_the_whole_matrix() -> None:
    found = replayed(outputs=("/decided/old", "/decided/new")).document()

    assert (found["items"], found["changed"], found["decided_from"]) == (6, 2, "vectors")
    assert found["counts"]["flag"] == {"flag": 3, "review": 0, "allow": 2, "undecided": 0}
    assert found["counts"]["review"] == {"flag": 0, "review": 0, "allow": 0, "undecided": 0}
    assert found["outputs"] == {"old": "/decided/old", "new": "/decided/new"}
    assert found["without_vector"] == {"timeout": 1}
    json.dumps(found)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jsonl", ResultFormat.JSONL), ("a.CSV", ResultFormat.CSV), ("a.parquet", ResultFormat.PARQUET)],
)
def test_the_suffix_names_the_format(tmp_path: Path, name: str, kind: ResultFormat) -> None:
    assert changes_format(tmp_path / name) is kind


@pytest.mark.parametrize(
    ("name", "words"), [("changes.txt", ".jsonl, .csv or .parquet"), ("nowhere/a.csv", "there is no folder")]
)
def test_other_files_are_refused_before_anything_is_run(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        changes_format(tmp_path / name)


def test_an_older_file_is_replaced_once_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "changes.csv"
    path.write_text("old")

    with pytest.raises(KeyboardInterrupt), replaced_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert (path.read_text(), [one.name for one in tmp_path.iterdir()]) == ("old", ["changes.csv"])

    with replaced_file(path) as file:
        file.write(b"new")
    assert (path.read_text(), [one.name for one in tmp_path.iterdir()]) == ("new", ["changes.csv"])
