"""Which models workers serve, and which they ever served: that tells a mistyped one from one that is away.

served/HASH   name of a model that a worker has served
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from hashlib import sha256

from clipfleet.ledger.values import WorkerFacts
from clipfleet.outputs import Output
from clipfleet_gateway.errors import model_not_found

_KEPT_SECONDS = 2.0  # an answer of the ledger
PATIENCE_SECONDS = 300.0  # for workers that are being started, of a model that none has served yet


class KnownModels:
    """Thread-safe. Raises `WorldError` while Redis or the place is unavailable.

    Args:
        place: of the gateway.
        find: workers that are up.
        monotonic: a clock.
    """

    def __init__(
        self,
        place: Output,
        find: Callable[[], Sequence[WorkerFacts]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = place
        self._find = find
        self._monotonic = monotonic
        self._looking = threading.Lock()
        self._workers: Sequence[WorkerFacts] = ()
        self._fresh_until = 0.0
        self._kept: set[str] = set()  # names that are in the place

    def served(self) -> frozenset[str]:
        """Models that workers serve now; they are kept in mind."""
        return frozenset(name for worker in self._up() for name in worker.models)

    def has_served(self, model: str) -> bool:
        """Whether a worker has ever served this model, as far as a gateway of this place has seen."""
        return self._place.read(_kept(model)) is not None

    def require(self, model: str, waited_seconds: float) -> None:
        """Raise if a job waits in vain.

        Args:
            model: of the job, as the ledger names it.
            waited_seconds: since the job was submitted, with none of it done.

        Raises:
            ApiError: no worker serves it, nor ever did, although a worker and the job are there for a while.
        """
        served = self.served()
        up_seconds = max((worker.up_seconds or 0.0 for worker in self._up()), default=0.0)
        if model in served or min(waited_seconds, up_seconds) < PATIENCE_SECONDS:
            return
        if served and not self.has_served(model):
            raise model_not_found(model, served)

    def _up(self) -> Sequence[WorkerFacts]:
        with self._looking:
            if self._monotonic() >= self._fresh_until:
                self._workers = self._find()
                for name in {name for worker in self._workers for name in worker.models} - self._kept:
                    self._place.create(_kept(name), name.encode())
                    self._kept.add(name)
                self._fresh_until = self._monotonic() + _KEPT_SECONDS
            return self._workers


def _kept(model: str) -> str:
    return f"served/{sha256(model.encode()).hexdigest()}"
