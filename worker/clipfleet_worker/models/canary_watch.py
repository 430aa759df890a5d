"""Repeats the canary check of models on a GPU: features may become wrong long after loading.

Models share the device's memory, so all are checked after one was loaded or unloaded, and once a minute while
the device is mostly idle. If one fails, all models run plainly from then on; if that does not help, the
process ends, since no row may be made of wrong features.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from clipfleet.contract.jobs import Lane
from clipfleet_worker.encode.backends.certificate import LEAST_COSINE
from clipfleet_worker.encode.batcher import Batcher, BatcherStopped
from clipfleet_worker.encode.bisecting import FORWARD_ERRORS
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.process.device import is_lost
from clipfleet_worker.process.loop import Loop

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 60.0
_TURN_SECONDS = 1.0


class DeviceBroken(Exception):  # noqa: N818 - a verdict: it ends the batcher's thread, and so the process
    """The plain pass gives other features than when the model was loaded."""


class CanaryWatch(Loop):
    """Sends the canaries through the batcher, behind all other work. Stop it after the batcher."""

    def __init__(
        self, models: Models, batcher: Batcher, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__("canaries", _TURN_SECONDS, at_once=True)
        self._models = models
        self._batcher = batcher
        self._monotonic = monotonic
        self._is_requested = False
        self._busy = batcher.busy.read()  # at the previous turn
        self._right_at = monotonic()  # when a check of all models began that passed
        self._due_at = self._right_at + _PERIOD_SECONDS
        self.mismatches = 0

    def request(self) -> None:
        """Check soon: a model was loaded or unloaded."""
        self._is_requested = True

    def run_once(self) -> None:
        """Check on request, or when due and the device was idle for more than half of the last second."""
        now, busy = self._monotonic(), self._batcher.busy.read()
        used, self._busy = busy.since(self._busy), busy
        if self._is_requested or (now >= self._due_at and used.seconds < used.capacity_seconds / 2):
            self._is_requested, self._due_at = False, now + _PERIOD_SECONDS
            self.check()

    def check(self) -> None:
        """Check all models; returns once that is done, or the batcher has stopped."""
        began = self._monotonic()
        for model in self._models.in_memory():
            try:
                self._batcher.call(partial(self._check, model), Lane.BULK)
            except BatcherStopped:
                return
            except FORWARD_ERRORS as error:
                if is_lost(error):
                    raise  # this ends the thread, and so the process
                context = {"action": "canaries_failed", "model": model.name}
                log.warning("the canaries of %s failed: %s", model.name, error, extra=context)
                began = self._right_at
        self._right_at = began

    def _check(self, model: LoadedModel) -> None:
        least = LEAST_COSINE[model.precision]
        worst = model.worst_cosine()
        if worst >= least:
            return
        self.mismatches += 1
        what = f"the device gives wrong features of {model.name}: worst cosine {worst:.5f}, not {least}"
        log.critical(
            "%s; all models run plainly from now on, rows of the last %.0f s may be wrong",
            what,
            self._monotonic() - self._right_at,
            extra={"action": "canaries_off", "model": model.name},
        )
        for each in self._models.in_memory():
            each.trust_only_plain(what)
        if not model.worst_cosine() >= least:
            raise DeviceBroken(f"{what}, with the plain pass as well")
