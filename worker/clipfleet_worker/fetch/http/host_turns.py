"""Who may ask which host now: so many requests at a time per host and in all, the best lane first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from clipfleet_worker.fetch.lane_turns import LaneTurns

log = logging.getLogger(__name__)

_note_wait: ContextVar[Callable[[float], None]] = ContextVar("note_wait", default=lambda _seconds: None)


def tell_waits(note_wait: Callable[[float], None]) -> None:
    """Who is told the seconds that this task, and those it starts from now on, wait for turns at hosts."""
    _note_wait.set(note_wait)


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
        self.per_host = per_host  # requests to one host at a time, as they are now
        self._total = LaneTurns(lambda: total)
        self._most_slow = total
        self._slow_seconds = slow_seconds
        self.slow = 0  # slow requests under way
        self._hosts: dict[str, LaneTurns] = {}

    def share(self, workers: int) -> None:
        """Divide what a host is asked at a time among so many workers; each keeps one at least.

        From any thread. What is under way goes on; a host with requests waiting sees the change with the next
        one that ends.
        """
        share = max(1, self._of_all_workers // max(1, workers))
        if share != self.per_host:
            log.info(
                "%d workers share what a host is asked at a time: %d of %d requests are ours",
                workers,
                share,
                self._of_all_workers,
                extra={"action": "hosts_shared"},
            )
        self.per_host = share

    @asynccontextmanager
    async def at(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn at a host, and keep it for the time of the context."""
        turns = self._hosts.get(host)
        if turns is None:
            turns = self._hosts[host] = LaneTurns(lambda: self.per_host)
        now = asyncio.get_running_loop().time
        came = now()
        try:
            try:
                await turns.take()
            finally:  # also of those that give up
                _note_wait.get()(now() - came)
            try:
                # The host's turn first: a slow host then holds up only its own images.
                async with self._total_turn():
                    yield
            finally:
                turns.release()
        finally:
            # Nobody asks it; but who was cancelled may get here late, when others ask it anew.
            if turns.is_idle and self._hosts.get(host) is turns:
                del self._hosts[host]

    @asynccontextmanager
    async def _total_turn(self) -> AsyncIterator[None]:
        """One of the turns at all hosts, given to the next when this request turns out to be slow."""
        await self._total.take()
        turn = _TotalTurn()
        self._hand_on_later(turn)
        try:
            yield
        finally:
            if turn.timer is not None:
                turn.timer.cancel()
            if turn.is_slow:
                self.slow -= 1
            else:
                self._total.release()

    def _hand_on_later(self, turn: _TotalTurn) -> None:
        loop = asyncio.get_running_loop()
        turn.timer = loop.call_later(self._slow_seconds, self._hand_on, turn)

    def _hand_on(self, turn: _TotalTurn) -> None:
        if self.slow >= self._most_slow:
            self._hand_on_later(turn)
            return
        turn.is_slow = True
        self.slow += 1
        self._total.release()


@dataclass(slots=True)
class _TotalTurn:
    is_slow: bool = False  # and has given its turn to the next
    timer: asyncio.TimerHandle | None = None
