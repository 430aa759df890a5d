"""All pairs of vectors whose cosine reaches a threshold, in blocks: exact, without computing each cosine.

Two vectors are at least as far apart as their projections. Pairs that are too far apart in the directions in
which the vectors differ most are left out, by a product of a fraction of the length; of the others the cosine
is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from clipfleet.labels.metrics import unit
from clipfleet.search.components import Components

_BLOCK = 512  # rows of a block: a product with another one stays in the cache of a CPU
_DIRECTIONS = 64
_SAMPLE = 8192  # vectors that the directions are computed from
_ROUNDING = 1e-4  # more than the error of a product of projections in float32
_FEW = 1024  # pairs of a block: more of them are compared by one product of the whole block

Progress = Callable[[float], object]


def connect_close(
    vectors: np.ndarray,
    rows: np.ndarray,
    threshold: float,
    components: Components,
    scratch: Path,
    on_progress: Progress = lambda share: None,
) -> None:
    """Connect the rows whose vectors have a cosine of at least the threshold.

    Args:
        vectors: (n, d), float16 or float32, on the disk or in memory. One of length 0, or with a number that
            is not finite, is close to none.
        rows: int64, ascending: those that are compared.
        threshold: of the cosine.
        components: of all n rows.
        scratch: a new file, for a seventh of the vectors at length 512.
        on_progress: called with the share of the blocks that are done.
    """
    if len(rows) < 2:
        return
    projected = _projected(vectors, rows, scratch)
    least = np.float32(threshold - 1 - _ROUNDING)
    product = np.empty((_BLOCK, _BLOCK), np.float32)
    starts, done = range(0, len(rows), _BLOCK), 0
    for first in starts:
        left = projected[first : first + _BLOCK]
        for second in range(first, len(rows), _BLOCK):
            right = projected[second : second + _BLOCK, _SWAPPED]
            bounds = np.matmul(left, right.T, out=product[: len(left), : len(right)])
            done += 1
            if bounds.max() < least:
                continue
            some, others = np.nonzero(bounds >= least)
            one, other = rows[first:][some], rows[second:][others]
            is_new = components.roots(one) != components.roots(other)  # else: connected, or the same row
            if is_new.any():
                blocks = rows[first : first + _BLOCK], rows[second : second + _BLOCK]
                is_new[is_new] = _are_close(vectors, blocks, some[is_new], others[is_new], threshold)
                components.connect(one[is_new], other[is_new])
        on_progress(2 * done / (len(starts) * (len(starts) + 1)))


def _are_close(
    vectors: np.ndarray,
    blocks: tuple[np.ndarray, np.ndarray],
    some: np.ndarray,
    others: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """Whether the pairs at these offsets in two blocks of rows are close, bool (pairs,)."""
    left, right = blocks
    if len(some) > _FEW:
        cosines = (unit(vectors[left]) @ unit(vectors[right]).T)[some, others]
    else:
        cosines = np.einsum("ij,ij->i", unit(vectors[left[some]]), unit(vectors[right[others]]))
    close: np.ndarray = cosines >= threshold
    return close


# Columns of a projected vector: its projection, the length of what that leaves out, minus half of the sum of
# their squares, and 1. The product with another one whose last two columns are swapped is minus half of the
# square of a lower bound of their distance; that of vectors of length 1 is `2 - 2 cos`.
_SWAPPED = np.array([*range(_DIRECTIONS + 1), _DIRECTIONS + 2, _DIRECTIONS + 1])
_FAR_AWAY = -1e30


def _projected(vectors: np.ndarray, rows: np.ndarray, scratch: Path) -> np.ndarray:
    """The projected vectors of these rows, float32 (rows, directions + 3), on the disk."""
    dimension = vectors.shape[1]
    centre, directions = _directions(vectors, rows)
    found = np.memmap(scratch, np.float32, "w+", shape=(len(rows), _DIRECTIONS + 3))
    for start in range(0, len(rows), _SAMPLE):
        block = unit(vectors[rows[start : start + _SAMPLE]])
        is_valid = np.isfinite(block).all(axis=1)
        block = np.where(is_valid[:, None], block, 0) - centre
        some = found[start : start + len(block)]
        projection = block @ directions
        squares = np.einsum("ij,ij->i", block, block)
        left_out = squares - np.einsum("ij,ij->i", projection, projection)
        some[:, : projection.shape[1]] = projection
        some[:, _DIRECTIONS] = np.sqrt(np.maximum(left_out, 0)) if dimension > _DIRECTIONS else 0
        inside = some[:, : _DIRECTIONS + 1]
        halves = np.einsum("ij,ij->i", inside, inside) / -2
        some[:, _DIRECTIONS + 1] = np.where(is_valid, halves, _FAR_AWAY)
        some[:, _DIRECTIONS + 2] = 1
    return found


def _directions(vectors: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of a sample of the vectors, and about the directions in which they differ most.

    By a randomised range finder (Halko, Martinsson, Tropp 2011, algorithm 4.4). How good they are changes the
    time that is needed, not the result.
    """
    sample = unit(vectors[rows[:: max(1, len(rows) // _SAMPLE)]])
    sample = sample[np.isfinite(sample).all(axis=1)]
    dimension = vectors.shape[1]
    if dimension <= _DIRECTIONS or not len(sample):
        return np.zeros(dimension, np.float32), np.eye(
            dimension, min(dimension, _DIRECTIONS), dtype=np.float32
        )
    centre = sample.mean(axis=0)
    centred = sample - centre
    found = np.random.default_rng(0).standard_normal((dimension, _DIRECTIONS), np.float32)
    for _ in range(3):
        found, _ = np.linalg.qr(centred.T @ (centred @ found))
    return centre, found
