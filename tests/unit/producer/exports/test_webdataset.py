"""Shards for WebDataset: the images that a job has seen, wherever they lie, each with its row."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander

from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.tar_member import TarMember
from clipfleet.errors import UsageError
from clipfleet.exports import ExportCounts, Layout, export
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from tests.support.jobs import make_job, place_job
from tests.support.rows import accepting, add_part, classified, failed
from tests.support.shards import tar_bytes
from tests.support.sources import table_of

SET = LabelSet(name="pets", labels=("dog", "cat"))
JPEG, PNG = b"\xff\xd8\xff one", b"\x89PNG\r\n\x1a\n two"


def of(row: dict[str, Any], uri: Path | str, data: bytes) -> dict[str, Any]:
    return {**row, "uri": str(uri), "content_hash": hashlib.sha256(data).hexdigest()}


def write(output: FolderOutput, to: Path, *rows: dict[str, Any], label_set: LabelSet = SET) -> ExportCounts:
    job = make_job(output.uri, task="classify", label_sets=(label_set,))
    place_job(output, job)
    add_part(output, 0, rows, accepted=job.accepted_columns)
    return export(PartRows(output), Layout.WEBDATASET, to)


def samples(shard: Path) -> list[dict[str, Any]]:
    """As WebDataset reads them."""
    with shard.open("rb") as file:
        stream = tar_file_expander([{"url": shard.name, "stream": file}], handler=reraise_exception)
        return [dict(sample) for sample in group_by_keys(stream)]


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "to"


def test_each_image_has_its_row_and_its_class(output: FolderOutput, tmp_path: Path, to: Path) -> None:
    (tmp_path / "a").write_bytes(JPEG)
    (tmp_path / "b.tar").write_bytes(tar_bytes([("b.x", PNG)]))
    member = TarMember(str(tmp_path / "b.tar"), "b.x", 512, len(PNG)).uri()
    rows = [of(classified(0), tmp_path / "a", JPEG), of({**classified(1), "label": None}, member, PNG)]

    counts = write(output, to, *rows)

    first, second = samples(to / "00000.tar")
    assert (counts.rows, counts.left_out) == (2, 0)
    assert (first["__key__"], first["jpg"], first["cls"]) == ("000000000", JPEG, b"1")
    assert (second["__key__"], second["png"], "cls" in second) == ("000000001", PNG, False)
    assert b'"item_id": "img0"' in first["json"] and b"embedding" not in first["json"]
    assert (to / "classnames.txt").read_text() == "dog\ncat\n"
    assert table_of(to / "00000.tar")["item_id"].to_pylist() == ["000000000", "000000001"]


def test_of_a_multi_set_there_is_no_class(output: FolderOutput, tmp_path: Path, to: Path) -> None:
    (tmp_path / "a").write_bytes(JPEG)
    multi = LabelSet(name="pets", labels=("dog", "cat"), kind=LabelKind.MULTI)

    write(output, to, of(accepting(0, "cat"), tmp_path / "a", JPEG), label_set=multi)

    assert [path.name for path in to.iterdir()] == ["00000.tar"]
    (sample,) = samples(to / "00000.tar")
    assert b'"accepted": ["cat"]' in sample["json"] and "cls" not in sample


def test_images_that_are_not_those_of_the_job_are_left_out(
    output: FolderOutput, tmp_path: Path, to: Path
) -> None:
    (tmp_path / "same").write_bytes(JPEG)
    (tmp_path / "changed").write_bytes(PNG)
    (tmp_path / "folder").mkdir()
    places = ["same", "changed", "gone", "folder"]
    rows = [of(classified(number), tmp_path / name, JPEG) for number, name in enumerate(places)]
    rows += [of(classified(4), "https://example.org/a.jpg", JPEG), failed(5)]
    rows += [
        of(classified(6), "tar+file:///nonsense", JPEG),
        {**classified(7), "uri": str(tmp_path / "same")},
    ]

    counts = write(output, to, *rows)

    assert (counts.rows, counts.left_out) == (1, 7)
    assert counts.lack == "an image in a file or on S3 that is the one of the job"
    assert [sample["__key__"] for sample in samples(to / "00000.tar")] == ["000000000"]


def test_without_any_image_nothing_is_written(output: FolderOutput, to: Path) -> None:
    with pytest.raises(UsageError, match="no row has an image in a file or on S3"):
        write(output, to, of(classified(0), "https://example.org/a.jpg", JPEG))
    assert not to.exists()


def test_more_rows_than_a_shard_holds_go_into_several(
    output: FolderOutput, tmp_path: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.exports.webdataset._SHARD_ROWS", 2)
    (tmp_path / "a").write_bytes(JPEG)

    write(output, to, *(of(classified(number), tmp_path / "a", JPEG) for number in range(5)))

    shards = sorted(to.glob("*.tar"))
    assert [shard.name for shard in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [len(samples(shard)) for shard in shards] == [2, 2, 1]
