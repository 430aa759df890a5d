"""Tends open batches in the background: every gateway looks at all of them, and a killed one is replaced."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from aiohttp import web

from clipfleet.errors import ClipfleetError
from clipfleet.ledger.locks import LockLostError
from clipfleet_gateway.services import Services

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 2.0
_SWEEP_SECONDS = 60.0  # between looks for files that have expired
_AT_A_TIME = 4  # batches that one gateway advances
_SAID_SECONDS = 60.0  # the same trouble is logged again after so long


class _StoppedError(Exception):
    """The gateway ends."""


class Tending:
    """Advances batches: all open ones every two seconds, and one at once if it is asked for."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._batches = services.batches
        self._threads = ThreadPoolExecutor(_AT_A_TIME, "batches")
        self._ends = threading.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()  # to be looked at once more after the present look
        self._said: dict[str, float] = {}

    async def during(self, _: web.Application) -> AsyncIterator[None]:
        """For `cleanup_ctx` of an application: tend batches while it runs."""
        looking = asyncio.create_task(self._look())
        yield
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        self._ends.set()
        for task in [*self._tasks.values()]:
            await task
        self._threads.shutdown()

    def soon(self, owner: str, batch_id: str) -> None:
        """Advance a batch now, or once more if that is under way."""
        if batch_id in self._tasks:
            self._again.add(batch_id)
        elif not self._ends.is_set():
            self._tasks[batch_id] = asyncio.create_task(self._tend(owner, batch_id))

    async def _look(self) -> None:
        """A boundary of the program: the next look may do better."""
        swept = 0.0
        while True:
            try:
                found = await self._services.call(self._open)
                self._services.meters.open_batches.set(len(found))
                for owner, batch_id in found:
                    self.soon(owner, batch_id)
                if time.monotonic() >= swept + _SWEEP_SECONDS:
                    await self._services.call(self._sweep)
                    swept = time.monotonic()
            except ClipfleetError as error:
                self._say(f"batches cannot be looked at: {error}")
            except Exception:
                _LOG.exception("batches could not be looked at")
            await asyncio.sleep(_LOOK_SECONDS)

    def _open(self) -> list[tuple[str, str]]:
        store = self._batches.store
        owners = ((store.owner_of(batch_id), batch_id) for batch_id in store.open_ids())
        return [(owner, batch_id) for owner, batch_id in owners if owner is not None]

    def _sweep(self) -> None:
        self._services.files.remove_expired()
        for key in self._services.keys.all():
            self._services.files.remove_strays(key.name)

    async def _tend(self, owner: str, batch_id: str) -> None:
        """Advance a batch in a thread. A boundary of the program: no batch keeps the others waiting."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._batches.advance, owner, batch_id, self._go_on)
        except (_StoppedError, LockLostError):
            pass
        except ClipfleetError as error:
            self._say(f"batch {batch_id} waits: {error}")
        except Exception:
            _LOG.exception("batch %s could not be advanced", batch_id)
        finally:
            self._tasks.pop(batch_id, None)
        if batch_id in self._again:
            self._again.discard(batch_id)
            self.soon(owner, batch_id)

    def _go_on(self) -> None:
        if self._ends.is_set():
            raise _StoppedError

    def _say(self, trouble: str) -> None:
        now = time.monotonic()
        if now >= self._said.get(trouble, 0.0) + _SAID_SECONDS:
            self._said = {text: at for text, at in self._said.items() if now < at + _SAID_SECONDS}
            self._said[trouble] = now
            _LOG.warning("%s", trouble)
