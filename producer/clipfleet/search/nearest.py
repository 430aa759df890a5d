"""The nearest rows of queries, over blocks of vectors that are added one after the other. No I/O."""

from __future__ import annotations

import numpy as np

from clipfleet.labels.metrics import unit

_ROWS_AT_ONCE = 1024  # so that their vectors, as float32, stay in the cache of a CPU
_FEW = 4  # queries: the products of more of them are left to BLAS


class Nearest:
    """The rows with the highest cosines to each query; of equal ones those that were added first."""

    def __init__(self, queries: np.ndarray, top: int) -> None:
        """No row is known yet.

        Args:
            queries: (q, d), of any length but 0.
            top: rows to keep for each query.
        """
        self._queries = unit(queries)
        self._top = top
        self._scores = np.full((len(queries), top), -np.inf, np.float32)
        self._positions = np.full((len(queries), top), -1, np.int64)

    def add(self, first_position: int, vectors: np.ndarray) -> None:
        """Look at vectors (n, d), float16 or float32, of consecutive positions.

        A vector of length 0, or with a number that is not finite, is never near.
        """
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            block = np.asarray(vectors[start : start + _ROWS_AT_ONCE], np.float32)
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block))  # the products are fewer than the numbers
            with np.errstate(invalid="ignore", divide="ignore"):
                cosines = self._products(block) / lengths
            positions = np.arange(first_position + start, first_position + start + len(block))
            self._merge(np.where(np.isfinite(cosines), cosines, -np.inf), positions)

    def _products(self, block: np.ndarray) -> np.ndarray:
        if len(self._queries) > _FEW:
            whole: np.ndarray = self._queries @ block.T
            return whole
        # BLAS takes all cores, and each product waits for the slowest: too long where it is short.
        return np.stack([np.einsum("ij,j->i", block, query) for query in self._queries])

    def _merge(self, cosines: np.ndarray, positions: np.ndarray) -> None:
        better = cosines > self._scores[:, -1:]
        asked = np.flatnonzero(better.any(axis=1))
        if not len(asked):
            return
        kept = better[asked].any(axis=0)  # a column that improves no query is not sorted
        scores = np.concatenate([self._scores[asked], cosines[np.ix_(asked, kept)]], axis=1)
        places = np.concatenate(
            [self._positions[asked], np.broadcast_to(positions[kept], (len(asked), int(kept.sum())))], axis=1
        )
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._top]
        self._scores[asked] = np.take_along_axis(scores, best, axis=1)
        self._positions[asked] = np.take_along_axis(places, best, axis=1)

    def scores(self) -> np.ndarray:
        """Cosines, float32 (q, top), from high to low; -inf where there are fewer rows."""
        return self._scores

    def positions(self) -> np.ndarray:
        """The rows of `scores`, int64 (q, top); -1 where there are fewer."""
        return self._positions
