"""The rows of a store at one version, read in ranges."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.jobs import StoreVersion
from clipfleet.contract.parts import PartRange
from clipfleet.errors import (
    OutputConflictError,
    OutputDamagedError,
    OutputUnavailableError,
    OutputUnreachableError,
)
from clipfleet.results import store_ranges
from clipfleet.results.store_ranges import StoreRanges
from clipfleet.results.vector_ranges import KEPT_COLUMNS, VECTORS_COLUMN
from clipfleet.store.dataset import VectorDataset, remove_dataset
from clipfleet.store.place import StorePlace, store_place
from tests.support.store_rows import (
    DIMENSION,
    FINGERPRINT,
    NO_ADDRESSES,
    commit_gone,
    item,
    make_store,
    stored_rows,
)

ITEMS = [item(f"{number:04}", caption=f"{number}") for number in range(700)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with 700 rows at version 2; every third of them is gone at version 3, and comes last."""
    folder = tmp_path_factory.mktemp("made") / "store"
    place = make_store(folder, ITEMS)
    commit_gone(VectorDataset.open(place.dataset_uri(FINGERPRINT)), ITEMS[::3])
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> StorePlace:
    return store_place(str(shutil.copytree(made, tmp_path / "store")))


def ranges_of(place: StorePlace, version: int = 2, most_rows: int = 4096, **values: Any) -> StoreRanges:
    vectors = StoreVersion(
        uri=place.uri, store_id=place.read().store_id, version=version, model_fingerprint=FINGERPRINT,
        dimension=DIMENSION,
    )  # fmt: skip
    return StoreRanges(place, vectors.model_copy(update=values), ["caption"], most_rows)


def ids(rows: pa.Table) -> list[str]:
    found: list[str] = rows["item_id"].to_pylist()
    return found


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [(0, 0, 1, 256), (256, 1, 1, 256), (512, 2, 1, 188)]),
        (512, [(0, 0, 2, 512), (512, 2, 1, 188)]),
        (4096, [(0, 0, 3, 700)]),
    ],
)
def test_ranges_are_slices(place: StorePlace, most: int, expected: list[tuple[int, ...]]) -> None:
    assert [*ranges_of(place).ranges(most)] == [PartRange(*one) for one in expected]


def test_a_range_has_its_rows(place: StorePlace) -> None:
    rows = ranges_of(place).read(PartRange(256, 1, 2, 444))

    assert ids(rows) == [one["item_id"] for one in ITEMS[256:]]
    assert rows.schema.names == [*KEPT_COLUMNS, "caption", VECTORS_COLUMN]
    assert rows["item_index"].to_pylist() == [*range(256, 700)]
    assert {*rows["status"].to_pylist()} == {"ok"}
    assert {*rows["model_fingerprint"].to_pylist()} == {FINGERPRINT}
    assert rows[VECTORS_COLUMN].type == pa.list_(pa.float16(), DIMENSION)
    assert rows["caption"][0].as_py() == "256"


def test_vectors_may_be_left_out(place: StorePlace) -> None:
    rows = ranges_of(place).read(PartRange(0, 0, 1, 256), with_vectors=False)

    assert VECTORS_COLUMN not in rows.schema.names


def test_rows_that_are_gone_are_in_no_range(place: StorePlace) -> None:
    ranges = ranges_of(place, 3)
    there = [one["item_id"] for number, one in enumerate(ITEMS) if number % 3]

    found = [*ranges.ranges(256)]

    assert sum(one.rows for one in found) == len(there)
    assert [one.item_index for one in found] == [*np.cumsum([0, *(one.rows for one in found[:-1])])]
    assert [name for one in found for name in ids(ranges.read(one))] == there
    assert [name for one in ranges.ranges(4096) for name in ids(ranges.read(one))] == there


def test_a_range_of_mostly_gone_rows(place: StorePlace) -> None:
    all_gone = commit_gone(VectorDataset.open(place.dataset_uri(FINGERPRINT)), ITEMS)
    rows = stored_rows([item("last", caption="x")])
    ranges = ranges_of(place, all_gone.replace(NO_ADDRESSES, rows.to_batches(), {}).version)

    (only,) = ranges.ranges(4096)

    assert (only.item_index, only.parts, only.rows) == (0, 1, 1)
    assert ids(ranges.read(only)) == ["last"]


