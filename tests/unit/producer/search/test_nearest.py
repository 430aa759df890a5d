"""The nearest rows are those of one large product, however the blocks are cut."""

from __future__ import annotations

import numpy as np
import pytest

from clipfleet.labels.metrics import unit
from clipfleet.search.nearest import Nearest
from tests.support.stored_vectors import unit_vectors


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("block", [7, 1000, 5000])
def test_they_are_those_of_a_whole_product(kind: type, block: int, count: int) -> None:
    vectors, queries = unit_vectors(1, 5000, 16).astype(kind), unit_vectors(2, count, 16) * 3
    nearest = Nearest(queries, 20)

    for start in range(0, 5000, block):
        nearest.add(start, vectors[start : start + block])

    cosines = unit(queries) @ unit(vectors).T
    assert np.array_equal(nearest.positions(), np.argsort(-cosines, axis=1, kind="stable")[:, :20])
    np.testing.assert_allclose(nearest.scores(), -np.sort(-cosines, axis=1)[:, :20], rtol=1e-5)


def test_of_equal_ones_the_first_are_kept() -> None:
    nearest = Nearest(np.ones((1, 4)), 5)

    for start in (0, 3, 6, 9):
        nearest.add(start, np.ones((3, 4), np.float16))

    assert nearest.positions().tolist() == [[0, 1, 2, 3, 4]]


def test_where_there_are_fewer_rows() -> None:
    nearest = Nearest(np.ones((1, 4)), 3)

    nearest.add(0, np.array([[1, 1, 1, 1], [0, 0, 0, 0], [np.nan, 1, 1, 1]], np.float32))

    assert nearest.positions().tolist() == [[0, -1, -1]]
    assert nearest.scores()[0, 1:].tolist() == [-np.inf, -np.inf]
