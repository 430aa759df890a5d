"""The index of a store: built over all rows, with the recall that its searches have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.errors import UsageError
from clipfleet.store.dataset import VectorDataset, VersionConflictError
from clipfleet.store.indexing import Recall, build_index, measured_recall
from tests.support.store_rows import LISTED_AT, NO_ADDRESSES, item, stored_rows


def rows(vectors: np.ndarray, first: int = 0, **values: Any) -> Sequence[pa.RecordBatch]:
    table = stored_rows([item(str(first + number)) for number in range(len(vectors))], **values)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), 4)
    place = table.schema.get_field_index("embedding")
    return table.set_column(place, table.schema.field(place), flat).to_batches()


def directions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4))


@pytest.fixture
def dataset(tmp_path: Path) -> VectorDataset:
    made = rows(directions(400))
    return VectorDataset.create(str(tmp_path / "a.lance"), made[0].schema).replace(NO_ADDRESSES, made, {})


def test_an_index_covers_the_newest_version_and_has_nearly_full_recall(dataset: VectorDataset) -> None:
    dataset.replace(NO_ADDRESSES, rows(directions(100, 1), 1000), {})

    made = build_index(dataset)

    facts, recall = made.index_facts(), measured_recall(made)
    assert facts is not None
    assert facts.rows == 500
    assert made.properties["kind"] == "index"
    assert recall is not None
    assert (recall.queries, recall.share > 0.95) == (100, True)


def test_an_index_that_finds_half_of_the_neighbours_has_a_recall_of_a_half(
    dataset: VectorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = VectorDataset.nearest

    def only_some(self: VectorDataset, *words: Any, exact: bool = False, **options: Any) -> list[pa.Table]:
        found = nearest(self, *words, exact=True, **options)
        return found if exact else [one.slice(0, 6) for one in found]  # itself, and five others

    monkeypatch.setattr(VectorDataset, "nearest", only_some)

    assert measured_recall(dataset) == Recall(100, 0.5)


def test_equal_vectors_are_equally_good(tmp_path: Path) -> None:
    made = rows(np.repeat(directions(10), 40, axis=0))
    dataset = VectorDataset.create(str(tmp_path / "b.lance"), made[0].schema).replace(NO_ADDRESSES, made, {})

    assert measured_recall(build_index(dataset)) == Recall(100, 1.0)


def test_rows_of_gone_items_are_no_neighbours(dataset: VectorDataset) -> None:
    made = dataset.replace(NO_ADDRESSES, rows(directions(400), 1000, gone_at=LISTED_AT), {})

    assert measured_recall(made) == Recall(100, 1.0)


@pytest.mark.parametrize(("count", "expected"), [(1, None), (3, Recall(3, 1.0))])
def test_few_rows_have_few_neighbours(tmp_path: Path, count: int, expected: Recall | None) -> None:
    made = rows(directions(count))
    dataset = VectorDataset.create(str(tmp_path / "c.lance"), made[0].schema).replace(NO_ADDRESSES, made, {})

    assert measured_recall(build_index(dataset)) == expected


def test_without_rows_there_is_nothing_to_index(dataset: VectorDataset) -> None:
    (every,) = [batch["_rowaddr"].to_numpy() for batch in dataset.batches([], with_address=True)]
    dataset.replace(every, iter(()), {})

    with pytest.raises(UsageError, match="has no rows: there is nothing to index"):
        build_index(dataset)


def test_a_build_that_another_program_overtakes_begins_again(
    dataset: VectorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, tries = VectorDataset.create_index, []

    def overtaken_once(self: VectorDataset, *words: Any, **options: Any) -> VectorDataset:
        tries.append(self.version)
        if len(tries) == 1:
            raise VersionConflictError
        return create(self, *words, **options)

    monkeypatch.setattr(VectorDataset, "create_index", overtaken_once)

    assert build_index(dataset).index_facts() is not None
    assert len(tries) == 2
