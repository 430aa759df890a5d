"""Keeps leases alive: every third of a lease one call renews all of them and returns which are lost.

Another call, each second in which something has changed, reports how far the chunks are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.answers import RenewAnswer
from clipfleet.ledger.jobs import FINISH, Lease, LeaseReport, Ledger
from clipfleet.settings import WRITE_LIMIT_SECONDS
from clipfleet_worker.chunk.held_lease import HeldLease, Progress, lease_clock
from clipfleet_worker.process.loop import Loop
from clipfleet_worker.process.watchdog import Phase, Pulse

log = logging.getLogger(__name__)

_TRIES_PER_LEASE = 30  # while Redis is away: a lease may have little left when it comes back
_RENEW_LIMIT_SECONDS = 300.0  # a call to a Redis that is away or silent ends sooner
_LOOK_SECONDS = 1.0  # between two polls for cancelled jobs: their chunks need not wait for a renewal


class LeaseKeeper(Loop):
    """Renews all held leases. While Redis is away none is interrupted: it may still be ours."""

    def __init__(
        self,
        ledger: Ledger,
        lease_seconds: float,
        write_limit_seconds: float = WRITE_LIMIT_SECONDS,
        *,
        pulse: Pulse | None = None,
        clock: Callable[[], float] = lease_clock,
        running_time: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress = Progress(running_time)
        self._running_time = running_time  # for the limits of steps: a pause is not a hang
        self._write_limit_seconds = write_limit_seconds
        self._clock = clock  # for the leases: they expire while we are paused
        self._last_early_end: str | None = None
        self._has_just_changed = False
        self._pulse = pulse or Pulse("lease keeper")
        self._ledger = ledger
        self._lease_seconds = lease_seconds
        self._held: list[HeldLease] = []
        self._reported: dict[Lease, LeaseReport] = {}
        self._drain_reason: str | None = None  # why no lease is held any more
        self._lock = threading.Lock()
        self._pause_seconds, self._renewed = lease_seconds / 3, clock()
        super().__init__("lease-keeper", min(self._pause_seconds, _LOOK_SECONDS))

    @contextmanager
    def hold(
        self, lease: Lease, on_step: Callable[[str], None] = lambda _: None, *, asked_at: float = 0.0
    ) -> Iterator[HeldLease]:
        """Keep a lease alive for the time of the context.

        Args:
            lease: as the ledger granted it.
            on_step: see `HeldLease`.
            asked_at: when the claim was sent, by `lease_clock`.
        """
        held = HeldLease(
            lease,
            self._running_time,
            progress=self.progress,
            on_step=on_step,
            deadline=asked_at + self._lease_seconds,
            renew=lambda one: self._renew([one]),
            write_limit_seconds=self._write_limit_seconds,
            clock=self._clock,
        )
        with self._lock:
            self._held.append(held)
            drain_reason = self._drain_reason
        if drain_reason is not None:  # the answer to the claim came late
            held.interrupt(drain_reason)
        try:
            yield held
        finally:
            self.progress.note()
            with self._lock:
                self._held.remove(held)
            held.forget_callbacks()

    def interrupt_all(self, reason: str) -> None:
        """Drain: interrupt every held lease, and every later one, so that its thread releases the chunk."""
        with self._lock:
            self._drain_reason = reason
        for held in self._snapshot():
            held.interrupt(reason)

    def phases(self) -> list[Phase]:
        """The step of every held lease."""
        return [held.phase for held in self._snapshot()]

    def hanging(self) -> list[Phase]:
        """The steps over their limits, whose leases are not renewed."""
        return [held.phase for held in self._snapshot() if not held.is_within_limit]

    def _snapshot(self) -> list[HeldLease]:
        with self._lock:
            return list(self._held)

    def run_once(self) -> None:
        """Report, and renew if a renewal is due or a job has ended early."""
        with self._pulse.during("renew", _RENEW_LIMIT_SECONDS):
            self.report()
            if self._clock() - self._renewed < self._pause_seconds and not self._has_ended_early():
                return
            self._renewed = self._clock()
            parts = 3 if self.renew_all() else _TRIES_PER_LEASE
            self._pause_seconds = self._lease_seconds / parts
            self._period_seconds = min(self._pause_seconds, _LOOK_SECONDS)

    def _has_ended_early(self) -> bool:
        """Whether a job was cancelled, or failed, since the last poll but one.

        A chunk claimed right before that end may not be held yet at the first poll after it.
        """
        try:
            before, self._last_early_end = self._last_early_end, self._ledger.last_early_end()
        except RedisUnavailableError:
            return False
        had_changed, self._has_just_changed = self._has_just_changed, before != self._last_early_end
        return had_changed or self._has_just_changed

    def report(self) -> None:
        """Report how far the held chunks are, as far as that has changed; not at all while Redis is away."""
        chunks = (held for held in self._snapshot() if held.lease.chunk != FINISH)
        reports = {held.lease: held.report for held in chunks}
        changed = [report for lease, report in reports.items() if self._reported.get(lease) != report]
        ended = [lease for lease in self._reported if lease not in reports]
        if not changed and not ended:
            return
        try:
            self._ledger.report(changed, ended)
        except RedisUnavailableError:
            return  # it is only shown; the renewal logs the trouble
        self._reported = reports

    def renew_all(self) -> bool:
        """Renew once. False if Redis is away."""
        held = []
        for lease in self._snapshot():
            if lease.is_within_limit:
                held.append(lease)
            else:
                log.error(
                    "step %s of chunk %s hangs: its lease is not renewed",
                    lease.step,
                    lease.lease.chunk,
                    extra={"action": "lease_abandoned", "job_id": lease.lease.job_id},
                )
        return self._renew(held)

    def _renew(self, held: Sequence[HeldLease]) -> bool:
        asked_at = self._clock()
        try:
            words = self._ledger.renew([lease.lease for lease in held], self._lease_seconds)
        except RedisUnavailableError as error:
            log.warning("leases not renewed: %s", error, extra={"action": "renew_failed"})
            return False
        for lease, word in zip(held, words, strict=True):
            if word in (RenewAnswer.LOST, RenewAnswer.CANCELLED):
                lease.interrupt(word)
            else:
                lease.deadline = asked_at + self._lease_seconds  # at least
        return True
