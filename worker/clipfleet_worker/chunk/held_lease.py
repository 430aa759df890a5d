"""One lease of this worker: which step its chunk is in, how long that may take, and whether it is still ours.

This machine's clock decides whether a lease is certainly ours. It counts from before the ledger was asked, so
a lease ends here before it ends there. `HeldLease.confirm` precedes every write that others can see.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from clipfleet.ledger.jobs import Lease, LeaseReport
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.process.watchdog import LOAD_LIMIT_SECONDS, Phase

T = TypeVar("T")

# Over its limit a step hangs, and its lease is not renewed.
READ_LIMIT_SECONDS = 120.0
# With the download; a chunk that waits longer is released. The watchdog limits the load itself.
WAIT_FOR_MODEL_SECONDS = 3600.0
_RELEASE_SECONDS = 60.0  # from the end of that wait to the release
LOAD_STEP_LIMIT_SECONDS = WAIT_FOR_MODEL_SECONDS + LOAD_LIMIT_SECONDS + _RELEASE_SECONDS
PROMPTS_LIMIT_SECONDS = 600.0  # for some hundred prompts, not a whole label set
ENCODE_LIMIT_SECONDS = LOAD_LIMIT_SECONDS  # without any item of the worker ending
QUEUED_LIMIT_SECONDS = 6 * 3600.0  # for a chunk behind many others on a slow device
PREPARE_WRITE_LIMIT_SECONDS = 300.0  # until `HeldLease.confirm`: the rows go into a scratch file

CLAIMED = "claimed"  # the step before the first one
_CLAIMED_LIMIT_SECONDS = 60.0
_HANG_SECONDS = 60.0  # from the limit of a step until the watchdog ends the process
_ASK_AGAIN_SECONDS = 1.0  # while Redis is away
_MOST_WORDS = 200  # characters in a report


def lease_clock() -> float:
    """Monotonic seconds that also count while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Progress:
    """When this worker last made progress: an item or a chunk ended, a step began."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.last = monotonic()  # seconds

    def note(self) -> None:
        """Record progress now."""
        self.last = self._monotonic()


class HeldLease:
    """A lease, renewed only while its step is within its limit, so that a hang lets it expire."""

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
        """Begin with the step `CLAIMED`.

        Args:
            lease: as the ledger granted it.
            monotonic: clock of the steps, in seconds.
            progress: of the worker.
            on_step: called with the name of each step as it begins, by the thread that enters it; quick.
            deadline: until when the lease is certainly ours, by `clock`.
            renew: renews this lease alone; False if Redis is away.
            write_limit_seconds: limit of a write.
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
        self._doing: Callable[[], str] | None = None
        self._settled = 0
        self._since = monotonic()
        self._limit_seconds = _CLAIMED_LIMIT_SECONDS
        self._longest_seconds: float | None = None
        self._step_seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._interruption: ChunkInterrupted | None = None
        self._callbacks: list[Callable[[BaseException], None]] = []

    def enter(
        self,
        step: str,
        limit_seconds: float,
        longest_seconds: float | None = None,
        doing: Callable[[], str] | None = None,
    ) -> None:
        """Begin a step that ends within its limit, or hangs.

        Args:
            step: its name.
            limit_seconds: how long it may take; `math.inf` where it waits for the world.
            longest_seconds: upper bound of a step that queues behind other chunks; its limit counts from the
                worker's last progress, on any chunk.
            doing: what is done in it now, in words for people; called by the lease keeper.

        Raises:
            ChunkInterrupted: the chunk is no longer ours, or the worker drains.
        """
        self._begin(step)
        self._doing = doing
        self._limit_seconds, self._longest_seconds = limit_seconds, longest_seconds
        self._progress.note()
        self._require_ours()
        self._on_step(step)

    def confirm(self) -> None:
        """Return only while the lease is certainly ours: precedes every write that others can see.

        A lease past its deadline (the process was frozen, Redis was away) is renewed first, however long that
        takes. Then the write limit begins.

        Raises:
            ChunkInterrupted: the chunk is no longer ours, or the worker drains.
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
        """Begin to record the part in the ledger: without a limit, and not interrupted by a drain."""
        self._begin("complete")
        self._doing = None
        self._limit_seconds, self._longest_seconds = math.inf, None
        self._on_step(self.step)

    def _begin(self, step: str) -> None:
        self._step_seconds = self.step_seconds
        self.step, self._since = step, self._monotonic()

    def note_settled(self, count: int) -> None:
        """Record that items of the chunk have ended; not from two threads at a time."""
        self._settled += count
        self._progress.note()

    @property
    def report(self) -> LeaseReport:
        """How far the chunk is."""
        doing = self._doing
        words = self.step if doing is None else doing()
        plain = words.encode("ascii", "replace").decode()
        return LeaseReport(self.lease, self._settled, plain[:_MOST_WORDS])

    @property
    def _ends(self) -> float:
        """When the present step is over its limit."""
        if self._longest_seconds is None:
            return self._since + self._limit_seconds
        moved = max(self._since, self._progress.last)
        return min(self._since + self._longest_seconds, moved + self._limit_seconds)

    @property
    def is_within_limit(self) -> bool:
        """Whether the present step does not hang."""
        return self._monotonic() < self._ends

    @property
    def step_seconds(self) -> dict[str, float]:
        """Seconds of each step so far."""
        present = self._step_seconds.get(self.step, 0.0) + self._monotonic() - self._since
        return {**self._step_seconds, self.step: present}

    @property
    def phase(self) -> Phase:
        """The present step as the watchdog sees it; its limit ends after the lease has expired."""
        ends = self._ends + _HANG_SECONDS
        limit_seconds = None if ends == math.inf else ends - self._since
        return Phase(
            f"chunk {self.lease.chunk} of job {self.lease.job_id}", self.step, self._since, limit_seconds
        )

    def result_of(self, future: Future[T], seconds: float | None = None) -> T:
        """Wait for another thread's result, such as a loaded model; its exception is raised here.

        Raises:
            ChunkInterrupted: the chunk is no longer ours, the worker drains, or the seconds are over; the
                other thread continues.
        """
        changed = threading.Event()
        future.add_done_callback(lambda _: changed.set())
        self.on_interrupt(lambda _: changed.set())
        changed.wait(seconds)
        if not future.done():
            raise self._interruption or ChunkInterrupted(f"step {self.step} takes more than {seconds:g} s")
        return future.result()

    def on_interrupt(self, callback: Callable[[BaseException], None]) -> None:
        """Call back when the chunk is interrupted; at once if it is already."""
        with self._lock:
            self._callbacks.append(callback)
            interruption = self._interruption
        if interruption is not None:
            callback(interruption)

    def forget_callbacks(self) -> None:
        """Break the reference cycle: callbacks hold the outcomes of a chunk, which often hold this lease."""
        with self._lock:
            self._callbacks.clear()

    def interrupt(self, reason: str) -> None:
        """Interrupt the chunk: it is no longer ours, or the worker drains. The first call counts."""
        with self._lock:
            if self._interruption is not None:
                return
            self._interruption = ChunkInterrupted(reason)
            callbacks = list(self._callbacks)
        self._interrupted.set()
        for callback in callbacks:
            callback(self._interruption)
