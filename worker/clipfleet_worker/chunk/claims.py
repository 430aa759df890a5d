"""Claims chunks from the ledger while there is room for them; `endings.py` records how they end."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from clipfleet.contract.jobs import Lane
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import Claim, Ledger
from clipfleet_worker.chunk.endings import ShunnedJobs
from clipfleet_worker.chunk.held_chunk import HeldChunk
from clipfleet_worker.chunk.held_lease import lease_clock
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.models.cache import Models

# While the room that is left is kept for the lane `high`. A hint that comes then is followed at once, but
# there may be no slot for it to come to.
_LOOK_FOR_HIGH_SECONDS = 0.5


class Claims:
    """One claim at a time per process, so that the bounds are checked against what is really open."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        open_items: OpenItems,
        models: Models,
        shunned_jobs: ShunnedJobs,
        lease_seconds: float,
        slots: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._open_items = open_items
        self._models = models
        self._shunned_jobs = shunned_jobs
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._unanswered: str | None = None  # token of a claim that may have been granted
        self._slots = slots
        self._monotonic = monotonic
        self._slots_in_use = 0
        self._held: list[HeldChunk] = []
        self._takers = 0  # slots whose hint waits for room or for the answer to its claim
        self._hints = 0  # that have come so far
        self._last_full = monotonic()  # when a slot became free after all were in use
        self._slots_lock = threading.Lock()

    def drain(self) -> None:
        """Claim nothing more."""
        self._open_items.close()

    def take(self) -> HeldChunk | None:
        """Claim a chunk; None if none is due. Blocks while the worker is full.

        `done_with` must follow for every chunk.
        """
        with self._slots_lock:
            self._slots_in_use += 1
            self._takers += 1
            self._hints += 1
        self._open_items.wake()
        held = None
        try:
            with self._lock:
                held = self._take()
        finally:
            with self._slots_lock:
                self._takers -= 1
            if held is None:
                self._free_slot()
        return held

    def _take(self) -> HeldChunk | None:
        while lanes := self._open_items.wait_for_room():
            hints = self._hints
            claim = self._claim(lanes)
            if claim is not None:
                held = HeldChunk(claim, self._monotonic(), from_reserve=len(lanes) < len(Lane))
                self._open_items.add(claim.chunk_size, from_reserve=held.from_reserve)
                with self._slots_lock:
                    self._held.append(held)
                return held
            if len(lanes) == len(Lane):
                return None
            # There may be work in the other lanes: were the hint to die here, its chain would be broken.
            self._open_items.wait_for_room_in_all_lanes(
                _LOOK_FOR_HIGH_SECONDS, unless=partial(self._has_hint_since, hints)
            )
        return None

    def _has_hint_since(self, hints: int) -> bool:
        return self._hints != hints

    def _claim(self, lanes: Sequence[Lane]) -> Claim | None:
        """Ask the ledger, with the token of the last question if that got no answer.

        With another token a chunk that was granted then would have no owner, and count as lost.
        """
        token, self._unanswered = self._unanswered or uuid.uuid4().hex, None
        asked_at = lease_clock()
        try:
            claim = self._ledger.claim(
                token, self._lease_seconds, lanes, self._models.served(), self._shunned_jobs.current()
            )
        except RedisUnavailableError:
            self._unanswered = token
            raise
        return claim and replace(claim, asked_at=asked_at)

    def done_with(self, held: HeldChunk) -> None:
        """Make room for the next claim."""
        with self._slots_lock:
            self._held.remove(held)
        self._open_items.remove(held.claim.chunk_size, from_reserve=held.from_reserve)
        self._free_slot()

    def held(self) -> list[HeldChunk]:
        """Chunks between `take` and `done_with`, oldest first."""
        with self._slots_lock:
            return list(self._held)

    @property
    def oldest_held_seconds(self) -> float:
        """Age of the oldest held chunk; 0 if there is none."""
        held = self.held()
        return self._monotonic() - held[0].taken_at if held else 0.0

    def _free_slot(self) -> None:
        with self._slots_lock:
            if self._slots_in_use >= self._slots:
                self._last_full = self._monotonic()
            self._slots_in_use -= 1

    def has_idle_slot(self, seconds: float) -> bool:
        """Whether a slot has been free for so long, with room for a chunk: no hint is on its way to it."""
        with self._slots_lock:
            if self._takers or self._slots_in_use >= self._slots:
                return False
            was_free = self._monotonic() - self._last_full >= seconds
        return was_free and self._open_items.has_room_in_all_lanes
