"""Gathers requests that arrive within milliseconds, so that they share a job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from clipfleet_gateway.asking.jobs import FULL_INPUTS, Kind, Row
from clipfleet_gateway.inputs.asked import Item

# A job waits after its first request, and until no other has come for a moment; longer while requests that
# were answered just now have not come again, as a client that keeps its connections busy sends them. A worker
# does few jobs of many inputs in less time than many jobs of few. Behind two jobs of the kind a job waits
# until one of them ends; but not for long, as they may be stuck.
GATHER_SECONDS = 0.004
_QUIET_SECONDS = 0.003
_RETURN_SECONDS = 0.01
_MOST_IDLE_SECONDS = 0.025  # while no job of the kind is under way
MOST_GATHER_SECONDS = 0.05
_ENOUGH_UNDER_WAY = 2
_RESOLUTION_SECONDS = 0.0005
_FULL_BYTES = 8 << 20


@dataclass(eq=False, slots=True)
class Share:
    """The inputs of one request in a job, and the future of their rows."""

    items: Sequence[Item]
    size_bytes: int
    rows: asyncio.Future[list[Row]]


@dataclass(eq=False, slots=True)
class _Gathered:
    shares: list[Share] = field(default_factory=list)
    inputs: int = 0
    size_bytes: int = 0
    first_at: float = 0.0  # when the first and the last request came
    last_at: float = 0.0
    timer: asyncio.TimerHandle | None = None
    under_way: int = 0  # jobs
    away: int = 0  # requests that were answered just now, less those that have come since

    def seconds_left(self, now: float) -> float:
        """For how long to wait for more requests."""
        waited = now - self.first_at
        most = (MOST_GATHER_SECONDS if self.under_way else _MOST_IDLE_SECONDS) - waited
        if self.under_way >= _ENOUGH_UNDER_WAY:
            return most
        quiet = _RETURN_SECONDS if self.away else _QUIET_SECONDS
        return min(most, max(GATHER_SECONDS - waited, self.last_at + quiet - now))


class MicroBatches:
    """Decides which requests share a job, and when it begins. For one event loop."""

    def __init__(self, run: Callable[[Kind, list[Share]], Awaitable[None]]) -> None:
        """`run` has a job done, and sets the rows of all shares or an exception; it raises nothing."""
        self._run = run
        self._gathered: dict[Kind, _Gathered] = {}
        self._tasks: set[asyncio.Future[None]] = set()

    def add(self, kind: Kind, items: Sequence[Item], size_bytes: int) -> Share:
        """Queue the inputs of a request. To withdraw it, cancel its future."""
        share = Share(items, size_bytes, asyncio.get_running_loop().create_future())
        gathered = self._gathered.setdefault(kind, _Gathered())
        if len(items) >= FULL_INPUTS or size_bytes >= _FULL_BYTES:
            self._start(kind, gathered, [share])
            return share
        if gathered.inputs + len(items) > FULL_INPUTS or gathered.size_bytes + size_bytes > _FULL_BYTES:
            self._begin(kind, gathered)
        now = self._loop_time()
        if not gathered.shares:
            gathered.first_at = now
        gathered.last_at = now
        gathered.away = max(0, gathered.away - 1)
        gathered.shares.append(share)
        gathered.inputs += len(items)
        gathered.size_bytes += size_bytes
        if gathered.inputs >= FULL_INPUTS:
            self._begin(kind, gathered)
        elif gathered.timer is None:
            self._begin_if_due(kind, gathered)
        return share

    def _loop_time(self) -> float:
        return asyncio.get_running_loop().time()

    def _begin_if_due(self, kind: Kind, gathered: _Gathered) -> None:
        if gathered.timer is not None:
            gathered.timer.cancel()
            gathered.timer = None
        seconds = gathered.seconds_left(self._loop_time())
        if seconds <= _RESOLUTION_SECONDS:
            gathered.away = 0  # do not wait again for those that did not come back
            self._begin(kind, gathered)
        else:
            loop = asyncio.get_running_loop()
            gathered.timer = loop.call_later(seconds, self._begin_if_due, kind, gathered)

    def _begin(self, kind: Kind, gathered: _Gathered) -> None:
        """Begin a job of what is gathered, less what was withdrawn."""
        if gathered.timer is not None:
            gathered.timer.cancel()
        shares = [share for share in gathered.shares if not share.rows.done()]
        gathered.shares, gathered.inputs, gathered.size_bytes = [], 0, 0
        gathered.timer = None
        if shares:
            self._start(kind, gathered, shares)

    def _start(self, kind: Kind, gathered: _Gathered, shares: list[Share]) -> None:
        gathered.under_way += 1
        task = asyncio.ensure_future(self._run(kind, shares))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._on_end(kind, gathered, len(shares)))

    def _on_end(self, kind: Kind, gathered: _Gathered, requests: int) -> None:
        gathered.under_way -= 1
        gathered.away += requests
        if gathered.shares:
            self._begin_if_due(kind, gathered)
        elif not gathered.under_way:
            asyncio.get_running_loop().call_later(_MOST_IDLE_SECONDS, self._forget, kind, gathered)

    def _forget(self, kind: Kind, gathered: _Gathered) -> None:
        """Forget a kind of which nothing waits or is under way."""
        if self._gathered.get(kind) is gathered and not gathered.shares and not gathered.under_way:
            del self._gathered[kind]
