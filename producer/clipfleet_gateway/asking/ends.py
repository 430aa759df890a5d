"""Which jobs have ended: one thread reads the ledger's stream of ends, for all requests of a gateway."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import Ledger

_LOG = logging.getLogger(__name__)
_BLOCK_SECONDS = 0.5  # for so long `close` may wait
_PAUSE_SECONDS = 0.5  # after a failure


class Ends:
    """Futures of jobs that are under way, done as the jobs end. For one event loop.

    An end may be missed, as Redis may have lost it: whoever waits for long looks at the state of the job.
    """

    def __init__(self, ledger: Ledger, call: Callable[..., asyncio.Future[str]]) -> None:
        self._ledger = ledger
        self._call = call
        self._expected: dict[str, asyncio.Future[None]] = {}
        self._starting: asyncio.Future[str] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    async def begin(self) -> None:
        """Read the stream from now on. Raises `RedisUnavailableError`; the next call tries again."""
        while self._thread is None:
            if self._starting is None:
                self._starting = asyncio.ensure_future(self._call(self._ledger.last_end))
            starting = self._starting
            try:
                last = await asyncio.shield(starting)
            except Exception:
                if self._starting is starting:
                    self._starting = None
                raise
            if self._thread is None:
                loop = asyncio.get_running_loop()
                self._thread = threading.Thread(
                    target=self._read, args=(last, loop), name="ends", daemon=True
                )
                self._thread.start()

    def expect(self, job_id: str) -> asyncio.Future[None]:
        """A future that is done once this job has ended; call it before the submit."""
        future = asyncio.get_running_loop().create_future()
        self._expected[job_id] = future
        return future

    def forget(self, job_id: str) -> None:
        """Expect the end of a job no more, and end the wait for it."""
        future = self._expected.pop(job_id, None)
        if future is not None and not future.done():
            future.set_result(None)

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _read(self, last: str, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopping.is_set():
            try:
                last, ended = self._ledger.wait_for_ends(last, _BLOCK_SECONDS)
            except RedisUnavailableError as error:
                _LOG.warning("ends of jobs are not read: %s", error)
                self._stopping.wait(_PAUSE_SECONDS)
                continue
            except Exception:  # a boundary of the program: without this thread each request waits for a look
                _LOG.exception("ends of jobs could not be read")
                self._stopping.wait(_PAUSE_SECONDS)
                continue
            if ended and not self._stopping.is_set():
                try:
                    loop.call_soon_threadsafe(self._note, ended)
                except RuntimeError:  # the loop is closed, so nobody waits for this end
                    return

    def _note(self, ended: Sequence[str]) -> None:
        for job_id in ended:
            self.forget(job_id)
