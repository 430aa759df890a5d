"""What differs between outputs and versions of stores: items, files, labels, vectors, neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import UsageError
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.results.rows import RowReader
from clipfleet.results.store_rows import store_rows
from clipfleet.search import diffing
from clipfleet.search.diffing import Difference, LabelChanges, Moved, difference
from tests.support.store_rows import commit_gone, item, make_store
from tests.support.stored_vectors import place_vectors, unit_vectors, vector_rows

ONE, OTHER = "0123456789abcdef", "fedcba9876543210"
ROWS = 500
VECTORS = unit_vectors(5, ROWS, 32)

Place = Callable[..., PartRows]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Makes an output with these vectors, in parts of 90 rows; `values` replace columns of its rows."""

    def place(
        name: str,
        vectors: np.ndarray = VECTORS,
        *,
        fingerprint: str = ONE,
        order: Sequence[int] | None = None,
        values: dict[str, pa.Array] | None = None,
        without: Sequence[str] = (),
        **job: Any,
    ) -> PartRows:
        rows = vector_rows(0, vectors, fingerprint)
        for column, replaced in (values or {}).items():
            position = rows.schema.get_field_index(column)
            rows = rows.set_column(position, rows.schema.field(position), replaced)
        rows = rows.drop_columns([*without])
        rows = rows if order is None else rows.take(pa.array(order))
        output = FolderOutput(tmp_path / name)
        place_vectors(output, [rows.slice(start, 90) for start in range(0, len(rows), 90)], **job)
        return PartRows(output)

    return place


def compare(first: RowReader, second: RowReader, top: int = 3, sample: int = 100) -> Difference:
    return difference(first, second, top=top, sample=sample)


def named(numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"item-{number:08d}" for number in numbers)


def test_the_same_rows_in_another_order(place: Place) -> None:
    order = np.random.default_rng(1).permutation(ROWS).tolist()

    found = compare(place("first"), place("second", order=order))

    assert (found.common, found.only_first, found.only_second) == (ROWS, 0, 0)
    assert (found.changed_files, found.labels, found.moved) == (0, {}, ())
    assert found.vectors is not None
    assert found.vectors.changed == 0
    assert found.neighbours is not None
    assert (found.neighbours.sampled, found.neighbours.agreement) == (100, 1)


def test_items_that_only_one_of_both_has(place: Place) -> None:
    found = compare(place("first", order=range(5, ROWS)), place("second", order=range(ROWS - 2)))

    assert (found.common, found.only_first, found.only_second) == (ROWS - 7, 2, 5)
    assert found.only_first_ids == named([ROWS - 2, ROWS - 1])
    assert found.only_second_ids == named([0, 1, 2])


def test_nothing_in_common(place: Place) -> None:
    found = compare(place("first", order=range(5)), place("second", order=range(5, 10)))

    assert (found.common, found.only_first, found.only_second) == (0, 5, 5)
    assert (found.neighbours, found.moved) == (None, ())


def test_vectors_of_one_model_by_their_cosines(place: Place) -> None:
    moved = VECTORS.copy()
    moved[7] = -moved[7]
    moved[8] = moved[9]
    moved[10] += 0.05
    hashes = pa.array([f"{number}" for number in range(ROWS)])
    others = pa.array([f"{number if number != 7 else 'new'}" for number in range(ROWS)])

    found = compare(
        place("first", values={"content_hash": hashes}),
        place("second", moved, values={"content_hash": others}),
    )

    assert found.changed_files == 1
    assert found.vectors is not None
    assert found.vectors.changed == 3
    assert [one.item_id for one in found.moved] == [*named([7, 8, 10])]
    assert found.moved[0].agreement == pytest.approx(-1, abs=1e-3)
    assert 0.9 < found.moved[2].agreement < 1


def test_vectors_of_different_models_by_their_neighbours(place: Place) -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((32, 32)))
    turned = (VECTORS @ rotation).astype(np.float32)
    turned[7] = -turned[7]

    found = compare(place("first"), place("second", turned, fingerprint=OTHER), sample=ROWS)

    assert found.fingerprints == ((ONE,), (OTHER,))
    assert found.vectors is None
    assert found.neighbours is not None
    assert found.neighbours.agreement > 0.97
    low, high = found.neighbours.interval
    assert low < found.neighbours.agreement < high <= 1
    assert found.moved[0] == Moved("item-00000007", 0)


def test_neighbours_are_those_of_a_product_with_all_vectors(place: Place) -> None:
    other = VECTORS + np.random.default_rng(3).normal(0, 0.1, VECTORS.shape).astype(np.float32)

    found = compare(place("first"), place("second", other, fingerprint=OTHER), sample=ROWS)

    shares = [len(a & b) / 10 for a, b in zip(nearest_ten(VECTORS), nearest_ten(other), strict=True)]
    assert found.neighbours is not None
    assert found.neighbours.agreement == pytest.approx(float(np.mean(shares)), abs=0.002)


def nearest_ten(vectors: np.ndarray) -> list[set[int]]:
    units = vectors.astype(np.float16).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -2)
    return [set(row.tolist()) for row in np.argsort(-cosines, axis=1)[:, :10]]


def test_labels_that_change(place: Place) -> None:
    labels = ["cat", "dog", "dog", None] * (ROWS // 4)
    others = ["cat", "cat", "dog", "dog"] * (ROWS // 4)

    found = compare(
        place("first", values={"label": pa.array(labels)}),
        place("second", values={"label": pa.array(others)}),
        top=1,
    )

    assert found.labels["label"] == LabelChanges(ROWS // 2, (((labels[1], others[1]), ROWS // 4),))


def test_an_output_without_labels_has_none_that_change(place: Place) -> None:
    labels = pa.array(["cat"] * ROWS)

    assert compare(place("first", values={"label": labels}), place("second")).labels == {}


def test_outputs_without_vectors(place: Place) -> None:
    job: dict[str, Any] = {
        "task": "classify",
        "label_sets": [LabelSet(name="default", labels=("cat", "dog"))],
    }
    first = place("first", without=["embedding"], **job)
    second = place("second", **job)  # as an earlier release wrote it: a column without vectors

    found = compare(first, second)

    assert (found.common, found.vectors, found.neighbours, found.moved) == (ROWS, None, None, ())


def test_versions_of_a_store(tmp_path: Path) -> None:
    items = [item(name) for name in ("a", "b", "c", "d")]
    store = make_store(tmp_path / "store", items)
    commit_gone(store_rows(store).dataset, items[1:2])

    found = compare(store_rows(store, "2"), store_rows(store))

    assert (found.common, found.only_first_ids, found.only_second) == (3, ("b",), 0)
    assert found.neighbours is not None
    assert (found.neighbours.count, found.neighbours.agreement) == (2, 1)


def test_of_many_rows_a_few_are_held_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffing, "_ROWS_AT_ONCE", 64)
    shares: list[float] = []

    found = difference(place("first"), place("second"), top=3, sample=20, on_progress=shares.append)

    assert found.common == ROWS
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (8, 1)


def test_an_output_in_which_all_items_failed(place: Place, output: FolderOutput) -> None:
    place_vectors(output, [vector_rows(0, VECTORS[:3], ONE, failed=range(3))])

    with pytest.raises(UsageError, match="no row has a vector"):
        compare(place("first"), PartRows(output))