@pytest.mark.parametrize(
    "part_range",
    [
        PartRange(0, 0, 1, 255),
        PartRange(0, 0, 2, 256),
        PartRange(0, 0, 1, 300),
        PartRange(700, 3, 1, 1),
        PartRange(0, 0, 300, 700),
        PartRange(0, -1, 1, 256),
        PartRange(0, 0, 0, 256),
        PartRange(0, 0, 1, 5000),
    ],
    ids=str,
)
def test_a_range_that_no_submit_has_staged(place: StorePlace, part_range: PartRange) -> None:
    with pytest.raises(OutputDamagedError):
        ranges_of(place).read(part_range)


def test_what_alive_raises_ends_the_read(place: StorePlace) -> None:
    with pytest.raises(KeyboardInterrupt):
        ranges_of(place).read(PartRange(0, 0, 3, 700), alive=Mock(side_effect=KeyboardInterrupt))


def test_a_column_that_is_missing(place: StorePlace) -> None:
    ranges = StoreRanges(place, ranges_of(place)._vectors, ["weight"])

    with pytest.raises(OutputDamagedError, match="has no column 'weight'"):
        ranges.read(PartRange(0, 0, 1, 256))


class TestVersionsThatAreGone:
    def test_before_they_are_read(self, place: StorePlace) -> None:
        ranges = ranges_of(place, 7)

        with pytest.raises(OutputConflictError, match=r"store@7: this version was removed .* submit the job"):
            ranges.read(PartRange(0, 0, 1, 256))
        with pytest.raises(OutputConflictError, match=r"this version was removed"):
            ranges.require_all()

    def test_while_they_are_read(self, place: StorePlace) -> None:
        ranges = ranges_of(place)
        ranges.read(PartRange(0, 0, 1, 256))
        uri = place.dataset_uri(FINGERPRINT)
        shutil.rmtree(uri)

        with pytest.raises(OutputConflictError, match=r"this version was removed"):
            ranges.read(PartRange(256, 1, 1, 256))

    def test_with_their_dataset(self, place: StorePlace) -> None:
        remove_dataset(place.dataset_uri(FINGERPRINT))

        with pytest.raises(OutputConflictError, match=r"this version was removed"):
            ranges_of(place).require_all()


def test_a_file_that_is_missing_is_damage(place: StorePlace) -> None:
    data = Path(place.dataset_uri(FINGERPRINT), "data")
    for file in data.iterdir():
        file.unlink()

    with pytest.raises(OutputDamagedError, match="is damaged"):
        ranges_of(place).read(PartRange(0, 0, 1, 256))


def test_a_store_that_is_not_mounted(place: StorePlace) -> None:
    ranges = ranges_of(place)
    shutil.rmtree(place.uri)

    with pytest.raises(OutputUnreachableError, match="the store with the vectors is missing; is the folder"):
        ranges.read(PartRange(0, 0, 1, 256))


def test_another_store_at_the_same_place(place: StorePlace) -> None:
    with pytest.raises(OutputConflictError, match="holds another store by now"):
        ranges_of(place, store_id="f" * 32).require_all()


def test_vectors_of_another_length(place: StorePlace) -> None:
    with pytest.raises(OutputConflictError, match="vectors of length 4 instead of 8"):
        ranges_of(place, dimension=8).require_all()


def test_a_dataset_that_cannot_be_opened_now(place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges, broken = ranges_of(place), Mock(side_effect=OutputUnavailableError("the network is down"))
    monkeypatch.setattr(store_ranges.VectorDataset, "open", broken)

    with pytest.raises(OutputUnavailableError, match="the network is down"):
        ranges.read(PartRange(0, 0, 1, 256))


def test_lance_is_not_installed(place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfleet.store.extra.find_spec", lambda name: None)

    with pytest.raises(OutputUnreachableError, match=r"pip install 'clipfleet\[store\]'"):
        ranges_of(place).require_all()


def test_a_dataset_is_admitted_before_it_is_opened(place: StorePlace) -> None:
    admit = Mock(side_effect=PermissionError)

    with pytest.raises(PermissionError):
        StoreRanges(place, ranges_of(place)._vectors, [], admit=admit).require_all()

    admit.assert_called_once_with(place.dataset_uri(FINGERPRINT))
