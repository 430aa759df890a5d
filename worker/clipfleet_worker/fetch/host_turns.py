"""Who may ask which host now: so many requests at a time per host and in all, first come, first served."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from clipfleet_worker.fetch.turn_waits import waiting_for

log = logging.getLogger(__name__)


class HostTurns:
    """Belongs to one event loop, but for `share`.

    Args:
        per_host: requests to one host at a time, of all workers together.
        total: requests to all hosts at a time, of this worker. Slow ones do not count, up to as many again:
            a few hundred dead hosts must not keep the others waiting.
        slow_seconds: after so long a request is a slow one.
    """

    def __init__(self, per_host: int, total: int, *, slow_seconds: float = 3.0) -> None:
        self._of_all_workers = per_host
        self._per_host = per_host
        self._of_all_hosts = total
        self._total = asyncio.Semaphore(total)
        self._most_slow = total
        self._slow_seconds = slow_seconds
        self._slow = 0
        self._hosts: dict[str, _Host] = {}

    @property
    def per_host(self) -> int:
        """Requests to one host at a time, as they are now."""
        return self._per_host

    @property
    def slow(self) -> int:
        """Slow requests under way."""
        return self._slow

    def share(self, workers: int) -> None:
        """Divide what a host is asked at a time among so many workers; each keeps one at least.

        From any thread. What is under way goes on; a host with requests waiting sees the change with the next
        one that ends.
        """
        share = max(1, self._of_all_workers // max(1, workers))
        if share != self._per_host:
            log.info(
                "%d workers share what a host is asked at a time: %d of %d requests are ours",
                workers,
                share,
                self._of_all_workers,
                extra={"action": "hosts_shared"},
            )
        self._per_host = share

    @asynccontextmanager
    async def at(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn at a host, and keep it for the time of the context."""
        turns = self._hosts.setdefault(host, _Host())
        await self._enter(host, turns)
        try:
            # The host's turn first: a slow host then holds up only its own images.
            async with self._total_turn():
                yield
        finally:
            turns.active -= 1
            self._go_on(host, turns)

    @asynccontextmanager
    async def _total_turn(self) -> AsyncIterator[None]:
        """One of the turns at all hosts, given to the next when this request turns out to be slow."""
        if self._total.locked():
            with waiting_for(f"all of {self._of_all_hosts} connections are in use"):
                await self._total.acquire()
        else:
            await self._total.acquire()
        turn = _TotalTurn()
        self._hand_on_later(turn)
        try:
            yield
        finally:
            if turn.timer is not None:
                turn.timer.cancel()
            if turn.is_slow:
                self._slow -= 1
            else:
                self._total.release()

    def _hand_on_later(self, turn: _TotalTurn) -> None:
        loop = asyncio.get_running_loop()
        turn.timer = loop.call_later(self._slow_seconds, self._hand_on, turn)

    def _hand_on(self, turn: _TotalTurn) -> None:
        if self._slow >= self._most_slow:
            self._hand_on_later(turn)
            return
        turn.is_slow = True
        self._slow += 1
        self._total.release()

    async def _enter(self, host: str, turns: _Host) -> None:
        if turns.active < self._per_host and not turns.waiting:
            turns.active += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turns.waiting.append(turn)
        try:
            with waiting_for(f"{host} at its connection cap ({self._of_all_workers})"):
                await turn  # whoever fulfils it has counted us as active
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                turns.active -= 1
            self._go_on(host, turns)
            raise

    def _go_on(self, host: str, turns: _Host) -> None:
        """Hand out the turns that are free, and forget a host that nobody asks."""
        while turns.waiting and (turns.waiting[0].done() or turns.active < self._per_host):
            turn = turns.waiting.popleft()
            if not turn.done():
                turns.active += 1
                turn.set_result(None)
        if not turns.active and not turns.waiting:
            self._hosts.pop(host, None)


@dataclass(slots=True)
class _TotalTurn:
    is_slow: bool = False  # and has given its turn to the next
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Host:
    active: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)  # cancelled ones may be among them
