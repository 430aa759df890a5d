"""Every source into every sink: one row per input, in order, codes and columns right, read by anyone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pandas
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import S3FileSystem, copy_files
from typer.testing import CliRunner

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.commands import app
from clipfleet.contract.jobs import PartFormat
from clipfleet.errors import JobConflictError, OutputConflictError
from tests.support.cluster import Cluster, ends
from tests.support.http_site import HttpSite
from tests.support.s3 import S3Bucket
from tests.support.source_table import SOURCES, Given, Place

pytestmark = pytest.mark.long

LABELS = ("red apple", "dog", "car")
CHUNK_SIZE = 4


# Where rows go, and how parts are written.
SINKS = {
    "folder": ("{folder}/out", PartFormat.PARQUET),
    "s3": ("{bucket}/out", PartFormat.PARQUET),
    "redis": ("redis://", PartFormat.PARQUET),
    "folder jsonl": ("{folder}/out", PartFormat.JSONL),
    "s3 jsonl": ("{bucket}/out", PartFormat.JSONL),
}
# What a format of parts can get wrong are columns, so these are enough for the second one.
WITH_COLUMNS = ("csv", "parquet", "dicts", "tar shards", "image parquet", "s3 jsonl.gz")
CASES = [
    (source, sink) for source in SOURCES for sink in SINKS if "jsonl" not in sink or source in WITH_COLUMNS
]


@pytest.fixture
def place(folder: Path, s3: S3Bucket, site: HttpSite) -> Place:
    return Place(folder, s3, site)


@pytest.fixture
def client(client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", cluster.server.url)  # for commands in this process
    return client


@pytest.mark.parametrize(("source", "sink"), CASES)
def test_one_row_per_input(place: Place, cluster: Cluster, client: Client, source: str, sink: str) -> None:
    given, (output, part_format) = SOURCES[source](place), SINKS[sink]
    options = JobOptions(
        output=output.format(folder=place.folder, bucket=place.bucket.uri), part_format=part_format,
        model="demo", chunk_size=CHUNK_SIZE, base_uri=given.base_uri, url_column=given.url_column,
    )  # fmt: skip
    job = _submitted(given, options, cluster, client)

    status = job.wait(120)

    failed = sum(row.error_code is not None for row in given.rows)
    state = "completed_with_errors" if failed else "completed"
    assert (status.total, status.failed, status.state) == (len(given.rows), failed, state)
    assert ends(cluster, job.job_id) == [("0", state)]
    for reader, rows in _read_back(job, place, is_json=part_format is PartFormat.JSONL).items():
        _compare(rows, given, reader)
    if output != "redis://":  # a second job has no place in this output
        with pytest.raises(OutputConflictError, match="`overwrite=True`"):
            client.embed([b"a picture"], options=JobOptions(output=options.output, model="demo"))


def _submitted(given: Given, options: JobOptions, cluster: Cluster, client: Client) -> JobHandle:
    if given.stdin is None:
        return client.classify(given.source, LABELS, options=options)
    command = [
        sys.executable, "-m", "clipfleet", "classify", "-", "--labels", ",".join(LABELS), "--model", "demo",
        "--output", str(options.output), "--chunk-size", str(CHUNK_SIZE), "--format", options.part_format,
        "--no-wait", "--json",
    ]  # fmt: skip
    done = subprocess.run(
        command, input=given.stdin, env=cluster.environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return client.job(json.loads(done.stdout)["job_id"])


def _read_back(job: JobHandle, place: Place, *, is_json: bool) -> Mapping[str, Sequence[Any]]:
    """The rows as each reader sees them."""
    files = _files(job, place)
    read_arrow = pyarrow.json.read_json if is_json else pq.read_table
    read_duckdb = duckdb.read_json if is_json else duckdb.read_parquet
    read_pandas = partial(pandas.read_json, lines=True, dtype=False) if is_json else pandas.read_parquet
    tables = [read_arrow(file) for file in files]
    relation = read_duckdb([str(file) for file in files]).order("item_index")
    return {
        "results": [json.loads(line) for line in _printed(job, "jsonl").splitlines()],
        "JobHandle": list(job.results()),
        "pyarrow": pa.concat_tables(tables, promote_options="permissive" if is_json else "none").to_pylist(),
        "DuckDB": [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()],
        "pandas": pandas.concat(map(read_pandas, files)).astype(object).to_dict("records"),
    }


def _printed(job: JobHandle, result_format: str) -> bytes:
    """What `clipfleet results` says; in this process, for it is asked often."""
    answer = CliRunner().invoke(app, ["results", job.job_id, "--format", result_format])
    assert answer.exit_code == 0, answer
    return answer.stdout_bytes


def _files(job: JobHandle, place: Place) -> list[Path]:
    """The parts by glob; from a bucket by a client that is not ours, from Redis as `results` writes them."""
    copy = place.folder / "copy"
    if job.output.startswith("s3://"):
        environment = place.bucket.environment
        system = S3FileSystem(
            access_key=environment["AWS_ACCESS_KEY_ID"],
            secret_key=environment["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=place.bucket.endpoint,
            region="us-east-1",
        )
        copy_files(f"{place.bucket.name}/out", str(copy), source_filesystem=system)
        return sorted(copy.glob("data/part-*"))
    if job.output.startswith("redis://"):
        copy.write_bytes(_printed(job, "parquet"))
        return [copy]
    return sorted(Path(job.output).glob("data/part-*"))


def _compare(rows: Sequence[Mapping[str, Any]], given: Given, reader: str) -> None:
    assert [row["item_index"] for row in rows] == list(range(len(given.rows))), reader
    for row, expected in zip(rows, given.rows, strict=True):
        found = (row["item_id"], row["status"], _value(row["error_code"]))
        status = "failed" if expected.error_code else "ok"
        assert found == (expected.item_id, status, expected.error_code), (reader, row)
        assert {name: row[name] for name in expected.columns} == expected.columns, (reader, row)
        if status == "ok":
            assert row["label"] in LABELS, (reader, row)
            assert (row["width"], row["height"]) == (96, 80), (reader, row)
        else:
            assert _value(row["label"]) is None, (reader, row)
            assert row["error_detail"], (reader, row)


def _value(value: Any) -> Any:
    """None for what pandas calls not a number."""
    return None if isinstance(value, float) and pandas.isna(value) else value


def test_in_redis_a_second_job_needs_another_name(place: Place, client: Client) -> None:
    options = JobOptions(output="redis://", model="demo", job_id=place.folder.name)
    client.embed([b"one"], options=options).wait(60)
    with pytest.raises(JobConflictError, match="source"):
        client.embed([b"one", b"two"], options=options)
