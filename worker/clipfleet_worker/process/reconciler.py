"""The loops of a worker beside its chunks: one says that it lives and mends, one looks for work by itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import Backlog, Ledger, WorkerFacts
from clipfleet_worker.process.loop import Loop
from clipfleet_worker.process.watchdog import Pulse

log = logging.getLogger(__name__)

_CALL_LIMIT_SECONDS = 300.0  # a call to a Redis that is away or silent ends sooner
_STOP_SECONDS = 5.0
_SILENCE_SECONDS = 15.0  # of a call to Redis, before it is held to be away


class Reachability:
    """Whether Redis answers, as far as the reconciler has seen."""

    def __init__(self, patience_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Nothing was asked yet.

        Args:
            patience_seconds: an answer that is older says nothing: the next call may be hanging.
            monotonic: seconds that only go forward.
        """
        self._patience_seconds = patience_seconds
        self._monotonic = monotonic
        self._answered: float | None = None
        self._changed = monotonic()
        self._was_ok = False

    def note(self, is_ok: bool) -> None:
        """Redis has answered, or has not."""
        now = self._monotonic()
        if is_ok != self._was_ok:
            # A call that failed may have hung for long: Redis was away from its last answer on.
            self._was_ok, self._changed = is_ok, now if is_ok else self._answered or now
        if is_ok:
            self._answered = now

    @property
    def is_ok(self) -> bool:
        """Whether it answered lately, and to the last call."""
        return (
            self._was_ok
            and self._answered is not None
            and self._monotonic() - self._answered <= self._patience_seconds
        )

    @property
    def for_seconds(self) -> float:
        """How long it has answered, or has not."""
        since = self._changed
        if self._was_ok and not self.is_ok:
            since = self._answered or since
        return self._monotonic() - since


class Reconciler(Loop):
    """Every few seconds: tells that this worker lives, and takes back what others lost.

    Any number of them may run at once, in one cluster: each mends what it finds, once.
    """

    def __init__(
        self,
        ledger: Ledger,
        facts: Callable[[], WorkerFacts],
        *,
        period_seconds: float,
        lease_seconds: float,
        on_workers: Callable[[int], object],
        on_lost: Callable[[int], object],
        counts_backlog: bool = False,
        pulse: Pulse,
    ) -> None:
        """Nothing runs yet.

        Args:
            ledger: what is mended.
            facts: what this worker is and serves now.
            period_seconds: how often it is told and mended.
            lease_seconds: of all leases.
            on_workers: called with the number of live workers, this one among them.
            on_lost: called with the number of chunks that were taken back, if there were any.
            counts_backlog: whether `backlog` is wanted.
            pulse: of this loop.
        """
        self._lease_seconds = lease_seconds
        self._on_workers = on_workers
        self._on_lost = on_lost
        self._counts_backlog = counts_backlog
        self.backlog: Backlog | None = None  # None: nobody wants it, or Redis did not answer
        self.expired_leases = 0  # of whomever, that this worker has taken back
        self.redis = Reachability(period_seconds + _SILENCE_SECONDS)
        self._ledger = ledger
        self._facts = facts
        self._pulse = pulse
        super().__init__("reconciler", period_seconds, at_once=True, stop_seconds=_STOP_SECONDS)

    def run_once(self) -> None:
        """Tell, and mend."""
        with self._pulse.during("reconcile", _CALL_LIMIT_SECONDS):
            self.heartbeat()
            self.reconcile()

    def heartbeat(self) -> None:
        """Tell what this worker is and serves."""
        try:
            self._ledger.heartbeat(self._facts())
        except RedisUnavailableError as error:
            log.warning("no heartbeat: %s", error, extra={"action": "heartbeat_failed"})

    def reconcile(self) -> None:
        """Take back expired leases, share with the other workers what is to be shared."""
        try:
            lost, _ = self._ledger.reconcile(
                lease_seconds=self._lease_seconds, period_seconds=self._period_seconds
            )
            self._on_workers(len(self._ledger.workers()))
            self.backlog = self._ledger.backlog() if self._counts_backlog else None
        except RedisUnavailableError as error:
            self.redis.note(False)
            self.backlog = None  # an old one would look like work that stands still
            log.warning("not reconciled: %s", error, extra={"action": "reconcile_failed"})
        else:
            self.redis.note(True)
            if lost:
                self.expired_leases += lost
                log.warning("%d leases had expired", lost, extra={"action": "leases_expired"})
                self._on_lost(lost)  # the hints of their owner died with it
