"""Snapshots of stores: all rows whose items are there, as Parquet files that appear whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.contract.columns import VectorType
from clipfleet.errors import OutputUnavailableError, UsageError
from clipfleet.exports import snapshot
from clipfleet.exports.snapshot import export_snapshot
from clipfleet.store.dataset import VectorDataset
from tests.support.store_rows import LISTED_AT, NO_ADDRESSES, item, make_dataset, stored_rows

FACTS = {"model": "demo"}


@pytest.fixture
def dataset(tmp_path: Path) -> VectorDataset:
    """Three rows with a column of the source; the item of a fourth one is gone."""
    made = make_dataset(tmp_path / "a.lance", [item(name, shelf=name.upper()) for name in "abc"])
    gone = stored_rows([item("d", shelf="D")], gone_at=LISTED_AT).to_batches()
    return made.replace(NO_ADDRESSES, gone, {})


def test_a_snapshot_has_the_rows_that_are_there(dataset: VectorDataset, tmp_path: Path) -> None:
    rows = export_snapshot(dataset, tmp_path / "new" / "snapshot", VectorType.FLOAT16, FACTS)

    (file,) = (tmp_path / "new" / "snapshot").iterdir()
    found = pq.read_table(file)
    assert (rows, file.name) == (3, "rows-00000.parquet")
    assert found["item_id"].to_pylist() == ["a", "b", "c"]
    assert found["shelf"].to_pylist() == ["A", "B", "C"]
    assert not {"gone_at", "digest"} & {*found.column_names}
    assert found.schema.field("embedding").type == pa.list_(pa.float16(), 4)
    assert found["embedding"][2].as_py() == [1, 2, 0, 0]
    assert found.schema.metadata[b"model"] == b"demo"
    assert found.schema.metadata[b"version"] == b"3"


def test_vectors_may_be_float32(dataset: VectorDataset, tmp_path: Path) -> None:
    export_snapshot(dataset, tmp_path / "snapshot", VectorType.FLOAT32, FACTS)

    found = pq.read_table(tmp_path / "snapshot")["embedding"].combine_chunks()
    assert found.type == pa.list_(pa.float32(), 4)
    assert np.array_equal(found.flatten().to_numpy()[:8], [1, 0, 0, 0, 1, 1, 0, 0])


def test_many_rows_are_in_many_files(
    dataset: VectorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_ROWS_PER_FILE", 10_000)
    items = [item(f"{number:06}", shelf="x") for number in range(70_000)]
    larger = dataset.replace(NO_ADDRESSES, stored_rows(items, embedding=[1.0] * 4).to_batches(), {})

    rows = export_snapshot(larger, tmp_path / "snapshot", VectorType.FLOAT16, FACTS)

    files = sorted(path.name for path in (tmp_path / "snapshot").iterdir())
    assert rows == 70_003
    assert files == ["rows-00000.parquet", "rows-00001.parquet", "rows-00002.parquet"]
    ids = pq.read_table(tmp_path / "snapshot", columns=["item_id"])["item_id"].to_pylist()
    assert ids == ["a", "b", "c", *(one["item_id"] for one in items)]


def test_a_store_without_rows_has_one_file_without_rows(dataset: VectorDataset, tmp_path: Path) -> None:
    first = VectorDataset.open(dataset.uri, 1)

    assert export_snapshot(first, tmp_path / "snapshot", VectorType.FLOAT32, FACTS) == 0
    assert pq.read_table(tmp_path / "snapshot").schema.field("embedding").type == pa.list_(pa.float32(), 4)


def test_a_folder_with_files_is_kept(dataset: VectorDataset, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()

    with pytest.raises(UsageError, match="is not empty"):
        export_snapshot(dataset, tmp_path / "full", VectorType.FLOAT16, FACTS)


def test_what_fails_half_way_writes_nothing(dataset: VectorDataset, tmp_path: Path) -> None:
    for path in (tmp_path / "a.lance" / "data").iterdir():
        path.write_bytes(b"nothing that Lance reads")

    with pytest.raises(OutputUnavailableError):
        export_snapshot(dataset, tmp_path / "snapshot", VectorType.FLOAT16, FACTS)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lance"]
