"""So many at a time, those of the best lane first: what waits for turns at hosts and stores.

A URL that somebody waits for must not stand in line behind the thousands that a bulk job has at the same
host. As with claims, every 8th turn that is handed on goes to the lowest lane that waits, so that none
starves. The fetchers do not know whose item they get: its lane stands in the context of its tasks.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar

from clipfleet.contract import Lane
from clipfleet_worker.fetch.turn_waits import waiting_for

_EVERY_FROM_THE_BOTTOM = 8

_Turn = asyncio.Future[None]

_lane: ContextVar[Lane] = ContextVar("lane", default=Lane.NORMAL)


def tell_lane(lane: Lane) -> None:
    """Of the job of this task, and of those tasks it starts from now on."""
    _lane.set(lane)


class LaneTurns:
    """Belongs to one event loop.

    Args:
        limit: how many may have a turn at a time; asked anew with each turn.
    """

    __slots__ = ("_active", "_limit", "_waiting")

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._active = 0
        self._waiting = _Waiting()

    @property
    def is_idle(self) -> bool:
        """Whether nobody has a turn or waits for one."""
        return not self._active and not self._waiting

    async def take(self, reason: str) -> None:
        """Wait for a turn; `release` gives it back.

        Args:
            reason: what is waited for, in words.
        """
        if self._active < self._limit() and not self._waiting:
            self._active += 1
            return
        lane, turn = _lane.get(), asyncio.get_running_loop().create_future()
        self._waiting.add(lane, turn)
        try:
            with waiting_for(reason):
                await turn  # whoever fulfils it has counted us as active
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._active -= 1
            self._waiting.forget(lane, turn)
            self._hand_on()
            raise

    def release(self) -> None:
        """Give a turn back, to whoever comes next."""
        self._active -= 1
        self._hand_on()

    def _hand_on(self) -> None:
        while self._active < self._limit() and (turn := self._waiting.pop()) is not None:
            self._active += 1
            turn.set_result(None)


class _Waiting:
    """Who waits, by lane; of a lane the first come goes first. Cancelled ones may be among them."""

    __slots__ = ("_by_lane", "_handed_on")

    def __init__(self) -> None:
        self._by_lane: dict[Lane, OrderedDict[_Turn, None]] = {}  # there are as many of us as busy hosts
        self._handed_on = 0

    def __bool__(self) -> bool:
        return any(self._by_lane.values())

    def add(self, lane: Lane, turn: _Turn) -> None:
        self._by_lane.setdefault(lane, OrderedDict())[turn] = None

    def forget(self, lane: Lane, turn: _Turn) -> None:
        self._by_lane[lane].pop(turn, None)

    def pop(self) -> _Turn | None:
        """Who comes next."""
        is_from_the_bottom = (self._handed_on + 1) % _EVERY_FROM_THE_BOTTOM == 0
        for lane in reversed(Lane) if is_from_the_bottom else Lane:
            waiting = self._by_lane.get(lane)
            while waiting:
                turn, _ = waiting.popitem(last=False)
                if not turn.done():
                    self._handed_on += 1
                    return turn
        return None
