"""Hints to workers that there is work, published by a thread: no request waits for the broker."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from clipfleet.hints import MAX_HINTS

_LOG = logging.getLogger(__name__)
_LAST_SECONDS = 1.0  # for which `close` waits for a broker that does not answer


class WorkHints:
    """Publishes what is wanted in the meantime at once: of a hint only the number counts. Thread-safe."""

    def __init__(self, publish: Callable[[int], object]) -> None:
        """`publish` publishes so many hints, as `Hints.publish_work`."""
        self._publish = publish
        self._changed = threading.Condition()
        self._wanted = 0
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def want(self, count: int) -> None:
        """Publish so many hints soon, but never more than a large job has. Returns at once."""
        with self._changed:
            self._wanted = min(self._wanted + count, MAX_HINTS)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hints", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread; a broker that does not answer may keep it a little longer."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        while count := self._next():
            try:
                self._publish(count)
            except Exception:  # a boundary of the program: the next hints may do better, and workers poll
                _LOG.exception("hints could not be published")

    def _next(self) -> int:
        """How many hints are wanted, once some are; 0 at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._is_closed)
            count, self._wanted = 0 if self._is_closed else self._wanted, 0
            return count
