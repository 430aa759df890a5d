"""The same job into every kind of output: we, other programs and exports read the same rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Source:
    """A table of images, some of which are missing; ids repeat."""

    path: Path

    def write(self) -> None:
        self.path.parent.mkdir(parents=True)
        with self.path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for number in range(ITEMS):
                name = f"{number}.jpg"
                if number not in MISSING:
                    (self.path.parent / name).write_bytes(encoded(make_image(number)))
                theirs = [f'their "{column}"\n{number}, \u732b\u2028' for column in HEADER[2:-1]]
                writer.writerow([name, f"id-{number % 3}", *theirs, f"00{number}"])


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.client_settings()) as client:
        yield client


@pytest.fixture
def source(cluster: Cluster, tmp_path: Path) -> Source:
    source = Source(cluster.folder / tmp_path.name / "list.csv")
    source.write()
    return source


def submit(client: Client, source: Source, **options: Any) -> JobHandle:
    job = client.classify(
        str(source.path),
        LABELS,
        options=JobOptions(model="demo", chunk_size=4, store_embeddings=True, url_column="path", **options),
    )
    status = job.wait(120)
    assert (status.ok, status.failed) == (ITEMS - len(MISSING), len(MISSING))
    return job


def test_every_output_gives_the_same_rows_back(
    cluster: Cluster, client: Client, source: Source, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    folder = source.path.parent
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
def test_other_programs_read_the_parts(
    cluster: Cluster, client: Client, source: Source, part_format: PartFormat
) -> None:
    folder = source.path.parent / "out"
    job = submit(client, source, output=folder, part_format=part_format)
    expected = list(job.results())
    pattern = folder / f"part-*.{part_format}"
    parts = sorted(folder.glob(pattern.name))
    assert len(parts) == 4

    # DuckDB
    options = ", union_by_name = true, sample_size = -1" if part_format is PartFormat.JSONL else ""
    rows = duckdb.sql(
        f"from read_{'json' if options else 'parquet'}('{pattern}'{options}) order by item_index"
    )
    found = [dict(zip(rows.columns, values, strict=True)) for values in rows.fetchall()]
    assert found == expected

    # pandas
    if part_format is PartFormat.PARQUET:
        frame = pd.read_parquet(parts)
    else:
        frame = pd.concat([pd.read_json(part, lines=True, dtype=False, precise_float=True) for part in parts])
    assert list(frame.columns) == list(expected[0])
    assert frame["source_label"].tolist() == [row["source_label"] for row in expected]
    assert [list(vector) for vector in frame["embedding"].dropna()] == [
        row["embedding"] for row in expected if row["embedding"]
    ]

    # pyarrow
    if part_format is PartFormat.PARQUET:
        assert ds.dataset(parts).to_table().to_pylist() == expected
    else:
        tables = [pyarrow.json.read_json(part) for part in parts]
        table = pa.concat_tables(tables, promote_options="permissive")
        assert table.select(["item_index", "zip", "labels"]).to_pylist() == [
            {name: row[name] for name in ("item_index", "zip", "labels")} for row in expected
        ]


def test_the_commands_read_json_lines(cluster: Cluster, source: Source) -> None:
    folder = source.path.parent
    done = cluster.run_json(
        "embed", source.path, "--url-column", "path", "--model", "demo", "--output", folder / "out",
        "--format", "jsonl", "--chunk-size", "5", expect=3,
    )  # fmt: skip
    assert [path.name for path in sorted(folder.glob("out/part-*"))] == [
        f"part-0000000{chunk}.jsonl" for chunk in range(3)
    ]
    errors = [json.loads(line) for line in (folder / "out" / "errors.jsonl").read_text().split("\n")[:-1]]
    assert {error["item_index"] for error in errors} == MISSING
    manifest = json.loads((folder / "out" / "_manifest.json").read_text())
    assert [part["rows"] for part in manifest["parts"]] == [5, 5, 4]

    # By the job's id and by the folder, which outlives it
    printed = [
        cluster.run("results", name, "--format", "jsonl").stdout for name in (done["job_id"], folder / "out")
    ]
    assert printed[0] == printed[1] == "".join(path.read_text() for path in sorted(folder.glob("out/part-*")))
    table = csv.DictReader(io.StringIO(cluster.run("results", folder / "out", "--format", "csv").stdout))
    assert [row["source_item_id"] for row in table] == [
        json.loads(line)["source_item_id"] for line in printed[0].split("\n")[:-1]
    ]

    # An export says what is left out, and replaces nothing
    command = ("export", folder / "out", "--layout", "clip-retrieval", "--to", folder / "index-input")
    told = cluster.run(*command)
    assert (told.returncode, told.stdout) == (0, "")
    assert "10 rows -> " in told.stderr
    assert "4 rows without an embedding are left out" in told.stderr
    again = cluster.run(*command)
    assert again.returncode == 2
    assert "is not empty: choose another folder" in again.stderr
