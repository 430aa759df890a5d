"""Limits requests at a time, per host and in all; the best lane goes first."""

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


def report_waits_to(note_wait: Callable[[float], None]) -> None:
    """Call this with the seconds of each wait for a turn, in this task and those it starts from now on."""
    _note_wait.set(note_wait)


class HostTurns:
    """Belongs to one event loop, except for `share`.

    Args:
        per_host: requests to one host at a time, of all workers together.
        total: requests to all hosts at a time, of this worker. Slow ones do not count, up to as many again:
            a few hundred dead hosts must not delay the others.
        slow_seconds: age from which a request is slow.
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
        """Divide a host's requests among so many workers; each keeps at least one.

        From any thread. Requests under way continue; waiting ones follow the new limit once one ends.
        """
        share = max(1, self._of_all_workers // max(1, workers))
        if share != self.per_host:
            log.info(
                "%d workers share the requests to a host: this one makes %d of %d at a time",
                workers,
                share,
                self._of_all_workers,
                extra={"action": "hosts_shared"},
            )
        self.per_host = share

    @asynccontextmanager
    async def at(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn at a host, and hold it during the context."""
        turns = self._hosts.get(host)
        if turns is None:
            turns = self._hosts[host] = LaneTurns(lambda: self.per_host)
        now = asyncio.get_running_loop().time
        came = now()
        try:
            try:
                await turns.take()
            finally:  # also if it was cancelled
                _note_wait.get()(now() - came)
            try:
                # The host's turn first: a slow host then delays only its own images.
                async with self._total_turn():
                    yield
            finally:
                turns.release()
        finally:
            # Idle; but a cancelled task may get here late, when others use the host again.
            if turns.is_idle and self._hosts.get(host) is turns:
                del self._hosts[host]

    @asynccontextmanager
    async def _total_turn(self) -> AsyncIterator[None]:
        """One of the turns at all hosts, passed on when this request turns out to be slow."""
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
    is_slow: bool = False  # and has passed its turn on
    timer: asyncio.TimerHandle | None = None
