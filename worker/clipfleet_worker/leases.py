"""Keeping claims alive: every third of a lease one call renews all that are held and tells what was lost."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger import Lease, Ledger
from clipfleet_worker.failures import ChunkInterrupted

log = logging.getLogger(__name__)

_TRIES_PER_LEASE = 30  # while Redis is away: a lease may have little left when it comes back


class HeldLease:
    """A lease in our hands; renewed only while its stage is inside its limit, so a hang lets it expire."""

    def __init__(self, lease: Lease, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.lease = lease
        self._monotonic = monotonic
        self._stage = "claimed"
        self._stage_ends = monotonic() + 60
        self._lock = threading.Lock()
        self._interruption: ChunkInterrupted | None = None
        self._callback: Callable[[BaseException], None] | None = None

    def enter(self, stage: str, limit_seconds: float) -> None:
        """Work on a stage begins that ends within the limit, or hangs.

        Raises:
            ChunkInterrupted: the chunk was taken from us meanwhile.
        """
        self._stage, self._stage_ends = stage, self._monotonic() + limit_seconds
        if self._interruption is not None:
            raise self._interruption

    def is_done(self) -> None:
        """The part is in place: the ledger is told, however long Redis may be away, and whoever leaves."""
        self._stage, self._stage_ends = "complete", math.inf

    @property
    def is_within_limit(self) -> bool:
        """Whether the present stage may still be running as it should."""
        return self._monotonic() < self._stage_ends

    @property
    def stage(self) -> str:
        """Name of the present stage."""
        return self._stage

    def on_interrupt(self, callback: Callable[[BaseException], None]) -> None:
        """Have a waiting stage told; at once if it has happened already."""
        with self._lock:
            self._callback = callback
            interruption = self._interruption
        if interruption is not None:
            callback(interruption)

    def interrupt(self, reason: str) -> None:
        """The chunk is not ours any more, or the worker leaves. The first call counts."""
        with self._lock:
            if self._interruption is not None:
                return
            self._interruption = ChunkInterrupted(reason)
            callback = self._callback
        if callback is not None:
            callback(self._interruption)


class LeaseKeeper:
    """Renews what is held. While Redis is away nothing is interrupted: the lease may still be ours."""

    def __init__(self, ledger: Ledger, lease_seconds: float) -> None:
        self._ledger = ledger
        self._lease_seconds = lease_seconds
        self._held: dict[str, HeldLease] = {}  # by token
        self._leaving: str | None = None  # why nothing is held on to any more
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is still held will expire."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def hold(self, lease: Lease) -> Iterator[HeldLease]:
        """Keep a lease alive for the time of the context."""
        held = HeldLease(lease)
        with self._lock:
            self._held[lease.token] = held
            leaving = self._leaving
        if leaving is not None:  # the answer to the claim came late
            held.interrupt(leaving)
        try:
            yield held
        finally:
            with self._lock:
                self._held.pop(lease.token, None)

    def interrupt_all(self, reason: str) -> None:
        """Have every held chunk given back, and every further one, for a worker that leaves."""
        with self._lock:
            self._leaving = reason
        for held in self._snapshot():
            held.interrupt(reason)

    def _snapshot(self) -> list[HeldLease]:
        with self._lock:
            return list(self._held.values())

    def _run(self) -> None:
        pause_seconds = self._lease_seconds / 3
        while not self._stop.wait(pause_seconds):
            was_told = self.renew_all()
            pause_seconds = self._lease_seconds / (3 if was_told else _TRIES_PER_LEASE)

    def renew_all(self) -> bool:
        """Renew once; called by the thread. False if the ledger could not be told."""
        held = []
        for lease in self._snapshot():
            if lease.is_within_limit:
                held.append(lease)
            else:
                log.error(
                    "stage %s of chunk %s hangs: its lease is left to expire",
                    lease.stage,
                    lease.lease.chunk,
                    extra={"action": "lease_abandoned", "job_id": lease.lease.job_id},
                )
        try:
            words = self._ledger.renew([lease.lease for lease in held], self._lease_seconds)
        except RedisUnavailableError as error:
            log.warning("leases not renewed: %s", error, extra={"action": "renew_failed"})
            return False
        for lease, word in zip(held, words, strict=True):
            if word in ("lost", "cancelled"):
                lease.interrupt(word)
        return True
