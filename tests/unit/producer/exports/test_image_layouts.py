"""Layouts of images: those that a job has seen, wherever they lie, each with its row."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander

from clipfleet.contract.jobs import SourceDescription
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


def write(
    output: FolderOutput,
    to: Path,
    *given: dict[str, Any],
    label_set: LabelSet = SET,
    layout: Layout = Layout.WEBDATASET,
) -> ExportCounts:
    job = make_job(output.uri, task="classify", label_sets=(label_set,))
    place_job(output, job)
    add_part(output, 0, given, accepted=job.accepted_columns)
    return export(PartRows(output), layout, to)


def samples(shard: Path) -> list[dict[str, Any]]:
    """As WebDataset reads them."""
    with shard.open("rb") as file:
        stream = tar_file_expander([{"url": shard.name, "stream": file}], handler=reraise_exception)
        return [dict(sample) for sample in group_by_keys(stream)]


def images(to: Path) -> list[dict[str, Any] | None]:
    """Of a data set."""
    table = pq.read_table(to / "data")
    assert table.column_names[0] == "image"
    return table["image"].to_pylist()


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


def mixed(tmp_path: Path) -> list[dict[str, Any]]:
    """Rows of which only the first has its image."""
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
    return rows


def test_images_that_are_not_those_of_the_job_are_left_out(
    output: FolderOutput, tmp_path: Path, to: Path
) -> None:
    counts = write(output, to, *mixed(tmp_path))

    assert (counts.rows, counts.left_out) == (1, 7)
    assert counts.lack == "an image in a file or on S3 that is the one of the job"
    assert [sample["__key__"] for sample in samples(to / "00000.tar")] == ["000000000"]


def test_a_data_set_has_all_rows_and_the_images_that_are_found(
    output: FolderOutput, tmp_path: Path, to: Path
) -> None:
    counts = write(output, to, *mixed(tmp_path), layout=Layout.HUGGING_FACE_IMAGES)

    assert (counts.rows, counts.left_out) == (8, 0)
    assert counts.notes == ("without an image in a file or on S3 that is the one of the job: 7 rows",)
    assert images(to) == [{"bytes": JPEG, "path": "000000000.jpg"}, *[None] * 7]
    table = pq.read_table(to / "data")
    assert table["item_index"].to_pylist() == list(range(8))
    _, front, body = (to / "README.md").read_text().split("---\n", 2)
    first, *_ = yaml.safe_load(front)["dataset_info"]["features"]
    assert first == {"name": "image", "dtype": "image"}
    assert "| `image` | image | the file that the job has seen; null: not found where it was |" in body


def test_many_bytes_go_into_several_groups_and_files(
    output: FolderOutput, tmp_path: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.exports.hugging_face._BYTES_PER_FILE", 3_000_000)
    monkeypatch.setattr("clipfleet.results.formats._GROUP_BYTES", 1_000_000)
    image = JPEG + bytes(200_000)
    (tmp_path / "a").write_bytes(image)
    given = [of(classified(number), tmp_path / "a", image) for number in range(40)]

    write(output, to, *given, layout=Layout.HUGGING_FACE_IMAGES)

    files = [pq.ParquetFile(path) for path in sorted((to / "data").iterdir())]
    assert [file.num_row_groups for file in files] == [2, 2, 1]
    assert [one["bytes"] == image for one in images(to)] == [True] * 40
    assert pq.read_table(to / "data")["item_index"].to_pylist() == list(range(40))


def test_a_column_of_the_source_makes_room(output: FolderOutput, tmp_path: Path, to: Path) -> None:
    (tmp_path / "a").write_bytes(JPEG)
    columns = ("image", "source_image")
    source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=columns)
    place_job(output, make_job(output.uri, task="classify", label_sets=(SET,), source=source))
    row = of({**classified(0), "image": "one", "source_image": "two"}, tmp_path / "a", JPEG)
    add_part(output, 0, [row], extra=columns)

    export(PartRows(output), Layout.HUGGING_FACE_IMAGES, to)

    assert images(to) == [{"bytes": JPEG, "path": "000000000.jpg"}]
    (found,) = pq.read_table(to / "data", columns=["source_image", "source_source_image"]).to_pylist()
    assert found == {"source_image": "two", "source_source_image": "one"}


@pytest.mark.parametrize("layout", [Layout.WEBDATASET, Layout.HUGGING_FACE_IMAGES])
def test_without_any_image_nothing_is_written(output: FolderOutput, to: Path, layout: Layout) -> None:
    with pytest.raises(UsageError, match="no row has an image in a file or on S3"):
        write(output, to, of(classified(0), "https://example.org/a.jpg", JPEG), layout=layout)
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
