"""How much may wait at a time, of all requests of a gateway. One key leaves room for others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

from clipfleet_gateway.errors import invalid, limited

MOST_REQUEST_BYTES = 128 << 20  # of the images of one request: its job takes several times as much memory
_SHARE = 2  # a key may have a half
_RETRY_SECONDS = 2.0

Keep = Callable[[int], None]


class _Bound:
    """A number that waits, by key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    def take(self, owner: str, count: int) -> None:
        """Add to it. Raises `ApiError` (429) if it is too much; what waits alone never is."""
        own, total = self._taken[owner], self._taken.total()
        if (own and own + count > self.of_a_key) or (total and total + count > self._most):
            whose = "of this key " if own + count > self.of_a_key else ""
            raise limited(f"Too many inputs {whose}wait: try again", _RETRY_SECONDS, "overloaded")
        self._taken[owner] += count

    @property
    def of_a_key(self) -> int:
        """How much of it one key may have."""
        return self._most // _SHARE

    def release(self, owner: str, count: int) -> None:
        """Take from it."""
        self._taken[owner] -= count
        if not self._taken[owner]:
            del self._taken[owner]


class Room:
    """Counts inputs that wait, and the bytes that are kept of them. For one event loop.

    Args:
        inputs: that may wait at a time.
        size_bytes: the same of their bytes.
    """

    def __init__(self, inputs: int, size_bytes: int) -> None:
        self._inputs = _Bound(inputs)
        self._bytes = _Bound(size_bytes)

    @contextmanager
    def held(self, owner: str, inputs: int) -> Iterator[Keep]:
        """Room for the inputs of a request of a key.

        Yields:
            A call to take room for so many bytes more. It raises `ApiError`: as below, or the request has too
            many (413).

        Raises:
            ApiError: too much waits (429).
        """
        kept = 0

        def keep(size_bytes: int) -> None:
            nonlocal kept
            if kept + size_bytes > MOST_REQUEST_BYTES:
                raise invalid(
                    f"The images of a request may have {MOST_REQUEST_BYTES >> 20} MiB, and these have "
                    f"{(kept + size_bytes) >> 20}: send several requests, or a batch",
                    "input", "inputs_too_large", status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                )  # fmt: skip
            self._bytes.take(owner, size_bytes)
            kept += size_bytes

        self._inputs.take(owner, inputs)
        try:
            yield keep
        finally:
            self._inputs.release(owner, inputs)
            self._bytes.release(owner, kept)
