"""Compaction of a store: of all models that are in use, and beside other writers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from clipfleet.store.dataset import Alive, VectorDataset
from clipfleet.store.maintenance.compacting import compact
from clipfleet.store.place import EmbeddedBy, Migration, StorePlace, store_place
from tests.support.held_stores import MINE, OTHER, current, held, item_ids, make_store
from tests.support.store_rows import NO_ADDRESSES, item, make_dataset, stored_rows


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    return make_store(tmp_path / "store", "ab", "c", "d")


def test_files_are_put_together(place: StorePlace) -> None:
    (done,) = compact(held(place))

    assert (done.fingerprint, done.files_before, done.files) == (MINE, 3, 1)
    assert done.version == current(place).version
    assert item_ids(current(place)) == [*"abcd"]
    (again,) = compact(held(place))
    assert again.version == done.version


def test_the_vectors_of_a_migration_as_well(place: StorePlace) -> None:
    make_dataset(place.dataset_uri(OTHER), [item("a")])
    current(place, OTHER).replace(NO_ADDRESSES, stored_rows([item("b")]).to_batches(), {})
    to = EmbeddedBy(model="new", fingerprint=OTHER, dimension=4)
    migration = Migration(migration_id="d" * 32, to=to, began_at=datetime.now(UTC))
    place.change(lambda store: store.model_copy(update={"migration": migration}))

    assert [one.files for one in compact(held(place))] == [1, 1]


def test_a_store_without_vectors(tmp_path: Path) -> None:
    place = store_place(str(tmp_path / "new"))
    place.create(EmbeddedBy(model="demo"))

    assert compact(held(place)) == []


def test_a_commit_of_another_program_meanwhile_is_not_lost(
    place: StorePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    compacts = VectorDataset.compact

    def overtaken(dataset: VectorDataset, *, alive: Alive) -> VectorDataset:
        monkeypatch.undo()

        def commit() -> None:
            latest = dataset.latest()
            if latest.version == dataset.version:
                latest.replace(NO_ADDRESSES, stored_rows([item("e")]).to_batches(), {})

        return compacts(dataset, alive=commit)

    monkeypatch.setattr(VectorDataset, "compact", overtaken)
    (done,) = compact(held(place))

    assert (done.files_before, done.files) == (4, 1)
    assert item_ids(current(place)) == [*"abcde"]
