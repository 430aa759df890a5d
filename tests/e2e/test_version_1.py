"""Outputs of schema version 1 are finished and retried in place, in their own layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipfleet.outputs.folder import FolderOutput
from clipfleet.redis.connection import connect
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from tests.support.cluster import Cluster, ends
from tests.support.images import write_images
from tests.support.version_1 import (
    BROKEN,
    FINISHED,
    ITEMS,
    LARGE,
    files_of,
    restore_unfinished,
    version_1_output,
)

OF_THE_LAYOUT = {"_SUCCESS", "_manifest.json", "errors.jsonl", "_clipfleet"}


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with one worker, whose server is emptied by tests."""
    settings = {"CLIPFLEET_LEASE_SECONDS": "5", "CLIPFLEET_RECONCILE_SECONDS": "0.5"}
    with Cluster(tmp_path_factory.mktemp("version-1"), settings) as cluster:
        cluster.start_worker()
        yield cluster


@pytest.fixture
def place(forgetful: Cluster, tmp_path: Path) -> Path:
    place = forgetful.folder / tmp_path.name
    place.mkdir()
    return place


def rows(output: Path) -> list[dict[str, Any]]:
    return list(results.rows(PartRows(FolderOutput(output))))


def is_of_version_1(output: Path, *, parts: int, suffix: str = "parquet") -> None:
    names = {f"part-{chunk:08d}.{suffix}" for chunk in range(parts)}
    assert {path.name for path in output.iterdir()} == OF_THE_LAYOUT | names
    assert json.loads((output / "_manifest.json").read_text())["schema_version"] == 1
    stated = [int(pq.read_schema(path).metadata[b"schema_version"]) for path in output.glob("*.parquet")]
    footers = map(Path.read_text, output.glob("_clipfleet/footer-*"))
    stated += [int(json.loads(text)["schema_version"]) for text in footers]
    assert stated == [1] * parts


@pytest.mark.parametrize("is_lost", [False, True], ids=["in Redis", "lost by Redis"])
def test_an_unfinished_job_is_finished_by_new_workers(forgetful: Cluster, place: Path, is_lost: bool) -> None:
    output = version_1_output("unfinished", place)
    before = files_of(output)
    with connect(forgetful.server.url) as client:
        client.flushall()
        if not is_lost:
            restore_unfinished(client, place)

    if is_lost:
        forgetful.run_json("rebuild", output, expect=3)
    else:
        forgetful.client.job("unfinished").wait(120)

    is_of_version_1(output, parts=5)
    assert before.items() <= files_of(output).items()  # the part of the dead worker too
    found = forgetful.rows(output)
    assert [row["item_index"] for row in found] == list(range(ITEMS))
    assert [row["item_index"] for row in found if row["status"] == "failed"] == [LARGE, BROKEN]
    assert ends(forgetful, "unfinished") == [("0", "completed_with_errors")]


@pytest.mark.parametrize("name", FINISHED)
def test_a_retry_runs_its_failed_rows(forgetful: Cluster, place: Path, name: str) -> None:
    output = version_1_output(name, place)
    before, old_files = rows(output), files_of(output)

    answer = forgetful.run_json("retry", output, expect=3)

    assert (answer["ok"], answer["failed"]) == (ITEMS - 1, 1)
    suffix = "jsonl" if name == "jsonl" else "parquet"
    is_of_version_1(output, parts=3, suffix=suffix)
    for old, new in zip(before, rows(output), strict=True):
        assert new == old or (old["item_index"], new["status"]) == (LARGE, "ok")
    untouched = f"part-00000001.{suffix}"
    assert files_of(output)[untouched] == old_files[untouched]
    (left,) = map(json.loads, (output / "errors.jsonl").read_text().splitlines())
    assert (left["item_index"], left["error_code"]) == (BROKEN, "broken_image")


def test_a_new_job_takes_its_place(forgetful: Cluster, place: Path) -> None:
    output = version_1_output("embed", place)
    write_images(place / "images", 2)
    refused = forgetful.run("embed", place / "images", "--model", "demo", "--output", output)
    assert (refused.returncode, "holds job embed" in refused.stderr) == (2, True)

    forgetful.run_json("embed", place / "images", "--model", "demo", "--output", output, "--overwrite")

    assert {path.name for path in output.iterdir()} == OF_THE_LAYOUT - {"errors.jsonl"} | {
        "data",
        "_errors.jsonl",
    }
    assert [path.name for path in output.glob("**/*.parquet")] == ["part-00000000.parquet"]
    assert len(rows(output)) == 2
