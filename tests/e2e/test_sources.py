"""Typed columns, shards of other programs, mixtures, and standard input that pauses, with a real worker."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import PartFormat
from clipfleet.sources import SourceLike
from tests.support.cluster import Cluster
from tests.support.images import encoded, make_image
from tests.support.s3 import S3Bucket
from tests.support.shards import webdataset_shard
from tests.support.waiting import wait_until

COUNT = 6
IMAGES = [encoded(make_image(number)) for number in range(COUNT)]


@dataclass
class Place:
    """Where the images and lists of a test lie: a folder that the worker may read, and a bucket."""

    folder: Path
    s3: S3Bucket

    def write(self, name: str, data: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path


@dataclass(frozen=True)
class Given:
    """A source, and what must come of it."""

    source: SourceLike
    ids: Sequence[str]
    codes: Sequence[str | None]
    columns: dict[str, Sequence[Any]] = field(default_factory=dict)


@pytest.fixture
def place(folder: Path, s3: S3Bucket) -> Place:
    for number, data in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(data)
        s3.put(f"images/{number}.jpg", data)
    return Place(folder, s3)


ALL = [str(number) for number in range(COUNT)]
NAMES = [f"{number}.jpg" for number in range(COUNT)]
OK: list[str | None] = [None] * COUNT

# A list of all images, of one that is missing, of an empty name, and of one twice under the same id.
URIS = [*NAMES, "missing.jpg", "", "0.jpg"]
IDS = [*ALL, "gone", "blank", "0"]
CODES = [*OK, "not_found", "bad_uri", None]
TEXTS = {
    "source_label": [f"mine {n}" for n in range(9)],
    "source_status": ["new"] * 9,
    "note": ['a,"b"\tü'] * 9,
}
NUMBERS = {"n": [1, 2, None, 4, 5, 6, 7, 8, 9], "x": [0.5] * 9}
HEADER = ["id", "url", "label", "status", "note"]
ROWS = [[name, uri, *texts] for name, uri, *texts in zip(IDS, URIS, *TEXTS.values(), strict=True)]


def records() -> list[dict[str, Any]]:
    numbers = zip(*NUMBERS.values(), strict=True)
    return [
        {**dict(zip(HEADER, row, strict=True)), "n": n, "x": x, "more": {"deep": [n]}}
        for row, (n, x) in zip(ROWS, numbers, strict=True)
    ]


def json_lines() -> str:
    return "".join(json.dumps(record) + "\n" for record in records())


JSON_COLUMNS = {**TEXTS, **NUMBERS, "more": [json.dumps({"deep": [n]}) for n in NUMBERS["n"]]}
TYPED = {**TEXTS, **NUMBERS, "tags": [["a", "b"]] * 9, "day": ["2026-01-02"] * 9}


def parquet_bytes() -> bytes:
    columns = dict(zip(HEADER, zip(*ROWS, strict=True), strict=True))
    typed = {"n": pa.array(NUMBERS["n"], pa.int32()), "x": NUMBERS["x"], "tags": TYPED["tags"]}
    day = pa.array([20455] * 9, pa.int32()).cast(pa.date32())
    table = pa.table({**{name: pa.array(values) for name, values in columns.items()}, **typed, "day": day})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=4)
    return buffer.getvalue()


def webdataset_shards(place: Place) -> Given:
    for shard in range(2):
        samples = [
            {"__key__": f"s/{n}", "jpg": IMAGES[n], "cls": n, "json": {"n": n, "label": "x"}}
            for n in range(shard * 3, shard * 3 + 3)
        ]
        webdataset_shard(place.folder / f"{shard:03d}.tar", samples)
    columns = {"cls": range(COUNT), "n": range(COUNT), "source_label": ["x"] * COUNT}
    return Given(f"{place.folder}/{{000..001}}.tar", [f"s/{n}" for n in range(COUNT)], OK, columns)


def iterable(place: Place) -> Given:
    given: list[Any] = [str(place.folder / "0.jpg"), place.folder / "1.jpg", IMAGES[2]]
    given += [{"url": f"{place.s3.uri}/images/3.jpg", "id": "three", "n": 3, "label": "x"}]
    given += [{"bytes": IMAGES[4]}, b"no picture"]
    columns = {"n": [None, None, None, 3, None, None], "source_label": [None, None, None, "x", None, None]}
    return Given(given, ["0", "1", "2", "three", "4", "5"], [*OK[:5], "not_an_image"], columns)


GIVEN: dict[str, Callable[[Place], Given]] = {
    "jsonl": lambda place: Given(place.write("a.jsonl", json_lines()), IDS, CODES, JSON_COLUMNS),
    "parquet": lambda place: Given(place.write("a.parquet", parquet_bytes()), IDS, CODES, TYPED),
    "webdataset": webdataset_shards,
    "iterable": iterable,
}


# Every kind of source into every kind of output is in test_sources_and_sinks.py, with columns of text.
@pytest.mark.parametrize(
    ("kind", "output"),
    [("jsonl", "{folder}/out"), ("parquet", "{bucket}/out"), ("parquet", "redis://"), ("webdataset", "redis://"),
     ("iterable", "{folder}/out")],
)  # fmt: skip
def test_columns_keep_their_types_and_values(client: Client, place: Place, kind: str, output: str) -> None:
    given = GIVEN[kind](place)
    options = JobOptions(
        output=output.format(folder=place.folder, bucket=place.s3.uri), model="demo", chunk_size=4,
        part_format=PartFormat.JSONL if kind == "jsonl" else PartFormat.PARQUET,
    )  # fmt: skip

    job = client.classify(given.source, ["red apple", "dog", "car"], options=options)
    status = job.wait(120)

    failed = len(given.codes) - given.codes.count(None)
    assert (status.total, status.failed) == (len(given.ids), failed), status
    rows = list(job.results())
    assert [row["item_index"] for row in rows] == list(range(len(given.ids)))
    assert [row["item_id"] for row in rows] == list(given.ids)
    assert [row["error_code"] for row in rows] == list(given.codes)
    assert all((row["label"] is not None) == (row["status"] == "ok") for row in rows)
    for name, values in given.columns.items():
        assert [row[name] for row in rows] == list(values), name


class TestStandardInput:
    def start(self, cluster: Cluster, place: Place, lines: list[bytes]) -> subprocess.Popen[bytes]:
        """A submit that has been given some lines and waits for more."""
        command = [Path(sys.executable).with_name("clipfleet"), "embed", "-", "--model", "demo", "--json"]
        command += ["--output", place.folder / "out", "--job-id", place.folder.name]
        process = subprocess.Popen(
            list(map(str, command)), env=cluster.environment(), cwd=cluster.folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(b"".join(lines))
        process.stdin.flush()
        return process

    def wait_for_rows(self, client: Client, job_id: str, count: int) -> None:
        def ok() -> int:
            return next((status.ok for status in client.jobs() if status.job_id == job_id), 0)

        wait_until(lambda: ok() == count, f"{count} rows are there")

    @pytest.mark.parametrize("kind", ["lines", "json"])
    def test_items_are_worked_on_while_more_come(
        self, cluster: Cluster, client: Client, place: Place, kind: str
    ) -> None:
        paths = [f"{place.folder}/{name}" for name in NAMES[:3]]
        records = [json.dumps({"url": path, "n": number}) for number, path in enumerate(paths)]
        lines = [f"{line}\n".encode() for line in (records if kind == "json" else paths)]
        with self.start(cluster, place, lines[:1]) as process:
            self.wait_for_rows(client, place.folder.name, 1)
            answer, said = process.communicate(b"".join(lines[1:]), timeout=120)

        assert process.returncode == 0, said
        assert json.loads(answer)["ok"] == 3
        rows = list(client.job(place.folder.name).results())
        assert [row["uri"] for row in rows] == paths
        assert [row.get("n") for row in rows] == ([0, 1, 2] if kind == "json" else [None] * 3)

    def test_the_same_lines_resume_where_a_killed_submit_stopped(
        self, cluster: Cluster, client: Client, place: Place
    ) -> None:
        lines = [f"{place.folder}/{name}\n".encode() for name in NAMES]
        with self.start(cluster, place, lines[:2]) as process:
            self.wait_for_rows(client, place.folder.name, 2)
            process.kill()

        with self.start(cluster, place, []) as process:
            answer, said = process.communicate(b"".join(lines), timeout=120)

        assert process.returncode == 0, said
        assert json.loads(answer)["ok"] == COUNT
        assert [Path(row["uri"]).name for row in client.job(place.folder.name).results()] == NAMES
