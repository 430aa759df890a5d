"""Names of the objects of an output: made in one place, apart from each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from clipfleet.contract.jobs import PartFormat
from clipfleet.ledger import keys
from clipfleet.outputs import objects
from tests.support.documents import ROOT

CODE = sorted([*ROOT.glob("producer/**/*.py"), *ROOT.glob("worker/**/*.py")])
OWN = ("INTERNAL", "TMP", "JOB_FILE", "MANIFEST", "ERRORS", "SUCCESS")


def test_parts_sort_like_their_chunks() -> None:
    names = [objects.LAYOUT.part(number) for number in (0, 9, 10, 99_999_999)]

    assert names == sorted(names)
    assert names[0] == "part-00000000.parquet"


@pytest.mark.parametrize("part_format", list(PartFormat))
def test_the_glob_finds_parts_and_nothing_else_of_ours(part_format: PartFormat) -> None:
    pattern = objects.PART_GLOBS[part_format]
    assert Path(objects.LAYOUT.part(7, part_format)).match(pattern)
    assert not any(Path(getattr(objects, name)).match(pattern) for name in OWN)


def test_staged_files_sort_like_their_chunks_and_lie_apart() -> None:
    assert objects.LAYOUT.staged_file(512, 256) == "_clipfleet/items-00000512-256.parquet"
    assert objects.LAYOUT.staged_file(512, 256) < objects.LAYOUT.staged_file(1024, 1)


def test_everything_of_ours_begins_with_an_underline_but_results() -> None:
    names = {getattr(objects, name) for name in OWN}
    assert {name for name in names if not name.startswith("_")} == {objects.LAYOUT.errors}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_spells_a_name(path: Path) -> None:
    if path.name in ("keys.py", "objects.py"):
        return
    names = (
        objects.INTERNAL,
        objects.MANIFEST,
        objects.SUCCESS,
        objects.LAYOUT.part_prefix,
        f"{keys.PREFIX}:",
    )
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    spelled = [text for text in texts if isinstance(text, str) and text.startswith(names)]
    assert [text for text in spelled if "\n" not in text and " " not in text] == []  # no docstrings
