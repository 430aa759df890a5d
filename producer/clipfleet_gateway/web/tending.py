"""Tends batches and jobs in the background: every gateway looks at all, so a killed one is replaced."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from aiohttp import web

from clipfleet.errors import ClipfleetError
from clipfleet.ledger.locks import LockLostError
from clipfleet_gateway.services import Services

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 2.0
_SWEEP_SECONDS = 60.0  # between looks for files that have expired
_AT_A_TIME = 4  # of one kind that one gateway advances
_SAID_SECONDS = 60.0  # the same trouble is logged again after so long


class _StoppedError(Exception):
    """The gateway ends."""


class Tended(Protocol):
    """Batches, or jobs."""

    def open(self) -> list[tuple[str, str]]:
        """Owners and ids of those that have not ended, and maybe of some that just have."""

    def advance(self, owner: str, name: str, alive: Callable[[], None], /) -> None:
        """Take one as far as it can go now. `alive` is called now and then, and raises to stop."""


class Tending:
    """Advances what is open every two seconds, and one at once if it is asked for.

    Args:
        services: of the gateway.
        tended: batches or jobs.
        kind: what one of them is called in the log.
        sweep: called once in a minute.
        report: called at each look with how many are open.
    """

    def __init__(
        self,
        services: Services,
        tended: Tended,
        kind: str,
        sweep: Callable[[], object] | None = None,
        report: Callable[[int], object] | None = None,
    ) -> None:
        self._services = services
        self._tended = tended
        self._kind = kind
        self._sweep = sweep
        self._report = report
        self._threads = ThreadPoolExecutor(_AT_A_TIME, kind)
        self._ends = threading.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
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
        for task in [*self._tasks.values()]:
            await task
        self._threads.shutdown()

    def soon(self, owner: str, name: str) -> None:
        """Advance one now, or once more if that is under way."""
        if name in self._tasks:
            self._again.add(name)
        elif not self._ends.is_set():
            self._tasks[name] = asyncio.create_task(self._tend(owner, name))

    async def _look(self) -> None:
        """A boundary of the program: the next look may do better."""
        swept = 0.0
        while True:
            try:
                found = await self._services.call(self._tended.open)
                if self._report is not None:
                    self._report(len(found))
                for owner, name in found:
                    self.soon(owner, name)
                if self._sweep is not None and time.monotonic() >= swept + _SWEEP_SECONDS:
                    await self._services.call(self._sweep)
                    swept = time.monotonic()
            except ClipfleetError as error:
                self._say(f"no {self._kind} can be looked at: {error}")
            except Exception:
                _LOG.exception("no %s could be looked at", self._kind)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _tend(self, owner: str, name: str) -> None:
        """Advance one in a thread. A boundary of the program: none keeps the others waiting."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._tended.advance, owner, name, self._go_on)
        except (_StoppedError, LockLostError):
            pass
        except ClipfleetError as error:
            self._say(f"{self._kind} {name} waits: {error}")
        except Exception:
            _LOG.exception("%s %s could not be advanced", self._kind, name)
        finally:
            self._tasks.pop(name, None)
        if name in self._again:
            self._again.discard(name)
            self.soon(owner, name)

    def _go_on(self) -> None:
        if self._ends.is_set():
            raise _StoppedError

    def _say(self, trouble: str) -> None:
        now = time.monotonic()
        if now >= self._said.get(trouble, 0.0) + _SAID_SECONDS:
            self._said = {text: at for text, at in self._said.items() if now < at + _SAID_SECONDS}
            self._said[trouble] = now
            _LOG.warning("%s", trouble)
