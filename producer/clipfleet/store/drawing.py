"""Draws the items that a limited night runs, at random each night.

Nothing needs to be remembered for that, and items that always fail do not keep others out for long.
Memory: 32 bytes per item that may be drawn.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# New and changed items come first, except for one place in so many: they may fail every night.
_ASKED_SHARE = 4


class Drawing:
    """A drawing of at most so many items, which come in batches."""

    def __init__(self, most: int, began_at: datetime) -> None:
        """Nothing is offered yet; at each time others are drawn."""
        raw = blake2b(began_at.isoformat().encode(), digest_size=8).digest()
        self._factor = int.from_bytes(raw, "little") | 1
        self.most = most
        self._first, self._asked = _Lots(most), _Lots(most)

    def offer(self, hashes: np.ndarray, is_asked: np.ndarray) -> np.ndarray:
        """Which of these items can still be drawn, bool.

        Args:
            hashes: of their ids, see `id_hashes`.
            is_asked: bool: only asked whether they have changed; the others are new, or have changed.
        """
        lots = self._lots(hashes)
        is_open = lots < self._limit(is_asked)
        self._first.add(lots[is_open & ~is_asked])
        self._asked.add(lots[is_open & is_asked])
        return is_open

    def close(self) -> None:
        """Draw: from now on, `is_drawn` is final."""
        # Also where there are fewer places than that: then in some nights.
        share = (self.most + self._factor // 2 % _ASKED_SHARE) // _ASKED_SHARE
        asked = min(len(self._asked), max(self.most - len(self._first), share))
        self._asked.cut(asked)
        self._first.cut(self.most - asked)

    def is_drawn(self, hashes: np.ndarray, is_asked: np.ndarray) -> np.ndarray:
        """Which of the items that were offered are drawn, bool. See `offer`."""
        found: np.ndarray = self._lots(hashes) < self._limit(is_asked)
        return found

    def _lots(self, hashes: np.ndarray) -> np.ndarray:
        """The lowest ones win. The product of an even hash has zeros at its end, which decide nothing."""
        import numpy as np

        found: np.ndarray = (hashes * np.uint64(self._factor)) >> np.uint64(1)
        return found

    def _limit(self, is_asked: np.ndarray) -> np.ndarray:
        import numpy as np

        return np.where(is_asked, np.uint64(self._asked.limit), np.uint64(self._first.limit))


class _Lots:
    """The lowest lots so far, a few more than can be drawn."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lots: list[np.ndarray] = []
        self._count = 0
        self.limit = 1 << 63  # lots below it are among them

    def __len__(self) -> int:
        return self._count

    def add(self, lots: np.ndarray) -> None:
        self._lots.append(lots)
        self._count += len(lots)
        if self._count > 2 * self._most:
            self.cut(self._most)

    def cut(self, most: int) -> None:
        """Leave at most so many."""
        import numpy as np

        if self._count <= most:
            return
        every = np.concatenate(self._lots)
        every.partition(most)
        self.limit = int(every[most])
        self._lots, self._count = [every[:most].copy()], most
