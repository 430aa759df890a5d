"""Failed rows become good ones in place, whatever dies meanwhile; a ledger that was lost is put back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipfleet import keys
from tests.support.cluster import Cluster, job_events
from tests.support.http_site import HttpSite
from tests.support.pictures import encoded, picture

LABELS = "red apple,dog,car,house"
CHUNK = 8


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    (tmp_path / "site").mkdir()
    with HttpSite(tmp_path / "site") as running:
        yield running


def write_list(
    folder: Path, site: HttpSite, site_folder: Path, *, chunks: int, sick_chunks: set[int]
) -> Path:
    """A CSV of URLs; in each of the sick chunks every third one fails until the site is healed."""
    for number in range(7):
        (site_folder / f"{number}.jpg").write_bytes(encoded(picture(number)))
    lines = ["id,url,note"]
    for item in range(chunks * CHUNK):
        is_sick = item // CHUNK in sick_chunks and item % 3 == 0
        path = f"/{'sick' if is_sick else 'files'}/{item % 7}.jpg"
        lines.append(f"n{item},{site.url(path)},note {item}")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "list.csv"
    source.write_text("\n".join(lines) + "\n")
    return source


def rows(output: Path) -> list[dict[str, Any]]:
    parts = sorted(output.glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def generations(output: Path) -> list[int]:
    parts = sorted(output.glob("part-*.parquet"))
    return [int(pq.read_schema(part).metadata[b"generation"]) for part in parts]


def test_a_retry_turns_exactly_the_failed_rows_into_good_ones_in_place(
    cluster: Cluster, tmp_path: Path, site: HttpSite
) -> None:
    folder = cluster.folder / tmp_path.name
    source = write_list(folder, site, tmp_path / "site", chunks=4, sick_chunks={1, 3})
    output = folder / "out"
    answer = cluster.run_json(
        "classify", source, "--labels", LABELS, "--model", "demo", "--output", output, "--chunk-size", CHUNK,
        expect=3,
    )  # fmt: skip
    job_id, failed = answer["job_id"], answer["failed"]
    assert (answer["state"], failed) == ("completed_with_errors", 6)
    before, inodes = rows(output), [part.stat().st_ino for part in sorted(output.glob("part-*"))]
    site.heal()
    asked = dict(site.requests)

    answer = cluster.run_json("retry", job_id)

    assert (answer["state"], answer["total"], answer["ok"], answer["failed"]) == ("completed", 32, 32, 0)
    after = rows(output)
    assert [row["item_id"] for row in after] == [f"n{item}" for item in range(32)]
    assert [row["note"] for row in after] == [f"note {item}" for item in range(32)]
    for old, new in zip(before, after, strict=True):
        assert new["status"] == "ok"
        assert new == old or old["status"] == "failed"
    assert sum(site.requests.values()) - sum(asked.values()) == failed
    assert generations(output) == [0, 1, 0, 1]
    new_inodes = [part.stat().st_ino for part in sorted(output.glob("part-*"))]
    assert [old == new for old, new in zip(inodes, new_inodes, strict=True)] == [True, False, True, False]
    assert (output / keys.SUCCESS).exists()
    assert (output / keys.ERRORS).read_text() == ""
    manifest = json.loads((output / keys.MANIFEST).read_text())
    assert (manifest["generation"], manifest["ok"], manifest["failed"]) == (1, 32, 0)
    events = [(event["generation"], event["state"]) for event in job_events(cluster, job_id)]
    assert events == [("0", "completed_with_errors"), ("1", "completed")]
    again = cluster.run("retry", job_id)
    assert again.returncode == 0
    assert "no failed rows" in again.stderr
    assert (output / keys.SUCCESS).exists()
