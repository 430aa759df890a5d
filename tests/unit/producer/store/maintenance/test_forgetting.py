"""After `forget` no file holds the id or the vector."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from clipfleet.errors import UsageError
from clipfleet.ledger.locks import LockLostError
from clipfleet.outputs import open_output
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.maintenance.forgetting import forget
from clipfleet.store.place import StorePlace
from tests.support.held_stores import MINE, OTHER, filling_job, held, item_ids, lost, make_store
from tests.support.jobs import place_job
from tests.support.store_rows import NO_ADDRESSES, item, make_dataset, stored_rows

SECRET = "the-secret-id"
VECTOR = np.array([0.123, -4.56, 7.89, 0.0321], np.float16)


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    return make_store(tmp_path / "store", "ab", "cd")


def current(place: StorePlace, fingerprint: str = MINE) -> VectorDataset:
    return VectorDataset.open(place.dataset_uri(fingerprint))


def add(dataset: VectorDataset, item_id: str = SECRET, **values: object) -> VectorDataset:
    """A version with an item more, whose vector is `VECTOR`, beside two others."""
    rows = stored_rows([item("x"), item(item_id), item("y")], embedding=VECTOR.tolist(), **values)
    return dataset.replace(NO_ADDRESSES, rows.slice(1, 1).to_batches(), {})


def delete(dataset: VectorDataset, item_id: str = SECRET) -> VectorDataset:
    (address,) = [
        batch["_rowaddr"].to_numpy()[number]
        for batch in dataset.batches(["item_id"], with_address=True)
        for number, one in enumerate(batch["item_id"].to_pylist())
        if one == item_id
    ]
    return dataset.replace(np.array([address], np.uint64), iter(()), {})


def files_with(place: StorePlace) -> list[str]:
    """Files that hold the id or the vector."""
    found = [path for path in Path(place.uri).rglob("*") if path.is_file()]
    return [
        str(path)
        for path in found
        if SECRET.encode() in path.read_bytes() or VECTOR.tobytes() in path.read_bytes()
    ]


def test_an_item_goes_from_all_versions(place: StorePlace) -> None:
    add(current(place))
    assert files_with(place)

    done = forget(held(place), [SECRET, "nothing"])

    assert (done.item_ids, done.versions) == ({SECRET}, 1)
    assert files_with(place) == []
    assert item_ids(current(place)) == [*"abcd"]
    assert [*current(place).times()] == [1, 2, 3, 5], "versions that did not hold it stay"
    assert current(place).properties == {"kind": "forget", "counts": '{"forgotten": 1}'}


def test_ids_that_are_not_there_change_nothing(place: StorePlace) -> None:
    indexed = current(place).create_index({"kind": "index"})

    done = forget(held(place), ["nothing"])

    assert (done.item_ids, done.versions, done.indexes) == (set(), 0, 0)
    assert current(place).version == indexed.version
    assert current(place).index_facts() is not None


def test_one_that_was_deleted_already(place: StorePlace) -> None:
    delete(add(current(place)))

    assert forget(held(place), [SECRET]).item_ids == {SECRET}
    assert files_with(place) == []


def test_one_that_was_replaced_and_compacted(place: StorePlace) -> None:
    dataset = delete(add(current(place)))
    rows = stored_rows([item("a-new-one")]).to_batches()
    dataset.replace(NO_ADDRESSES, rows, {}).compact()

    assert forget(held(place), [SECRET]).versions == 1
    assert files_with(place) == []
    assert item_ids(current(place)) == ["a", "a-new-one", "b", "c", "d"]


def test_all_models_are_searched(place: StorePlace) -> None:
    make_dataset(place.dataset_uri(OTHER), [item("a")])
    add(current(place, OTHER))

    assert forget(held(place), [SECRET]).item_ids == {SECRET}
    assert files_with(place) == []
    assert item_ids(current(place, OTHER)) == ["a"]


def test_files_of_killed_commits_go_as_well(place: StorePlace) -> None:
    left = Path(place.dataset_uri(MINE), "data", "0101.lance")
    left.write_bytes(SECRET.encode())

    assert forget(held(place), [SECRET]).item_ids == set()
    assert files_with(place) == []


def test_outputs_of_ended_jobs_go(place: StorePlace) -> None:
    job = filling_job(place, "ended")
    place_job(open_output(job.output), job)
    Path(job.output, "_errors.jsonl").write_text(SECRET)

    assert forget(held(place), [SECRET]).jobs == ["ended"]
    assert files_with(place) == []


def test_it_is_refused_while_a_job_may_bring_the_item_back(place: StorePlace) -> None:
    add(current(place))

    with pytest.raises(UsageError, match="have not ended: one, two; wait"):
        forget(held(place, filling_job(place, "one"), filling_job(place, "two")), [SECRET])
    assert files_with(place)


@pytest.mark.parametrize("is_half_removed", [False, True])
def test_it_goes_on_after_it_was_killed(
    place: StorePlace, monkeypatch: pytest.MonkeyPatch, is_half_removed: bool
) -> None:
    add(current(place))

    def killed(*_: object, **__: object) -> None:
        raise KeyError

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(VectorDataset, "drop_versions", killed)
        forget(held(place), [SECRET])
    assert files_with(place)
    if is_half_removed:
        Path(files_with(place)[0]).unlink()
    forget(held(place), [SECRET])

    assert files_with(place) == []
    assert [*current(place).times()] == [1, 2, 3, 5, 6]
    assert item_ids(current(place)) == [*"abcd"]


def test_equal_images_under_other_ids_are_named(place: StorePlace) -> None:
    add(current(place), content_hash="hash of b")

    done = forget(held(place), [SECRET])

    assert done.copies == {"b"}
    assert item_ids(current(place)) == [*"abcd"]


def test_an_index_that_has_the_vector_goes(tmp_path: Path) -> None:
    place = make_store(tmp_path / "store", "abcdefgh")
    indexed = add(current(place)).create_index({"kind": "index"})
    assert indexed.index_facts() is not None

    done = forget(held(place), [SECRET])

    assert done.indexes == 1
    assert current(place).index_facts() is None
    assert files_with(place) == []
    assert not [*Path(place.dataset_uri(MINE), "_indices").rglob("*.idx")]


def test_what_a_killed_removal_has_left_of_an_earlier_model_goes(place: StorePlace) -> None:
    make_dataset(place.dataset_uri(OTHER), [item(SECRET)])
    for manifest in Path(place.dataset_uri(OTHER), "_versions").glob("*"):
        manifest.unlink()
    assert files_with(place)

    forget(held(place), [SECRET])

    assert files_with(place) == []


def test_a_store_that_was_lost_while_its_files_were_listed_stays_as_it_is(place: StorePlace) -> None:
    add(current(place))
    job = filling_job(place, "ended")
    place_job(open_output(job.output), job)
    half_removed = Path(make_dataset(place.dataset_uri("0" * 16), [item("a")]).uri)
    shutil.rmtree(half_removed / "_versions")
    before = sorted(Path(place.uri).rglob("*"))

    with pytest.raises(LockLostError):
        forget(lost(place), [SECRET])

    assert sorted(Path(place.uri).rglob("*")) == before
