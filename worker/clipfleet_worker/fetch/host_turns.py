"""Who may ask which host now: so many requests at a time per host and in all, first come, first served."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


class HostTurns:
    """Belongs to one event loop, but for `share`.

    Args:
        per_host: requests to one host at a time, of all workers together.
        total: requests to all hosts at a time, of this worker.
    """

    def __init__(self, per_host: int, total: int) -> None:
        self._of_all_workers = per_host
        self._per_host = per_host
        self._total = asyncio.Semaphore(total)
        self._hosts: dict[str, _Host] = {}

    @property
    def per_host(self) -> int:
        """Requests to one host at a time, as they are now."""
        return self._per_host

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
            async with self._total:
                yield
        finally:
            turns.active -= 1
            self._go_on(host, turns)

    async def _enter(self, host: str, turns: _Host) -> None:
        if turns.active < self._per_host and not turns.waiting:
            turns.active += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turns.waiting.append(turn)
        try:
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
class _Host:
    active: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)  # cancelled ones may be among them
