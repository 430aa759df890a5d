"""Sends the heartbeat of this worker, and reconciles the expired leases of all workers."""

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
_SILENCE_SECONDS = 15.0  # of a call to Redis, after which it counts as away


class Reachability:
    """Whether Redis answers, as the reconciler last saw it."""

    def __init__(self, patience_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Start as away.

        Args:
            patience_seconds: an older answer does not count: the next call may hang.
            monotonic: clock, in seconds.
        """
        self._patience_seconds = patience_seconds
        self._monotonic = monotonic
        self._answered: float | None = None
        self._changed = monotonic()
        self._was_ok = False

    def note(self, is_ok: bool) -> None:
        """Record whether Redis has answered."""
        now = self._monotonic()
        if is_ok != self._was_ok:
            # A failed call may have hung: Redis has been away since its last answer.
            self._was_ok, self._changed = is_ok, now if is_ok else self._answered or now
        if is_ok:
            self._answered = now

    @property
    def is_ok(self) -> bool:
        """Whether it has answered the last call, and recently."""
        return (
            self._was_ok
            and self._answered is not None
            and self._monotonic() - self._answered <= self._patience_seconds
        )

    @property
    def for_seconds(self) -> float:
        """Seconds that it has been ok, or not."""
        since = self._changed
        if self._was_ok and not self.is_ok:
            since = self._answered or since
        return self._monotonic() - since


class Reconciler(Loop):
    """Sends a heartbeat and reconciles every few seconds.

    Several workers may reconcile at once: each expired lease is reconciled once.
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
        """Prepare the thread; it does not run yet.

        Args:
            ledger: to reconcile.
            facts: of this worker, for the heartbeat.
            period_seconds: between two rounds.
            lease_seconds: of all leases.
            on_workers: called with the number of live workers, including this one.
            on_lost: called with the number of expired leases, if there are any.
            counts_backlog: whether to read `backlog`.
            pulse: of this loop.
        """
        self._lease_seconds = lease_seconds
        self._on_workers = on_workers
        self._on_lost = on_lost
        self._counts_backlog = counts_backlog
        self.backlog: Backlog | None = None  # None: not read, or Redis is away
        self.expired_leases = 0  # of any worker, reconciled by this one
        self.redis = Reachability(period_seconds + _SILENCE_SECONDS)
        self._ledger = ledger
        self._facts = facts
        self._pulse = pulse
        super().__init__("reconciler", period_seconds, at_once=True, stop_seconds=_STOP_SECONDS)

    def run_once(self) -> None:
        """Send a heartbeat and reconcile."""
        with self._pulse.during("reconcile", _CALL_LIMIT_SECONDS):
            self.heartbeat()
            self.reconcile()

    def heartbeat(self) -> None:
        """Record this worker's facts in the ledger."""
        try:
            self._ledger.heartbeat(self._facts())
        except RedisUnavailableError as error:
            log.warning("heartbeat not recorded: %s", error, extra={"action": "heartbeat_failed"})

    def reconcile(self) -> None:
        """Reconcile expired leases, and report the number of workers."""
        try:
            lost, _ = self._ledger.reconcile(
                lease_seconds=self._lease_seconds, period_seconds=self._period_seconds
            )
            self._on_workers(len(self._ledger.workers()))
            self.backlog = self._ledger.backlog() if self._counts_backlog else None
        except RedisUnavailableError as error:
            self.redis.note(False)
            self.backlog = None  # an old one would look like stalled work
            log.warning("not reconciled: %s", error, extra={"action": "reconcile_failed"})
        else:
            self.redis.note(True)
            if lost:
                self.expired_leases += lost
                log.warning("%d leases had expired", lost, extra={"action": "leases_expired"})
                self._on_lost(lost)  # the hints of its owner are lost, too
