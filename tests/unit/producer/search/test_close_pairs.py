"""Close pairs are those of a comparison of all with all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipfleet.labels.metrics import unit
from clipfleet.search.close_pairs import connect_close
from clipfleet.search.components import Components


def alike(rng: np.random.Generator, rows: int, dimension: int) -> np.ndarray:
    """Vectors with a common direction, as those of CLIP, many of them close to an earlier one."""
    spread = np.arange(1, dimension + 1) ** -0.5
    found = unit(rng.standard_normal((rows, dimension)) * spread / np.linalg.norm(spread) + dimension**-0.5)
    for row in range(rows // 2, rows):
        noise = rng.uniform(0, 0.5) * unit(rng.standard_normal((1, dimension)))[0]
        found[row] = found[rng.integers(row)] + noise
    return unit(found).astype(np.float16)


def roots_by_all_pairs(vectors: np.ndarray, rows: np.ndarray, threshold: float) -> np.ndarray:
    """The lowest row that each one is connected with."""
    close = unit(vectors[rows]) @ unit(vectors[rows]).T >= threshold
    roots = np.arange(len(vectors))
    while True:
        lowest = np.array([roots[rows[one]].min() for one in close])
        if np.array_equal(lowest, roots[rows]):
            return roots
        roots[rows] = lowest


@pytest.mark.parametrize("threshold", [0.9, 0.97])
@pytest.mark.parametrize("dimension", [16, 64, 65, 200])
def test_the_rows_that_are_connected(tmp_path: Path, dimension: int, threshold: float) -> None:
    vectors = alike(np.random.default_rng(dimension), 1500, dimension)
    rows = np.flatnonzero(np.arange(1500) % 7)
    components = Components(1500)

    connect_close(vectors, rows, threshold, components, tmp_path / "scratch")

    found = components.roots(np.arange(1500))
    assert np.array_equal(found, roots_by_all_pairs(vectors, rows, threshold))
    assert 200 < len(np.unique(found)) < 1400


def test_many_that_are_all_alike(tmp_path: Path) -> None:
    vectors = np.tile(unit(np.ones((1, 128))), (1200, 1)).astype(np.float16)
    components = Components(1200)

    connect_close(vectors, np.arange(1200), 0.99, components, tmp_path / "scratch")

    assert not components.roots(np.arange(1200)).any()


def test_vectors_without_a_direction_are_close_to_none(tmp_path: Path) -> None:
    vectors = np.ones((600, 100), np.float32)
    vectors[[1, 2]] = 0
    vectors[[3, 4], [5, 5]] = np.nan
    vectors[5, 0] = np.inf
    components = Components(600)

    connect_close(vectors, np.arange(600), 0.5, components, tmp_path / "scratch")

    assert np.flatnonzero(components.roots(np.arange(600))).tolist() == [1, 2, 3, 4, 5]


def test_progress_ends_with_all(tmp_path: Path) -> None:
    shares: list[float] = []
    vectors = alike(np.random.default_rng(1), 1100, 8)

    connect_close(vectors, np.arange(1100), 0.9, Components(1100), tmp_path / "scratch", shares.append)

    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_one_row_has_no_pair(tmp_path: Path) -> None:
    connect_close(np.ones((1, 4)), np.arange(1), 0.9, Components(1), tmp_path / "scratch")
