"""Small pictures are read by one thread at a time, large ones side by side; `thread_rule` says why.

What is small shows while it is read: whoever has the turn gives it up once pictures have taken longer than
small ones would have, and for a while nobody asks for a turn. Nobody ever waits for long: the one who has the
turn may hang at a disk, and a picture of the lane `high` may come.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from clipfleet_worker.thread_rule import SMALL_PICTURE_SECONDS

_HICCUP_SECONDS = 0.01  # that small pictures may lose to other threads and programs
_SIDE_BY_SIDE_SECONDS = 2.0  # then it is tried again, which costs the others some hiccups
_PATIENCE_SECONDS = 0.25  # dozens of slices of small pictures


class DecodeTurns:
    """Shared by all threads that decode."""

    def __init__(
        self,
        *,
        always_side_by_side: bool = False,
        patience_seconds: float = _PATIENCE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Pictures pass for small until they are seen.

        Args:
            always_side_by_side: a GPU decodes them, by the slice: there are no turns.
            patience_seconds: how long a thread waits for its turn.
            monotonic: the clock, in seconds.
        """
        self._patience_seconds = patience_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._side_by_side_until = math.inf if always_side_by_side else -math.inf
        self.late_seconds = 0.0  # of whoever has the turn: so much longer than small pictures it took

    def turn(self) -> Turn:
        """A context for the pictures of one slice; entered when the turn has come, or is not needed."""
        return Turn(self, self._monotonic)

    @property
    def are_side_by_side(self) -> bool:
        """Whether nobody waits for a turn now."""
        return self._monotonic() < self._side_by_side_until

    def take(self) -> bool:
        """Wait for the turn; False where none is needed, or it takes too long to come."""
        if self.are_side_by_side:
            return False
        if not self._lock.acquire(timeout=self._patience_seconds):
            self._side_by_side_until = self._monotonic() + _SIDE_BY_SIDE_SECONDS
            return False
        if self.are_side_by_side:  # by what the one before has seen
            self._lock.release()
            return False
        return True

    def give_back(self) -> None:
        """The next one may go on."""
        self._lock.release()

    def give_up(self, now: float) -> None:
        """The pictures are large: all may go on."""
        self._side_by_side_until = now + _SIDE_BY_SIDE_SECONDS
        self.late_seconds = 0.0
        self._lock.release()


class Turn:
    """One slice's; belongs to the thread that reads it."""

    def __init__(self, turns: DecodeTurns, monotonic: Callable[[], float]) -> None:
        self._turns = turns
        self._monotonic = monotonic
        self.is_ours = False  # others wait
        self._last = 0.0

    def __enter__(self) -> Self:
        self.is_ours = self._turns.take()
        self._last = self._monotonic()
        return self

    def note(self, now: float) -> None:
        """One more picture was read and decoded, or could not be."""
        if not self.is_ours:
            return
        turns = self._turns
        turns.late_seconds = max(0.0, turns.late_seconds + now - self._last - SMALL_PICTURE_SECONDS)
        self._last = now
        if turns.late_seconds > _HICCUP_SECONDS:
            self.is_ours = False
            turns.give_up(now)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_ours:
            self._turns.give_back()
