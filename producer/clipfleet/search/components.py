"""Which of many rows are connected by pairs that are added in blocks. No I/O."""

from __future__ import annotations

import numpy as np


class Components:
    """Sets of connected rows; each is named by its lowest row, its root."""

    def __init__(self, rows: int) -> None:
        """No row is connected to another one yet."""
        self._above = np.arange(rows, dtype=np.int64)

    def roots(self, rows: np.ndarray) -> np.ndarray:
        """The root of each of these rows, int64."""
        found: np.ndarray = self._above[rows]
        while True:
            higher = self._above[found]
            if np.array_equal(higher, found):
                self._above[rows] = found  # the next search is short
                return found
            found = higher

    def connect(self, some: np.ndarray, others: np.ndarray) -> None:
        """Connect each row with the other one at its place."""
        one, other = self.roots(some), self.roots(others)
        keys = np.minimum(one, other) * len(self._above) + np.maximum(one, other)
        for key in np.unique(keys[one != other]).tolist():
            low, high = sorted(map(self._root, divmod(key, len(self._above))))
            self._above[high] = low

    def _root(self, row: int) -> int:
        while (higher := int(self._above[row])) != row:
            self._above[row] = self._above[higher]
            row = higher
        return row
