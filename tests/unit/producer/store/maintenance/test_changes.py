"""What has changed between two versions."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet.store.dataset import VectorDataset
from clipfleet.store.maintenance.changes import changes
from tests.support.store_rows import NO_ADDRESSES, item, make_dataset, stored_rows

LATER = datetime(2026, 11, 2, tzinfo=UTC)


@pytest.fixture
def first(tmp_path: Path) -> VectorDataset:
    return make_dataset(tmp_path / "a.lance", [item(one) for one in "abcdef"])


def commit(dataset: VectorDataset, gone: str, fresh: str, **values: Any) -> VectorDataset:
    """A version without some rows, and with others."""
    found = [*dataset.batches(["item_id"], with_address=True)]
    addresses = np.concatenate([one["_rowaddr"].to_numpy() for one in found])
    ids = [item_id for one in found for item_id in one["item_id"].to_pylist()]
    chosen = addresses[[one in gone for one in ids]]
    rows = stored_rows([item(one) for one in fresh], **values).to_batches() if fresh else iter(())
    return dataset.replace(chosen, rows, {})


def found(before: VectorDataset | None, after: VectorDataset) -> tuple[str, str]:
    """Ids of upserts, and of deletes, sorted."""
    upserts, deletes = [], []
    for some in changes(before, after):
        if isinstance(some, list):
            deletes += some
        else:
            assert some.schema == after.schema
            upserts += some["item_id"].to_pylist()
    return "".join(sorted(upserts)), "".join(sorted(deletes))


def test_from_nothing_everything_is_new(first: VectorDataset) -> None:
    assert found(None, first) == ("abcdef", "")
    assert found(VectorDataset.open(first.uri, 1), first) == ("abcdef", "")


def test_new_changed_and_gone_items(first: VectorDataset) -> None:
    second = commit(first, "bc", "bg", embedded_at=LATER)

    assert found(first, second) == ("bg", "c")
    assert found(second, first) == ("bc", "g"), "the way back"
    assert found(second, second) == ("", "")


def test_a_row_that_was_written_anew_with_the_same_image_has_not_changed(first: VectorDataset) -> None:
    renewed = commit(first, "b", "b", listed_at=LATER, etag="other")
    other = commit(renewed, "b", "b", content_hash="other")

    assert found(first, renewed) == ("", "")
    assert found(renewed, other) == ("b", "")


def test_rows_whose_items_are_gone_are_deletes_until_they_are_back(first: VectorDataset) -> None:
    gone = commit(first, "b", "b", gone_at=LATER)
    back = commit(gone, "b", "b")

    assert found(first, gone) == ("", "b")
    assert found(gone, back) == ("b", "")
    assert found(first, back) == ("", "")
    assert found(None, gone) == ("acdef", "")


def test_several_nights_with_a_compaction_between(first: VectorDataset) -> None:
    second = commit(first, "bc", "bg")
    compacted = commit(second, "", "h").compact()
    last = commit(compacted, "ag", "ai")

    assert compacted.version > second.version
    assert found(second, compacted) == ("h", "")
    assert found(first, last) == ("hi", "c")
    assert found(second, last) == ("hi", "g")


def test_a_changed_item_is_found_across_a_compaction(first: VectorDataset) -> None:
    last = commit(commit(first, "b", "").compact(), "a", "ab", embedded_at=LATER).compact()

    assert found(first, last) == ("ab", "")


def test_vectors_come_with_the_rows(first: VectorDataset) -> None:
    second = first.replace(NO_ADDRESSES, stored_rows([item("x"), item("y")]).to_batches(), {})

    (rows,) = changes(first, second)

    assert not isinstance(rows, list)
    assert rows["embedding"].to_pylist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
