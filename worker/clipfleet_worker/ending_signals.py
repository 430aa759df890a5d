"""The signals that end a worker: each of them drains it, and so does the same one again.

Celery would take a second SIGINT, and a first SIGQUIT, for a wish to cancel what its threads are doing. That
cannot be done: it would hang, or leave with chunks that nobody was told of.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from celery import Celery, signals
from celery.apps.worker import Worker as CeleryWorker
from celery.worker import state

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_EXIT_CODE = 0


class DrainingWorker(CeleryWorker):  # type: ignore[misc]  # Celery has no types
    """Celery's worker with handlers of ours. What is ignored stays so: nohup, a script's background job."""

    app: Celery

    def install_platform_tweaks(self, worker: Any) -> None:
        """Called before it starts, in the main thread."""
        ignored = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_IGN]
        super().install_platform_tweaks(worker)
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN if number in ignored else self._leave)

    def _leave(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        signals.worker_shutting_down.send(sender=self.hostname, sig=name, how="Warm", exitcode=_EXIT_CODE)
        state.should_stop = _EXIT_CODE
