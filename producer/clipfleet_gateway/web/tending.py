"""Tends batches and jobs in the background: every gateway looks at all, so a killed one is replaced."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web
from prometheus_client import Gauge

from clipfleet.errors import ClipfleetError
from clipfleet.ledger.locks import LockLostError
from clipfleet_gateway.services import Services

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 2.0
_LONGEST_SECONDS = 30.0  # between looks at one that does not change;
_GROWTH = 1.5  # of the time between them, so that an end is noticed in time for how long it took
_SWEEP_SECONDS = 600.0  # between looks for what has expired; it is not found in any case
AT_A_TIME = 8  # of one kind that one gateway advances,
OF_A_KEY = 4  # and of one key: the long ones of one leave room for those of others
_SAID_SECONDS = 60.0  # the same trouble is logged again after so long


class _StoppedError(Exception):
    """The gateway ends."""


class Tended(Protocol):
    """Batches, or jobs."""

    def open(self) -> list[tuple[str, str]]:
        """Owners and ids of those that have not ended, and maybe of some that just have."""

    def advance(self, owner: str, name: str, alive: Callable[[], None], /) -> bool:
        """Take one as far as it can go now. `alive` is called now and then, and raises to stop.

        Returns:
            Whether that was any further, or may be soon.
        """


@dataclass(frozen=True, slots=True)
class _Pause:
    """Between looks at one."""

    seconds: float
    until: float


class Tending:
    """Advances what is open, and one at once if it is asked for.

    What has changed is looked at again after two seconds, what has not after up to thirty.

    Args:
        services: of the gateway.
        tended: batches or jobs.
        kind: what one of them is called in the log.
        count: of those that are open.
        sweep: called now and then.
    """

    def __init__(
        self,
        services: Services,
        tended: Tended,
        kind: str,
        count: Gauge,
        sweep: Callable[[], object] | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = services
        self._tended = tended
        self._kind = kind
        self._count = count
        self._sweep = sweep
        self._monotonic = monotonic
        self._threads = ThreadPoolExecutor(AT_A_TIME, kind)
        self._ends = threading.Event()
        self._waiting: dict[str, OrderedDict[str, None]] = {}  # names that wait for their turn, by owner
        self._busy: Counter[str] = Counter()  # looks under way, by owner
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pauses: dict[str, _Pause] = {}
        self._again: set[str] = set()  # to be looked at once more after the present look
        self._said: dict[str, float] = {}

    async def during(self, _: web.Application) -> AsyncIterator[None]:
        """For `cleanup_ctx` of an application: tend while it runs."""
        looking = asyncio.create_task(self._look())
        yield
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        self._ends.set()
        await self.idle()
        self._threads.shutdown()

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while tasks := [task for task in self._tasks.values() if not task.done()]:
            await asyncio.wait(tasks)

    def soon(self, owner: str, name: str) -> None:
        """Advance one before the others of its owner, or once more if that is under way."""
        if name in self._tasks:
            self._again.add(name)
            return
        waiting = self._waiting.setdefault(owner, OrderedDict())
        waiting[name] = None
        waiting.move_to_end(name, last=False)
        self._begin(owner)

    async def look(self) -> None:
        """Find what is open, and advance what is due."""
        found = await self._services.call(self._tended.open)
        self._count.set(len(found))
        names = {name for _, name in found}
        self._pauses = {name: pause for name, pause in self._pauses.items() if name in names}
        now = self._monotonic()
        for owner, name in found:
            pause = self._pauses.get(name)
            if name not in self._tasks and (pause is None or pause.until <= now):
                self._waiting.setdefault(owner, OrderedDict()).setdefault(name)
                self._begin(owner)

    def _begin(self, owner: str) -> None:
        """Advance those that wait, as many as an owner may have at a time."""
        waiting = self._waiting[owner]
        while waiting and self._busy[owner] < OF_A_KEY and not self._ends.is_set():
            name, _ = waiting.popitem(last=False)
            self._busy[owner] += 1
            self._tasks[name] = asyncio.create_task(self._tend(owner, name))

    async def _look(self) -> None:
        """A boundary of the program: the next look may do better."""
        swept = 0.0
        while True:
            try:
                await self.look()
                if self._sweep is not None and self._monotonic() >= swept + _SWEEP_SECONDS:
                    swept = self._monotonic()  # also if it fails, as one over a damaged record does
                    await self._services.call(self._sweep)
            except ClipfleetError as error:
                self._say(f"no {self._kind} can be looked at: {error}")
            except Exception:
                _LOG.exception("no %s could be looked at", self._kind)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _tend(self, owner: str, name: str) -> None:
        """Advance one in a thread. A boundary of the program: none keeps the others waiting."""
        loop = asyncio.get_running_loop()
        has_changed = False
        try:
            has_changed = await loop.run_in_executor(
                self._threads, self._tended.advance, owner, name, self._go_on
            )
        except (_StoppedError, LockLostError):
            pass
        except ClipfleetError as error:
            self._say(f"{self._kind} {name} waits: {error}")
        except Exception:
            _LOG.exception("%s %s could not be advanced", self._kind, name)
        finally:
            self._tasks.pop(name, None)
            self._busy[owner] -= 1
        self._pause(name, has_changed=has_changed)
        if name in self._again:
            self._again.discard(name)
            self.soon(owner, name)
        self._begin(owner)

    def _pause(self, name: str, *, has_changed: bool) -> None:
        before = self._pauses.get(name)
        seconds = _LOOK_SECONDS
        if before is not None and not has_changed:
            seconds = min(_LONGEST_SECONDS, before.seconds * _GROWTH)
        self._pauses[name] = _Pause(seconds, self._monotonic() + seconds)

    def _go_on(self) -> None:
        if self._ends.is_set():
            raise _StoppedError

    def _say(self, trouble: str) -> None:
        now = self._monotonic()
        if now >= self._said.get(trouble, 0.0) + _SAID_SECONDS:
            self._said = {text: at for text, at in self._said.items() if now < at + _SAID_SECONDS}
            self._said[trouble] = now
            _LOG.warning("%s", trouble)
