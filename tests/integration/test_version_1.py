"""Outputs of schema version 1, before rows had a folder of their own: every reader takes them in place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import JobState, Task
from clipfleet.errors import UsageError
from clipfleet.exports import Layout, export
from clipfleet.ledger.jobs import Ledger
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results import rows as results
from clipfleet.results.formats import ResultFormat, write
from clipfleet.results.part_rows import PartRows
from clipfleet.settings import Settings
from clipfleet.sources import open_source
from clipfleet.submit.options import make_job
from tests.support.version_1 import BROKEN, FINISHED, ITEMS, LARGE, files_of, version_1_output

OF_IMAGES = [Layout.HUGGING_FACE_IMAGES, Layout.FIFTYONE, Layout.WEBDATASET]
FAILED = {LARGE: "too_many_pixels", BROKEN: "broken_image"}


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(Settings(redis_url=SecretStr(redis_url))) as client:
        yield client


@pytest.fixture(params=FINISHED)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return version_1_output(request.param, tmp_path)


def reader_of(output: Path) -> PartRows:
    return PartRows(FolderOutput(output))


def test_its_rows_are_read_as_they_are(output: Path) -> None:
    reader = reader_of(output)

    found = list(results.rows(reader))

    assert reader.finished_at() is not None
    assert [row["item_index"] for row in found] == list(range(ITEMS))
    assert {row["item_index"]: row["error_code"] for row in found if row["status"] == "failed"} == FAILED
    assert sorted(reader.failure_examples()) == sorted(FAILED.values())
    if (parts := sorted(output.glob("part-*.parquet"))) != []:
        assert found == pa.concat_tables(map(pq.read_table, parts)).to_pylist()
    else:
        lines = [line for part in sorted(output.glob("part-*")) for line in part.read_text().splitlines()]
        assert found == list(map(json.loads, lines))


def test_its_vectors_are_equal_in_both_formats(tmp_path: Path) -> None:
    (indexes, matrix), (others, same) = (
        results.vectors(reader_of(version_1_output(name, tmp_path))) for name in ("embed", "jsonl")
    )

    assert indexes.tolist() == others.tolist() == [n for n in range(ITEMS) if n not in FAILED]
    assert matrix.dtype == np.float16
    assert np.array_equal(matrix, same)
    assert results.vectors(reader_of(version_1_output("classify", tmp_path)))[1].size == 0


@pytest.mark.parametrize("result_format", list(ResultFormat))
def test_it_is_printed_in_every_format(output: Path, result_format: ResultFormat) -> None:
    stream = io.BytesIO()

    assert write(reader_of(output), result_format, stream) == ITEMS
    if result_format is ResultFormat.CSV:
        printed = list(csv.DictReader(io.StringIO(stream.getvalue().decode())))
        assert [row["item_id"] for row in printed] == [f"n{number}" for number in range(ITEMS)]


@pytest.mark.parametrize("layout", [one for one in Layout if one not in OF_IMAGES])
def test_it_is_exported_in_every_layout_of_rows(tmp_path: Path, layout: Layout) -> None:
    name = "classify" if layout is Layout.LABEL_STUDIO else "embed"  # it needs labels
    counts = export(reader_of(version_1_output(name, tmp_path)), layout, tmp_path / "to")

    assert counts.rows + counts.left_out == ITEMS


@pytest.mark.parametrize("layout", OF_IMAGES)
def test_its_images_are_gone(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(UsageError, match="no row has an image in a file"):
        export(reader_of(version_1_output("classify", tmp_path)), layout, tmp_path / "to")


def test_a_rebuild_restores_its_job_and_changes_no_file(client: Client, output: Path) -> None:
    before = files_of(output)

    job = client.rebuild(output)

    status = job.status()
    assert (status.state, status.ok, status.failed) == (JobState.COMPLETED_WITH_ERRORS, 7, 2)
    assert status.codes == dict.fromkeys(FAILED.values(), 1)
    assert [row["item_index"] for row in job.results()] == list(range(ITEMS))
    assert files_of(output) == before


def test_a_submit_that_version_1_began_goes_on_in_its_layout(
    client: Client, ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "urls.txt").write_text("https://example.org/a.jpg\n")
    source, output = str(tmp_path / "urls.txt"), tmp_path / "out"
    options = JobOptions(model="demo", output=str(output), job_id="began")
    began = make_job(open_source(source), options, Task.EMBED)
    ledger.submit(began.model_copy(update={"schema_version": 1}))

    client.embed(source, options=options)

    assert json.loads((output / "_clipfleet" / "job.json").read_text())["schema_version"] == 1
    (staged,) = output.glob("_clipfleet/items-*")
    assert staged.name == "items-00000000-1.parquet"
    assert pq.read_schema(staged).metadata[b"schema_version"] == b"1"
