"""Keeping claims alive: every third of a lease one call renews all that are held and tells what was lost.

Whether a lease is certainly ours is judged by this machine's clock, from the moment before the ledger was
asked: so it ends here before it ends there. Nothing that others can see is written without
`HeldLease.confirm`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.answers import RenewAnswer
from clipfleet.ledger.jobs import Lease, Ledger
from clipfleet.settings import WRITE_LIMIT_SECONDS
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.process.loop import Loop
from clipfleet_worker.process.watchdog import Phase, Pulse

log = logging.getLogger(__name__)

_TRIES_PER_LEASE = 30  # while Redis is away: a lease may have little left when it comes back
T = TypeVar("T")
CLAIMED = "claimed"  # the step before the first one
_CLAIMED_LIMIT_SECONDS = 60.0  # before its first step
_HANG_SECONDS = 60.0  # after its limit a step has this long before the watchdog ends the process
_RENEW_LIMIT_SECONDS = 300.0  # a call to a Redis that is away or silent ends sooner
_LOOK_SECONDS = (
    1.0  # at whether a job was cancelled: its chunks are let go without waiting for the next renewal
)
_ASK_AGAIN_SECONDS = 1.0  # while Redis is away


def lease_clock() -> float:
    """Seconds that only go forward, also while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Progress:
    """When this worker last got on with its work: an item or a chunk ended, a step began."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.last = monotonic()  # seconds

    def note(self) -> None:
        """It gets on just now."""
        self.last = self._monotonic()


class HeldLease:
    """A lease in our hands; renewed only while its step is inside its limit, so a hang lets it expire."""

    def __init__(
        self,
        lease: Lease,
        monotonic: Callable[[], float] = time.monotonic,
        progress: Progress | None = None,
        on_step: Callable[[str], None] = lambda _: None,
        *,
        deadline: float = math.inf,
        renew: Callable[[HeldLease], bool] = lambda _: True,
        write_limit_seconds: float = math.inf,
        clock: Callable[[], float] = lease_clock,
    ) -> None:
        """The first step is that it was claimed.

        Args:
            lease: ours.
            monotonic: seconds that only go forward.
            progress: of the worker.
            on_step: called, quickly, with the name of each step that begins, by the thread that enters it.
            deadline: until when it is certainly ours, by `clock`.
            renew: asks the ledger for this lease alone; False if there was no answer.
            write_limit_seconds: a write that takes longer hangs.
            clock: see `lease_clock`.
        """
        self.lease = lease
        self.deadline = deadline
        self._renew = renew
        self._write_limit_seconds = write_limit_seconds
        self._clock = clock
        self._interrupted = threading.Event()
        self._on_step = on_step
        self._monotonic = monotonic
        self._progress = progress or Progress(monotonic)
        self.step = CLAIMED  # the present one
        self._since = monotonic()
        self._limit_seconds = _CLAIMED_LIMIT_SECONDS
        self._longest_seconds: float | None = None
        self._step_seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._interruption: ChunkInterrupted | None = None
        self._callbacks: list[Callable[[BaseException], None]] = []

    def enter(self, step: str, limit_seconds: float, longest_seconds: float | None = None) -> None:
        """Work on a step begins that ends within the limit, or hangs.

        Args:
            step: its name.
            limit_seconds: how long it may take; `math.inf` where it waits for the world.
            longest_seconds: given where the step queues behind other chunks. Then the limit counts from the
                worker's last progress, whoever's it was, and this one from the beginning.

        Raises:
            ChunkInterrupted: the chunk was taken from us meanwhile.
        """
        self._begin(step)
        self._limit_seconds, self._longest_seconds = limit_seconds, longest_seconds
        self._progress.note()
        self._require_ours()
        self._on_step(step)

    def confirm(self) -> None:
        """Return only while the lease is certainly ours; immediately before a write that others can see.

        A lease whose deadline is over here (the process was frozen, Redis was away) is asked for at the
        ledger, however long that takes. The write that follows may take the write limit.

        Raises:
            ChunkInterrupted: the chunk was taken from us meanwhile, or the worker leaves.
        """
        self._require_ours()
        while self._clock() >= self.deadline:
            self._limit_seconds, self._longest_seconds = math.inf, None
            if not self._renew(self):
                self._interrupted.wait(_ASK_AGAIN_SECONDS)
            self._require_ours()
        self._begin(self.step)
        self._limit_seconds, self._longest_seconds = self._write_limit_seconds, None

    def _require_ours(self) -> None:
        if self._interruption is not None:
            raise self._interruption

    def enter_complete(self) -> None:
        """The part is in place: the ledger is told, however long Redis may be away, and whoever leaves."""
        self._begin("complete")
        self._limit_seconds, self._longest_seconds = math.inf, None
        self._on_step(self.step)

    def _begin(self, step: str) -> None:
        self._step_seconds = self.step_seconds
        self.step, self._since = step, self._monotonic()

    def note_progress(self) -> None:
        """Some of the chunk's items have ended."""
        self._progress.note()

    @property
    def _ends(self) -> float:
        """When the present step has taken too long."""
        if self._longest_seconds is None:
            return self._since + self._limit_seconds
        moved = max(self._since, self._progress.last)
        return min(self._since + self._longest_seconds, moved + self._limit_seconds)

    @property
    def is_within_limit(self) -> bool:
        """Whether the present step may still be running as it should."""
        return self._monotonic() < self._ends

    @property
    def step_seconds(self) -> dict[str, float]:
        """How long each step has taken so far."""
        present = self._step_seconds.get(self.step, 0.0) + self._monotonic() - self._since
        return {**self._step_seconds, self.step: present}

    @property
    def phase(self) -> Phase:
        """The present step as the watchdog sees it: by its end the lease has run out."""
        ends = self._ends + _HANG_SECONDS
        limit_seconds = None if ends == math.inf else ends - self._since
        return Phase(
            f"chunk {self.lease.chunk} of job {self.lease.job_id}", self.step, self._since, limit_seconds
        )

    def result_of(self, future: Future[T], seconds: float | None = None) -> T:
        """Wait for something that others do, such as a model that loads; what it raises is raised here.

        Raises:
            ChunkInterrupted: the chunk was taken from us meanwhile, or so many seconds were not enough; the
                others go on.
        """
        changed = threading.Event()
        future.add_done_callback(lambda _: changed.set())
        self.on_interrupt(lambda _: changed.set())
        changed.wait(seconds)
        if not future.done():
            raise self._interruption or ChunkInterrupted(f"step {self.step} takes more than {seconds:g} s")
        return future.result()

    def on_interrupt(self, callback: Callable[[BaseException], None]) -> None:
        """Have a waiting step told; at once if it has happened already."""
        with self._lock:
            self._callbacks.append(callback)
            interruption = self._interruption
        if interruption is not None:
            callback(interruption)

    def forget_callbacks(self) -> None:
        """Nobody waits any more. What they hold, all outcomes of a chunk, often holds this lease, too."""
        with self._lock:
            self._callbacks.clear()

    def interrupt(self, reason: str) -> None:
        """The chunk is not ours any more, or the worker leaves. The first call counts."""
        with self._lock:
            if self._interruption is not None:
                return
            self._interruption = ChunkInterrupted(reason)
            callbacks = list(self._callbacks)
        self._interrupted.set()
        for callback in callbacks:
            callback(self._interruption)


