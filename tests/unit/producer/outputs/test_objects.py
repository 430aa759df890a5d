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
OWN = (objects.INTERNAL, objects.TMP, objects.JOB_FILE, objects.MANIFEST, objects.SUCCESS)


def test_the_layout_of_a_job_is_that_of_its_version() -> None:
    assert [objects.layout_of(version) for version in (0, 1, 2)] == [
        objects.FIRST_LAYOUT,
        objects.FIRST_LAYOUT,
        objects.LAYOUT,
    ]
    assert objects.FIRST_LAYOUT.part(3) == "part-00000003.parquet"
    assert objects.FIRST_LAYOUT.staged_file(512, 256) == "_clipfleet/items-00000512-256.parquet"


def test_parts_sort_like_their_chunks() -> None:
    names = [objects.LAYOUT.part(number) for number in (0, 9, 10, 99_999_999)]

    assert names == sorted(names)
    assert names[0] == "data/part-00000000.parquet"


@pytest.mark.parametrize("layout", objects.LAYOUTS)
@pytest.mark.parametrize("part_format", list(PartFormat))
def test_parts_are_told_from_everything_else(layout: objects.Layout, part_format: PartFormat) -> None:
    name = layout.part(7, part_format)
    assert objects.is_part(name)
    assert not objects.is_part(f"{name}.crc")
    assert not any(map(objects.is_part, (*OWN, layout.errors, layout.staged_file(0, 1))))


def test_staged_files_sort_like_their_chunks_and_no_glob_for_tables_finds_them() -> None:
    assert objects.LAYOUT.staged_file(512, 256) == "_clipfleet/items-00000512-256.staged"
    assert objects.LAYOUT.staged_file(512, 256) < objects.LAYOUT.staged_file(1024, 1)


def test_everything_of_ours_begins_with_an_underline_but_results() -> None:
    assert all(name.startswith("_") for name in (*OWN, objects.LAYOUT.errors))


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_spells_a_name(path: Path) -> None:
    if path.name in ("keys.py", "objects.py"):
        return
    names = (
        objects.INTERNAL,
        objects.MANIFEST,
        objects.SUCCESS,
        *(layout.part_prefix for layout in objects.LAYOUTS),
        f"{keys.PREFIX}:",
    )
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    spelled = [text for text in texts if isinstance(text, str) and text.startswith(names)]
    assert [text for text in spelled if "\n" not in text and " " not in text] == []  # no docstrings
