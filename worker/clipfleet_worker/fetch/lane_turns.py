"""A semaphore with lanes: turns at hosts and stores, those of the best lane first.

A URL of the best lane must not wait behind the thousands that a bulk job has at the same host. But every 8th
released turn goes to the longest wait in the other lanes, so that none of them starves, and every 2nd once
that wait is long: the time of its chunk runs, and at its end the item fails. Fetchers do not know the lane of
an item: it is in the context of its tasks.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar

from clipfleet.contract.jobs import Lane

_EVERY_FROM_BELOW = 8
_EVERY_THAT_WAITED_LONG = 2
_LONG_SECONDS = 20.0  # a ninth of a chunk's time, by default

_Turn = asyncio.Future[None]

_lane: ContextVar[Lane] = ContextVar("lane", default=Lane.NORMAL)


def set_lane(lane: Lane) -> None:
    """Set the lane of this task, and of those it starts from now on."""
    _lane.set(lane)


class LaneTurns:
    """Belongs to one event loop.

    Args:
        limit: returns how many turns there are; called for each turn.
        monotonic: the clock, in seconds.
    """

    __slots__ = ("_active", "_limit", "_waiting")

    def __init__(self, limit: Callable[[], int], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._active = 0
        self._waiting = _Waiting(monotonic)

    @property
    def is_idle(self) -> bool:
        """Whether no turn is taken or waited for."""
        return not self._active and not self._waiting

    async def take(self) -> None:
        """Wait for a turn; `release` ends it."""
        if self._active < self._limit() and not self._waiting:
            self._active += 1
            return
        lane, turn = _lane.get(), asyncio.get_running_loop().create_future()
        self._waiting.add(lane, turn)
        try:
            await turn  # `_hand_on` has counted it as active
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._active -= 1
            self._waiting.forget(lane, turn)
            self._hand_on()
            raise

    def release(self) -> None:
        """End a turn, and begin the next one."""
        self._active -= 1
        self._hand_on()

    def _hand_on(self) -> None:
        while self._active < self._limit() and (turn := self._waiting.pop()) is not None:
            self._active += 1
            turn.set_result(None)


class _Waiting:
    """Turns that are waited for: by lane, first come first served. Cancelled ones may be among them."""

    __slots__ = ("_by_lane", "_handed_on", "_monotonic")

    def __init__(self, monotonic: Callable[[], float]) -> None:
        # With the time when each wait began. There is one of these objects per busy host.
        self._by_lane: dict[Lane, OrderedDict[_Turn, float]] = {}
        self._handed_on = 0
        self._monotonic = monotonic

    def __bool__(self) -> bool:
        return any(self._by_lane.values())

    def add(self, lane: Lane, turn: _Turn) -> None:
        self._by_lane.setdefault(lane, OrderedDict())[turn] = self._monotonic()

    def forget(self, lane: Lane, turn: _Turn) -> None:
        self._by_lane[lane].pop(turn, None)

    def pop(self) -> _Turn | None:
        """The next one, None if none is waited for."""
        lanes = [lane for lane in Lane if self._has(lane)]
        if not lanes:
            return None
        self._handed_on += 1
        comes = lanes[0]
        if len(lanes) > 1:
            came, longest = min((next(iter(self._by_lane[lane].values())), lane) for lane in lanes[1:])
            is_long = self._monotonic() - came > _LONG_SECONDS
            if self._handed_on % (_EVERY_THAT_WAITED_LONG if is_long else _EVERY_FROM_BELOW) == 0:
                comes = longest
        turn, _ = self._by_lane[comes].popitem(last=False)
        return turn

    def _has(self, lane: Lane) -> bool:
        """Whether a turn is waited for in a lane; drops cancelled ones at its head."""
        waiting = self._by_lane.get(lane)
        while waiting:
            turn = next(iter(waiting))
            if not turn.done():
                return True
            del waiting[turn]
        return False
