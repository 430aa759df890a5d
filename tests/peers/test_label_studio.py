"""The SDK of Label Studio reads a project that was exported, and what it writes corrects the rows."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers.listed_images import write_list
from tests.support.cluster import Cluster

pytestmark = pytest.mark.peers

ITEMS, BAD = 12, {3, 7}
ANSWERS = {"id-0": ["red", "blue"], "id-1": [], "id-2": ["green"]}


def test_what_is_marked_in_a_project_corrects_the_rows(
    python_of: Callable[[str], Path], tmp_path: Path
) -> None:
    # Given a multi set over images of which some are missing
    with Cluster(tmp_path) as cluster:
        cluster.start_worker()
        write_list(tmp_path, ITEMS, BAD, "shelf", lambda number: number % 3)
        cluster.run_json(
            "classify", tmp_path / "list.csv", "--labels", "red,green,blue", "--multi", "--top-k", "3",
            "--model", "demo", "--output", tmp_path / "out", expect=3,
        )  # fmt: skip
        cluster.run_json("export", tmp_path / "out", "--layout", "label-studio", "--to", tmp_path / "project")

        # When the SDK validates the project, and answers some tasks
        (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
        script = Path(__file__).with_name("label_studio_project.py")
        given = [tmp_path / name for name in ("project", "answers.json", "back.json")]
        shown = subprocess.run(
            [python_of("PEERS_PYTHON"), script, *given],
            capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        stored = cluster.run_json("marks", "import", tmp_path / "back.json", "--job", tmp_path / "out")

        # Then each answered row has the labels that were chosen, the others have those of the model
        assert (stored["marks"], stored["items"]) == (3 * len(ANSWERS), len(ANSWERS))
        before, after = (
            {row["item_id"]: row for row in map(json.loads, found.stdout.splitlines())}
            for found in (
                cluster.run("results", tmp_path / "out", "--format", "jsonl", *words)
                for words in ((), ("--corrected",))
            )
        )
        assert json.loads(shown.stdout)["predictions"] == sum(
            bool(row["accepted"]) for row in before.values()
        )
        assert {name: sorted(after[name]["accepted"]) for name in ANSWERS} == {
            name: sorted(labels) for name, labels in ANSWERS.items()
        }
        assert {name for name, row in after.items() if row["corrected"] is not None} == {*ANSWERS}
        others = after.keys() - ANSWERS.keys()
        assert [after[name]["accepted"] for name in others] == [before[name]["accepted"] for name in others]