class LeaseKeeper(Loop):
    """Renews what is held. While Redis is away nothing is interrupted: the lease may still be ours."""

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
        self._running_time = running_time  # for the limits of steps: a pause is no hang
        self._write_limit_seconds = write_limit_seconds
        self._clock = clock  # for the leases: they end while we are paused
        self._last_early_end: str | None = None
        self._has_just_changed = False
        self._pulse = pulse or Pulse("lease keeper")
        self._ledger = ledger
        self._lease_seconds = lease_seconds
        self._held: list[HeldLease] = []
        self._leaving: str | None = None  # why nothing is held on to any more
        self._lock = threading.Lock()
        self._pause_seconds, self._renewed = lease_seconds / 3, 0.0
        super().__init__("lease-keeper", min(self._pause_seconds, _LOOK_SECONDS))

    @contextmanager
    def hold(
        self, lease: Lease, on_step: Callable[[str], None] = lambda _: None, *, asked_at: float = 0.0
    ) -> Iterator[HeldLease]:
        """Keep a lease alive for the time of the context.

        Args:
            lease: was just claimed.
            on_step: see `HeldLease`.
            asked_at: by `lease_clock`, before the ledger was asked for it.
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
            leaving = self._leaving
        if leaving is not None:  # the answer to the claim came late
            held.interrupt(leaving)
        try:
            yield held
        finally:
            self.progress.note()
            with self._lock:
                self._held.remove(held)
            held.forget_callbacks()

    def interrupt_all(self, reason: str) -> None:
        """Have every held chunk given back, and every further one, for a worker that leaves."""
        with self._lock:
            self._leaving = reason
        for held in self._snapshot():
            held.interrupt(reason)

    def phases(self) -> list[Phase]:
        """The steps of all that is held."""
        return [held.phase for held in self._snapshot()]

    def hanging(self) -> list[Phase]:
        """The steps that have taken too long, whose leases are left to expire."""
        return [held.phase for held in self._snapshot() if not held.is_within_limit]

    def _snapshot(self) -> list[HeldLease]:
        with self._lock:
            return list(self._held)

    def _run(self) -> None:
        self._renewed = self._clock()
        super()._run()

    def turn(self) -> None:
        """Renew, if it is time or some job has ended early."""
        with self._pulse.during("renew", _RENEW_LIMIT_SECONDS):
            if self._clock() - self._renewed < self._pause_seconds and not self._has_ended_early():
                return
            self._renewed = self._clock()
            parts = 3 if self.renew_all() else _TRIES_PER_LEASE
            self._pause_seconds = self._lease_seconds / parts
            self._period_seconds = min(self._pause_seconds, _LOOK_SECONDS)

    def _has_ended_early(self) -> bool:
        """Whether some job was cancelled, or failed, since the last look but one.

        A chunk that was claimed right before the end may not be held yet at the first look after it.
        """
        try:
            before, self._last_early_end = self._last_early_end, self._ledger.last_early_end()
        except RedisUnavailableError:
            return False
        had_changed, self._has_just_changed = self._has_just_changed, before != self._last_early_end
        return had_changed or self._has_just_changed

    def renew_all(self) -> bool:
        """Renew once; called by the thread. False if the ledger could not be told."""
        held = []
        for lease in self._snapshot():
            if lease.is_within_limit:
                held.append(lease)
            else:
                log.error(
                    "step %s of chunk %s hangs: its lease is left to expire",
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
