"""Images that a store has: found by their hashes, kept or copied before anything is decoded."""

from __future__ import annotations

import tracemalloc
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.parts import KNOWN_FIELDS
from clipfleet.contract.stores import StoreTarget
from clipfleet.errors import OutputUnavailableError
from clipfleet.store.dataset import VectorDataset
from clipfleet_worker.fetch.conditions import KnownImage
from clipfleet_worker.outcomes import Outcomes, Validators
from clipfleet_worker.stores import equal_images
from clipfleet_worker.stores.equal_images import (
    EqualImages,
    EqualImagesCache,
    read_equal_images,
    sorted_together,
)
from clipfleet_worker.stores.stored_images import StoredImages, known_images
from tests.support.store_rows import LISTED_AT, item, stored_rows

MINE = "a" * 16
ONE, TWO, THREE = b"one", b"two", b"three"


def digest(image: bytes) -> str:
    return sha256(image).hexdigest()


@pytest.fixture
def dataset(tmp_path: Path) -> VectorDataset:
    """Three items; the second one is gone, and the third one has no hash."""
    rows = stored_rows([item("a"), item("b"), item("c")], width=31, height=17).to_pylist()
    rows[0]["content_hash"], rows[1]["content_hash"], rows[2]["content_hash"] = digest(ONE), digest(TWO), None
    rows[1]["gone_at"] = LISTED_AT
    table = pa.Table.from_pylist(rows, stored_rows([item("a")]).schema)
    made = VectorDataset.create(str(tmp_path / f"{MINE}.lance"), table.schema)
    return made.replace(np.empty(0, np.uint64), table.to_batches(), {})


@pytest.fixture
def images(dataset: VectorDataset) -> EqualImages:
    found = read_equal_images(dataset.uri, dataset.version)
    assert found is not None
    return found


class TestEqualImages:
    def test_an_image_is_found_with_its_exact_vector_whether_its_item_is_there_or_gone(
        self, images: EqualImages
    ) -> None:
        found = images.find([digest(ONE), digest(TWO), digest(THREE)])

        assert set(found) == {digest(ONE), digest(TWO)}
        one, two = found[digest(ONE)], found[digest(TWO)]
        assert (one.vector.dtype, one.vector.tolist()) == (np.float16, [1.0, 0.0, 0.0, 0.0])
        assert (two.vector.tolist(), two.width, two.height) == ([1.0, 1.0, 0.0, 0.0], 31, 17)
        assert images.find([digest(THREE)]) == {}

    def test_half_a_hash_is_not_an_image(
        self, dataset: VectorDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def clashing(ids: pa.Array) -> np.ndarray:
            return np.full(len(ids), 7, np.uint64)

        monkeypatch.setattr(equal_images, "id_hashes", clashing)
        found = read_equal_images(dataset.uri, dataset.version)

        assert found is not None
        assert found.find([digest(THREE)]) == {}

    def test_a_later_version_changes_nothing(self, dataset: VectorDataset, images: EqualImages) -> None:
        dataset.replace(np.array([0], np.uint64), [], {})

        assert set(images.find([digest(ONE)])) == {digest(ONE)}

    def test_a_version_with_too_many_rows_or_that_is_gone_is_not_looked_in(
        self, dataset: VectorDataset, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert read_equal_images(dataset.uri, dataset.version, most_rows=1) is None
        assert read_equal_images(dataset.uri, 99) is None
        assert read_equal_images(f"{dataset.uri}-gone", 1) is None
        assert caplog.text.count("images are not looked up") == 3


def test_an_index_is_sorted_in_little_more_than_its_own_memory() -> None:
    rows = 1_000_000
    numbers = np.arange(rows, dtype=np.uint64)
    hashes, addresses = (numbers * np.uint64(11400714819323198485)), numbers.copy()  # all different
    tracemalloc.start()
    try:
        by_hash, of_them = sorted_together(hashes, addresses)
        more = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert bool((by_hash[1:] > by_hash[:-1]).all())
    assert np.array_equal(by_hash, of_them * np.uint64(11400714819323198485))
    assert more < 10 * rows  # bytes; each array has 8 for a row


class TestCache:
    def target(self, dataset: VectorDataset, **values: Any) -> StoreTarget:
        defaults: dict[str, Any] = {
            "uri": str(Path(dataset.uri).parent), "store_id": "1" * 32, "listed_at": LISTED_AT,
            "fingerprint": MINE, "base_version": dataset.version,
        }  # fmt: skip
        return StoreTarget(**(defaults | values))

    def test_the_images_of_a_version_are_read_once(self, dataset: VectorDataset) -> None:
        cache = EqualImagesCache()
        first, again = (cache.get(self.target(dataset)).result(60) for _ in range(2))
        earlier = cache.get(self.target(dataset, base_version=1)).result(60)

        assert first is not None and first is again
        assert earlier is None  # that version is empty

    def test_a_store_without_vectors_has_none(self, dataset: VectorDataset) -> None:
        assert EqualImagesCache().get(self.target(dataset, fingerprint=None)).result(0) is None
        assert EqualImagesCache().get(self.target(dataset, base_version=0)).result(0) is None

    def test_a_failure_is_raised_and_the_next_call_begins_again(
        self, dataset: VectorDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OutputUnavailableError("away")

        cache = EqualImagesCache()
        with monkeypatch.context() as patch:
            patch.setattr(equal_images, "read_equal_images", fail)
            with pytest.raises(OutputUnavailableError):
                cache.get(self.target(dataset)).result(60)

        assert cache.get(self.target(dataset)).result(60) is not None


class TestSettling:
    def test_what_the_store_has_ends_and_the_rest_is_left(self, images: EqualImages) -> None:
        outcomes = Outcomes(4)
        stored = StoredImages({0: KnownImage(digest(ONE)), 1: KnownImage(digest(ONE))}, images)

        left = stored.settle(outcomes, [(0, ONE), (1, TWO), (2, THREE), (3, ONE)])

        assert left == [(2, THREE)]
        assert (outcomes.same, outcomes.copied) == ({0}, {1, 3})
        assert outcomes.content_hashes == [digest(one) for one in (ONE, TWO, THREE, ONE)]
        assert outcomes.sizes_bytes == [3, 3, 5, 3]
        assert outcomes.widths == [None, 31, None, 31]

    def test_without_an_index_only_the_items_own_image_counts(self) -> None:
        outcomes = Outcomes(2)

        left = StoredImages({0: KnownImage(digest(ONE))}, None).settle(outcomes, [(0, ONE), (1, ONE)])

        assert (left, outcomes.same) == ([(1, ONE)], {0})


def test_an_item_without_a_hash_is_not_known() -> None:
    rows = [
        {"_content_hash": "h", "_etag": '"e"', "_last_modified": "Monday"},
        {"_content_hash": "h"},
        {"_etag": '"e"'},
    ]
    items = pa.Table.from_pylist(rows, pa.schema(KNOWN_FIELDS))

    assert known_images(items) == {0: KnownImage("h", Validators('"e"', "Monday")), 1: KnownImage("h")}
