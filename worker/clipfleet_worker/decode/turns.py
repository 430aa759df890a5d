"""Small images are read by one thread at a time, large ones side by side; `cores` says why.

What is small shows while it is read: whoever has the turn gives it up once images have taken more of the
CPU than small ones would have, or much longer by the clock, as from a slow disk. Then nobody asks for a
turn for a while. Nobody ever waits for long: the one who has the turn may hang at a disk, and an image of
the lane `high` may come.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Self

from clipfleet_worker.process.cores import SMALL_IMAGE_SECONDS

# By the clock: on a busy machine a small image takes longer than alone.
_SMALL_ON_A_BUSY_MACHINE_SECONDS = 3 * SMALL_IMAGE_SECONDS
_CLOCK_WEIGHT = 0.2  # a thread that waits for Python's lock, or for a CPU, is late by it, too
_IMAGES_PER_LOOK = 4  # at the clocks
_HICCUP_SECONDS = 0.01  # that small images may be late by
_SIDE_BY_SIDE_SECONDS = 2.0  # then it is tried again, which costs the others some hiccups
_PATIENCE_SECONDS = 0.25  # dozens of slices of small images


class DecodeTurns:
    """Shared by all threads that decode."""

    def __init__(
        self,
        *,
        patience_seconds: float = _PATIENCE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        thread_time: Callable[[], float] = time.thread_time,
    ) -> None:
        """Images pass for small until they are seen.

        Args:
            patience_seconds: how long a thread waits for its turn.
            monotonic: the clock, in seconds.
            thread_time: seconds that the calling thread has had a CPU.
        """
        self._patience_seconds = patience_seconds
        self.monotonic = monotonic
        self.thread_time = thread_time
        self._lock = threading.Lock()
        self._side_by_side_until = -math.inf
        self.late_seconds = 0.0  # of whoever has the turn: so much longer than small images it has taken

    def turn(self) -> Turn:
        """A context for the images of one slice; entered when the turn has come, or is not needed."""
        return Turn(self)

    @property
    def are_side_by_side(self) -> bool:
        """Whether nobody waits for a turn now."""
        return self.monotonic() < self._side_by_side_until

    def take(self) -> bool:
        """Wait for the turn; False where none is needed, or it takes too long to come."""
        if self.are_side_by_side:
            return False
        if not self._lock.acquire(timeout=self._patience_seconds):
            self._side_by_side_until = self.monotonic() + _SIDE_BY_SIDE_SECONDS
            return False
        if self.are_side_by_side:  # by what the one before has seen
            self._lock.release()
            return False
        return True

    def give_back(self) -> None:
        """The next one may go on."""
        self._lock.release()

    def give_up(self) -> None:
        """The images are large: all may go on."""
        self._side_by_side_until = self.monotonic() + _SIDE_BY_SIDE_SECONDS
        self.late_seconds = 0.0
        self._lock.release()


class Turn:
    """One slice's; belongs to the thread that reads it."""

    def __init__(self, turns: DecodeTurns) -> None:
        self._turns = turns
        self.is_ours = False  # others wait
        self._images = 0  # since the last look at the clocks
        self._looked = self._worked = 0.0  # by each of them

    def __enter__(self) -> Self:
        self.is_ours = self._turns.take()
        self._looked, self._worked = self._turns.monotonic(), self._turns.thread_time()
        return self

    def note(self) -> None:
        """One more image was read and decoded, or could not be."""
        self._images += 1
        if self.is_ours and self._images == _IMAGES_PER_LOOK:
            self._look()

    def _look(self) -> None:
        turns = self._turns
        now, worked = turns.monotonic(), turns.thread_time()
        late_seconds = max(
            worked - self._worked - self._images * SMALL_IMAGE_SECONDS,
            (now - self._looked - self._images * _SMALL_ON_A_BUSY_MACHINE_SECONDS) * _CLOCK_WEIGHT,
        )
        self._looked, self._worked, self._images = now, worked, 0
        turns.late_seconds = max(0.0, turns.late_seconds + late_seconds)
        if turns.late_seconds > _HICCUP_SECONDS:
            self.is_ours = False
            turns.give_up()

    def __exit__(self, *_: object) -> None:
        if self.is_ours and self._images:
            self._look()
        if self.is_ours:
            self._turns.give_back()
