"""The outcomes of the items of one chunk, collected from the threads of all steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clipfleet.contract.jobs import ItemError


@dataclass(frozen=True, slots=True)
class Features:
    """Features of the items of a chunk that are ok."""

    items: int  # of the chunk, with those that have failed
    positions: np.ndarray  # int64 (n,), ascending
    values: np.ndarray  # float32 (n, d), L2-normalised


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server says of an image's version; empty where it says nothing."""

    etag: str = ""
    last_modified: str = ""


@dataclass(frozen=True, slots=True)
class EqualImage:
    """What a store has of an image that is equal to the one of an item."""

    vector: np.ndarray  # as it is stored
    width: int | None
    height: int | None


class Outcomes:
    """One slot per item, by its position in the chunk. Every item ends once: with features or an error.

    An item of a job that fills a store may also end as the same that the store has, or with the stored vector
    of an equal image.

    The thread of the chunk waits; any thread reports. Reports after `interrupt` are ignored.
    """

    def __init__(self, count: int, on_end: Callable[[int], None] = lambda _: None) -> None:
        """Begin with all items open.

        Args:
            count: number of items.
            on_end: called with the number of newly ended items; quick.
        """
        self._on_end = on_end
        self.errors: list[ItemError | None] = [None] * count
        self.widths: list[int | None] = [None] * count
        self.heights: list[int | None] = [None] * count
        self.content_hashes: list[str | None] = [None] * count
        self.sizes_bytes: list[int | None] = [None] * count
        self.features: list[np.ndarray | None] = [None] * count  # float32, L2-normalised; or as stored
        self.validators: dict[int, Validators] = {}  # of remote items
        self.same: set[int] = set()
        self.copied: set[int] = set()
        self.seconds: dict[str, float] = {}
        self.waits: dict[str, float] = {}  # summed over items, by `clipfleet.contract.bottleneck.Meter`
        self._open = count
        self._ended = [False] * count
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def is_interrupted(self) -> bool:
        """Whether further results are ignored."""
        return self._failure is not None

    @property
    def all_failed(self) -> bool:
        """Whether every item has ended with an error."""
        return all(error is not None for error in self.errors)

    def has_ended(self, position: int) -> bool:
        """Whether this item has its outcome."""
        return self._ended[position]

    def fail(self, position: int, error: ItemError) -> None:
        """End an item with an error, unless it has ended."""
        with self._changed:
            if not self._ended[position]:
                self.errors[position] = error
                self._end([position])

    def fail_all(self, error: ItemError) -> None:
        """End every item with an error, even one with features; earlier errors stay."""
        with self._changed:
            self.same.clear()
            self.copied.clear()
            for position, earlier in enumerate(self.errors):
                if earlier is None:
                    self.errors[position], self.features[position] = error, None
            self._end([position for position, ended in enumerate(self._ended) if not ended])

    def deliver(self, positions: Sequence[int], features: np.ndarray) -> None:
        """End items with their features, float32 (len(positions), d)."""
        with self._changed:
            fresh = [n for n, position in enumerate(positions) if not self._ended[position]]
            for n in fresh:
                self.features[positions[n]] = features[n]
            self._end([positions[n] for n in fresh])

    def keep(self, position: int, content_hash: str) -> None:
        """End an item whose image is the one that the store has, unless it has ended."""
        with self._changed:
            if not self._ended[position]:
                self.content_hashes[position] = content_hash
                self.same.add(position)
                self._end([position])

    def copy(self, position: int, image: EqualImage) -> None:
        """End an item with what the store has of an equal image, unless it has ended."""
        with self._changed:
            if not self._ended[position]:
                self.features[position] = image.vector
                self.widths[position], self.heights[position] = image.width, image.height
                self.copied.add(position)
                self._end([position])

    def _end(self, positions: Sequence[int]) -> None:
        for position in positions:
            self._ended[position] = True
        self._open -= len(positions)
        self._on_end(len(positions))
        if self._open == 0:
            self._changed.notify_all()

    def ok_features(self) -> Features:
        """Features of all items that have some."""
        positions = [position for position, feature in enumerate(self.features) if feature is not None]
        values = [feature for feature in self.features if feature is not None]
        matrix = np.array(values, np.float32) if values else np.empty((0, 0), np.float32)
        return Features(len(self.features), np.array(positions, np.int64), matrix)

    def interrupt(self, failure: BaseException) -> None:
        """Make `wait` raise this. The first call counts."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def add_seconds(self, step: str, seconds: float) -> None:
        """Add working time of a step, for the totals of the job."""
        with self._changed:
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    def add_wait(self, meter: str, seconds: float) -> None:
        """Add time of items or threads to a `bottleneck.Meter`."""
        with self._changed:
            self.waits[meter] = self.waits.get(meter, 0.0) + seconds

    def wait(self) -> None:
        """Block until every item has ended.

        Raises:
            ChunkInterrupted: the chunk is no longer ours, or the worker drains.
            BaseException: any other argument of `interrupt`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0 or self._failure is not None)
            if self._failure is not None:
                raise self._failure
