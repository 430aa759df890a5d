"""One thread at a time decodes small images, several decode large ones side by side; `cores` says why.

Images count as small until they prove large: the holder releases the lock once its images have taken
more CPU time than small ones would, or much more wall time, as from a slow disk. All threads then skip the
lock for a while. Waits are short, because the holder may hang at a disk and images of the lane `high` may
come.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Self

from clipfleet_worker.process.cores import SMALL_IMAGE_SECONDS

# By the wall clock: on a busy machine a small image takes longer than alone.
_SMALL_ON_A_BUSY_MACHINE_SECONDS = 3 * SMALL_IMAGE_SECONDS
_CLOCK_WEIGHT = 0.2  # waiting for Python's lock, or for a CPU, delays a thread, too
_IMAGES_PER_LOOK = 4  # at the clocks
_HICCUP_SECONDS = 0.01  # by which small images may be late
_SIDE_BY_SIDE_SECONDS = 2.0  # until the lock is tried again, which costs the other threads some hiccups
_PATIENCE_SECONDS = 0.25  # dozens of slices of small images


class DecodeLock:
    """Shared by all threads that decode."""

    def __init__(
        self,
        *,
        patience_seconds: float = _PATIENCE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        thread_time: Callable[[], float] = time.thread_time,
    ) -> None:
        """Images count as small at first.

        Args:
            patience_seconds: how long a thread waits for the lock.
            monotonic: the clock, in seconds.
            thread_time: CPU seconds of the calling thread.
        """
        self._patience_seconds = patience_seconds
        self.monotonic = monotonic
        self.thread_time = thread_time
        self._lock = threading.Lock()
        self._skipped_until = -math.inf
        self.late_seconds = 0.0  # by which the holder is slower than small images would be

    def hold(self) -> Hold:
        """A context for the images of one slice; entering it acquires the lock, unless threads skip it."""
        return Hold(self)

    @property
    def is_skipped(self) -> bool:
        """Whether threads decode side by side now, without the lock."""
        return self.monotonic() < self._skipped_until

    def acquire(self) -> bool:
        """Wait for the lock; False if it is skipped or the wait times out."""
        if self.is_skipped:
            return False
        if not self._lock.acquire(timeout=self._patience_seconds):
            self._skipped_until = self.monotonic() + _SIDE_BY_SIDE_SECONDS
            return False
        if self.is_skipped:  # by what the previous holder has found
            self._lock.release()
            return False
        return True

    def release(self) -> None:
        """Let the next thread have it."""
        self._lock.release()

    def release_for_all(self) -> None:
        """The images are large: let all threads skip the lock for a while."""
        self._skipped_until = self.monotonic() + _SIDE_BY_SIDE_SECONDS
        self.late_seconds = 0.0
        self._lock.release()


class Hold:
    """The lock for one slice; belongs to the thread that decodes it."""

    def __init__(self, lock: DecodeLock) -> None:
        self._lock = lock
        self.is_held = False  # other threads wait
        self._images = 0  # since the last look at the clocks
        self._looked = self._worked = 0.0  # by each of them

    def __enter__(self) -> Self:
        self.is_held = self._lock.acquire()
        self._looked, self._worked = self._lock.monotonic(), self._lock.thread_time()
        return self

    def count_image(self) -> None:
        """One more image was read and decoded, or could not be."""
        self._images += 1
        if self.is_held and self._images == _IMAGES_PER_LOOK:
            self._look()

    def _look(self) -> None:
        lock = self._lock
        now, worked = lock.monotonic(), lock.thread_time()
        late_seconds = max(
            worked - self._worked - self._images * SMALL_IMAGE_SECONDS,
            (now - self._looked - self._images * _SMALL_ON_A_BUSY_MACHINE_SECONDS) * _CLOCK_WEIGHT,
        )
        self._looked, self._worked, self._images = now, worked, 0
        lock.late_seconds = max(0.0, lock.late_seconds + late_seconds)
        if lock.late_seconds > _HICCUP_SECONDS:
            self.is_held = False
            lock.release_for_all()

    def __exit__(self, *_: object) -> None:
        if self.is_held and self._images:
            self._look()
        if self.is_held:
            self._lock.release()
