"""The same job into every kind of output: we, other programs and exports read the same rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.json
import pyarrow.parquet as pq
import pytest

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.contract.jobs import PartFormat
from clipfleet.contract.parts import PART_COLUMNS
from clipfleet.exports import Layout
from tests.support.cluster import Cluster
from tests.support.images import encoded, make_image
from tests.support.s3 import S3Bucket

LABELS = ["red apple", "dog", "car"]
# Names of ours, of the layouts, and of what our renaming makes.
HEADER = ["path", "id", "label", "status", "item_id", "embedding", "image_path", "url", "custom_id", "zip"]
CARRIED = ["source_label", "source_status", "source_item_id", "source_embedding", "image_path", "url",
           "custom_id", "zip"]  # fmt: skip
ITEMS, MISSING = 14, {0, 5, 6, 13}


@pytest.fixture
def source(folder: Path) -> Path:
    """A table of images, some of which are missing; ids repeat."""
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for number in range(ITEMS):
            if number not in MISSING:
                (folder / f"{number}.jpg").write_bytes(encoded(make_image(number)))
            theirs = [f'their "{column}"\n{number}, \u732b\u2028' for column in HEADER[2:-1]]
            writer.writerow([f"{number}.jpg", f"id-{number % 3}", *theirs, f"00{number}"])
    return folder / "list.csv"


def submit(client: Client, source: Path, **options: Any) -> JobHandle:
    all_options = {
        "model": "demo",
        "chunk_size": 4,
        "store_embeddings": True,
        "url_column": "path",
        **options,
    }
    job = client.classify(source, LABELS, options=JobOptions(**all_options))
    status = job.wait(120)
    assert (status.ok, status.failed) == (ITEMS - len(MISSING), len(MISSING))
    return job


def test_every_output_gives_the_same_rows_back(client: Client, source: Path, s3: S3Bucket) -> None:
    folder = source.parent
    jobs = {"redis": submit(client, source)}
    for part_format in PartFormat:
        for where, output in (("folder", str(folder / part_format)), ("s3", f"{s3.uri}/{part_format}")):
            jobs[f"{where} {part_format}"] = submit(client, source, output=output, part_format=part_format)

    expected = list(jobs["folder parquet"].results())
    assert [list(row) for row in expected] == [[*PART_COLUMNS, *CARRIED]] * ITEMS
    assert [row["item_index"] for row in expected] == list(range(ITEMS))
    assert [row["item_id"] for row in expected] == [f"id-{number % 3}" for number in range(ITEMS)]
    assert {row["item_index"] for row in expected if row["error_code"] == "not_found"} == MISSING
    assert expected[4]["source_status"] == 'their "status"\n4, \u732b\u2028'
    assert expected[4]["zip"] == "004"
    indexes, vectors = jobs["folder parquet"].vectors()
    assert vectors.shape == (ITEMS - len(MISSING), 128)
    exported = {layout: export(jobs["folder parquet"], folder / layout, layout) for layout in Layout}
    for name, job in jobs.items():
        assert list(job.results()) == expected, name
        found_indexes, found_vectors = job.vectors()
        assert np.array_equal(found_indexes, indexes), name
        assert np.array_equal(found_vectors, vectors), name
        for layout in Layout:
            assert export(job, folder / f"{name} {layout}", layout) == exported[layout], (name, layout)


def export(job: JobHandle, folder: Path, layout: Layout) -> dict[str, Any]:
    """All that an export holds, without what differs from job to job."""
    job.export(layout, folder)
    content: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".parquet":
            content[name] = pq.read_table(path).to_pylist()
        elif path.name not in ("0.json", "batch.json"):
            content[name] = path.read_bytes().replace(job.job_id.encode(), b"JOB")
        else:
            content[name] = sorted(json.loads(path.read_text()))
    return content


@pytest.mark.parametrize("part_format", list(PartFormat))
def test_other_programs_read_the_parts(client: Client, source: Path, part_format: PartFormat) -> None:
    folder, is_json = source.parent / "out", part_format is PartFormat.JSONL
    expected = list(submit(client, source, output=folder, part_format=part_format).results())
    parts = sorted(folder.glob(f"data/part-*.{part_format}"))
    assert len(parts) == 4

    # DuckDB
    options = ", union_by_name = true, sample_size = -1" if is_json else ""
    reader = f"read_{'json' if is_json else 'parquet'}('{folder}/data/part-*.{part_format}'{options})"
    rows = duckdb.sql(f"from {reader} order by item_index")
    assert [dict(zip(rows.columns, values, strict=True)) for values in rows.fetchall()] == expected

    # pandas
    if is_json:
        frame = pd.concat([pd.read_json(part, lines=True, dtype=False, precise_float=True) for part in parts])
    else:
        frame = pd.read_parquet(parts)
    assert list(frame.columns) == list(expected[0])
    assert frame["source_label"].tolist() == [row["source_label"] for row in expected]
    vectors = [row["embedding"] for row in expected if row["embedding"]]
    assert [list(vector) for vector in frame["embedding"].dropna()] == vectors

    # pyarrow
    if is_json:
        names = ["item_index", "zip", "labels"]
        table = pa.concat_tables(map(pyarrow.json.read_json, parts), promote_options="permissive")
        assert table.select(names).to_pylist() == [{name: row[name] for name in names} for row in expected]
    else:
        assert ds.dataset(parts).to_table().to_pylist() == expected


def test_an_export_says_what_is_left_out(cluster: Cluster, client: Client, source: Path) -> None:
    job = submit(client, source)
    command = ("export", job.job_id, "--layout", "clip-retrieval", "--to", source.parent / "index-input")

    said = cluster.run(*command)

    assert (said.returncode, said.stdout) == (0, "")
    assert "10 rows -> " in said.stderr and "left out: 4 rows without an embedding" in said.stderr
    again = cluster.run(*command)
    assert (again.returncode, "is not empty: choose another folder" in again.stderr) == (2, True)
