"""Asks the models on a GPU for their canaries again: it may go wrong long after they have proven themselves.

Models share the device's memory, so all are asked after one was loaded or unloaded, and once a minute. Where
one is off, all of them run plainly from then on; where that does not help, no row may be made of what the
device gives, and the process ends.
"""

from __future__ import annotations

import logging
import threading
from functools import partial

from clipfleet.contract import Lane
from clipfleet_worker.backends.certificate import LEAST_COSINE
from clipfleet_worker.batcher import Batcher, BatcherStopped
from clipfleet_worker.bisecting import FORWARD_ERRORS
from clipfleet_worker.device import is_lost
from clipfleet_worker.model import LoadedModel
from clipfleet_worker.models import Models

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 60.0


class DeviceBroken(Exception):  # noqa: N818 - the batcher's thread ends with it, and so does the process
    """The plain pass gives other features than when the model was loaded."""


class CanaryWatch:
    """A thread of its own; the canaries go through the batcher, behind all other work."""

    def __init__(self, models: Models, batcher: Batcher) -> None:
        self._models = models
        self._batcher = batcher
        self._wanted = threading.Event()
        self._stopping = False
        self.mismatches = 0
        self._thread = threading.Thread(target=self._run, name="canaries", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, once the batcher has stopped."""
        self._stopping = True
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def look_soon(self) -> None:
        """A model was loaded or unloaded."""
        self._wanted.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wanted.wait(_PERIOD_SECONDS)
            self._wanted.clear()
            self.look()

    def look(self) -> None:
        """Ask all models; returns once they have answered, or the batcher has stopped."""
        for model in self._models.in_memory():
            try:
                self._batcher.call(partial(self._ask, model), Lane.BULK)
            except BatcherStopped:
                return
            except FORWARD_ERRORS as error:
                if is_lost(error):
                    raise  # the thread's end is that of the process
                context = {"action": "canaries_failed", "model": model.name}
                log.warning("the canaries of %s failed: %s", model.name, error, extra=context)

    def _ask(self, model: LoadedModel) -> None:
        least = LEAST_COSINE[model.precision]
        worst = model.worst_cosine()
        if worst >= least:
            return
        self.mismatches += 1
        what = f"the device gives wrong features of {model.name}: worst cosine {worst:.5f}, not {least}"
        log.critical(
            "%s; all models run plainly from now on, rows of the last %.0f s may be wrong",
            what,
            _PERIOD_SECONDS,
            extra={"action": "canaries_off", "model": model.name},
        )
        for each in self._models.in_memory():
            each.trust_only_plain(what)
        if not model.worst_cosine() >= least:
            raise DeviceBroken(f"{what}, nor does the plain pass help")
