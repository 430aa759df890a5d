"""`clipfleet-worker demo`, as somebody sees it who has just installed the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.support.documents import README, blocks

NOWHERE = "http://127.0.0.1:9"  # a proxy that is not there: the demo needs no network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def run_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    """The demo in a folder, with an empty home, a small environment and no way out of the machine."""
    environment = {
        "HOME": str(folder.parent / "home"),
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HTTP_PROXY": NOWHERE,
        "HTTPS_PROXY": NOWHERE,
    }
    return subprocess.run(
        [Path(sys.executable).with_name("clipfleet-worker"), "demo"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that work in a folder or were started with its name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            is_inside = (process / "cwd").readlink().is_relative_to(folder)
        except OSError:  # it has ended, or belongs to the kernel
            continue
        if is_inside or str(folder) in command:
            found.append(command)
    return found


def words(line: str) -> str:
    """A line of a table without its frame and its scores, which differ a little between processors."""
    return " ".join(re.sub(r"[^\w\s.:-]|\b\d\.\d+\b", " ", line).split())


def share_right(output: str) -> float:
    found = re.search(r"^(\d+) of 60 right", output, re.MULTILINE)
    assert found, output
    return int(found[1]) / 60


def test_the_demo_labels_sixty_pictures_and_can_be_run_again(folder: Path) -> None:
    first = run_demo(folder)
    assert first.returncode == 0, (first.stdout, first.stderr)
    assert share_right(first.stdout) >= 0.75
    assert "Traceback" not in first.stdout + first.stderr
    assert processes_of(folder) == []

    demo = folder / "clipfleet-demo"
    parts = sorted((demo / "results").glob("*/*/part-*.parquet"))
    rows = ds.dataset(parts).to_table(columns=["item_id", "status"]).to_pylist()
    assert len(rows) == 60
    assert {row["item_id"] for row in rows} == {path.name for path in (demo / "pictures").glob("*/*.png")}
    assert {row["status"] for row in rows} == {"ok"}

    second = run_demo(folder)
    assert second.returncode == 0, (second.stdout, second.stderr)
    assert share_right(second.stdout) == share_right(first.stdout)
    assert processes_of(folder) == []
    assert [path.name for path in folder.iterdir()] == ["clipfleet-demo"]


def test_the_readme_shows_what_the_demo_prints(folder: Path) -> None:
    excerpt = next(block for block in blocks(README) if block.language == "text")
    printed = {words(line) for line in run_demo(folder).stdout.splitlines()}
    table = [line for line in excerpt.text.splitlines() if line.startswith("│")]
    assert len(table) >= 4
    for line in table:
        assert words(line) in printed, line


def test_a_folder_with_something_else_in_it_is_refused(folder: Path) -> None:
    mine = folder / "clipfleet-demo" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    refused = run_demo(folder)
    assert refused.returncode == 2
    assert str(mine.parent) in refused.stderr
    assert "--dir" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert [path.name for path in mine.parent.iterdir()] == ["thesis.txt"]
