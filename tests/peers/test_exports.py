"""Exports are opened and indexed by the programs that they are made for, in their own environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet.client import Client
from tests.peers.listed_images import write_list
from tests.support.cluster import Cluster

pytestmark = pytest.mark.peers

ITEMS = 240
# Failures at both ends, next to each other, and a whole chunk of them.
BAD = {0, 1, 7, 100, 101, 102, ITEMS - 1, *range(160, 176)}
CHUNK_SIZE = 16


@dataclass(frozen=True)
class Exported:
    """An export, and what the job itself says."""

    folder: Path
    items: list[int]  # index of each row that has a vector
    vectors: np.ndarray


@pytest.fixture(scope="module", params=["parquet", "jsonl"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """An embed job over a list in which some images are missing, exported with the command."""
    folder = tmp_path_factory.mktemp("peers")
    with Cluster(folder) as cluster:
        cluster.start_worker()
        write_list(folder, ITEMS, BAD, "page", lambda number: f"https://example.org/{number}")
        done = cluster.run_json(
            "embed", folder / "list.csv", "--model", "demo", "--output", folder / "out",
            "--format", request.param, "--chunk-size", str(CHUNK_SIZE), expect=3,
        )  # fmt: skip
        assert (done["ok"], done["failed"]) == (ITEMS - len(BAD), len(BAD))
        answer = cluster.run_json(
            "export", done["job_id"], "--layout", "clip-retrieval", "--to", folder / "export"
        )
        assert (answer["rows"], answer["left_out"]) == (ITEMS - len(BAD), len(BAD))
        with Client(cluster.client_settings()) as client:
            items, vectors = client.job(done["job_id"]).vectors()
        yield Exported(folder / "export", items.tolist(), vectors)


def test_row_i_of_the_reader_and_of_the_index_is_row_i(
    python_of: Callable[[str], Path], exported: Exported
) -> None:
    script = Path(__file__).with_name("index_export.py")
    shown = subprocess.run(
        [python_of("PEERS_PYTHON"), script, exported.folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])

    # Then the reader pairs every vector with the metadata of its own image
    good = [number for number in range(ITEMS) if number not in BAD]
    assert exported.items == good
    assert (found["count"], found["dimension"]) == (len(good), exported.vectors.shape[1])
    assert [row["item_index"] for row in found["rows"]] == good
    assert [row["item_id"] for row in found["rows"]] == [f"id-{number}" for number in good]
    assert [Path(row["image_path"]).name for row in found["rows"]] == [f"{number}.jpg" for number in good]
    assert [row["i"] for row in found["rows"]] == list(range(len(good)))
    assert np.array_equal(np.array(found["vectors"], np.float32), exported.vectors.astype(np.float32))

    # And the index finds every vector under its own row
    assert (found["indexed"], found["index_dimension"]) == (len(good), exported.vectors.shape[1])
    assert found["nearest"] == list(range(len(good)))
