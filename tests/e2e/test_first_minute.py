"""`clipfleet-worker demo` right after the installation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.support.documents import README, blocks

pytestmark = pytest.mark.one_broker

NOWHERE = "http://127.0.0.1:9"  # a proxy that is not there: the demo needs no network


@dataclass(frozen=True)
class Demo:
    """A demo in a folder, with an empty home, a small environment and no way out of the machine."""

    folder: Path
    home: Path

    def run(self) -> str:
        environment = {
            "HOME": str(self.home), "PATH": os.defpath, "LANG": "C.UTF-8",
            "HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE,
        }  # fmt: skip
        result = subprocess.run(
            [Path(sys.executable).with_name("clipfleet-worker"), "demo"],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert result.returncode == 0, (result.stdout, result.stderr)
        assert "Traceback" not in result.stdout + result.stderr
        assert processes_of(self.folder) == []
        return result.stdout


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that work in a folder or were started with its name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            is_inside = (process / "cwd").readlink().is_relative_to(folder)
        except OSError:  # it has ended, or belongs to the kernel
            continue
        if command and (is_inside or str(folder) in command):  # one without a command is ending
            found.append(command)
    return found


def without_scores(text: str) -> list[str]:
    """The lines of a table as they are laid out, but for the scores: they differ a little by CPU."""
    return [re.sub(r"\b\d\.\d\d\b", "0.00", line).rstrip() for line in text.splitlines() if line.strip()]


def number_right(output: str) -> int:
    found = re.search(r"^(\d+) of 60 right \((\d+)%\), one row per image\.$", output, re.MULTILINE)
    assert found, output
    assert int(found[2]) == round(int(found[1]) / 60 * 100)
    return int(found[1])


def test_the_demo_labels_sixty_images_and_can_be_run_again(tmp_path: Path) -> None:
    demo = Demo(tmp_path / "here", tmp_path / "home")
    demo.folder.mkdir()
    demo.home.mkdir()

    printed = demo.run()

    assert number_right(printed) >= 45
    made = demo.folder / "clipfleet-demo"
    parts = sorted((made / "results").glob("*/*/data/part-*.parquet"))
    rows = ds.dataset(parts).to_table(columns=["item_id", "status"]).to_pylist()
    names = [path.name for path in (made / "images").glob("*/*.png")]
    assert sorted((row["item_id"], row["status"]) for row in rows) == [(name, "ok") for name in sorted(names)]
    assert len(rows) == 60
    # The README shows what it prints
    excerpt = next(block for block in blocks(README) if block.language == "text").text
    table, left_out, end = excerpt.partition("\n...\n")
    shown = without_scores(table)
    assert [line for line in without_scores(printed) if line in shown] == shown  # all of them, in this order
    assert {line.split()[-1] for line in shown} >= {"right", "wrong"}
    assert left_out
    assert abs(number_right(printed) - number_right(end)) <= 2

    assert number_right(demo.run()) == number_right(printed)
    assert [path.name for path in demo.folder.iterdir()] == ["clipfleet-demo"]
