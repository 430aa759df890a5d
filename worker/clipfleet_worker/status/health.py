"""The health of a worker: whether its loops run, its chunks make progress, and it claims chunks.

A process that answers while a chunk hangs is not healthy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from clipfleet_worker.chunk.claims import Claims
from clipfleet_worker.chunk.endings import Endings
from clipfleet_worker.chunk.leases import LeaseKeeper
from clipfleet_worker.process.reconciler import Reachability
from clipfleet_worker.process.watchdog import Watchdog
from clipfleet_worker.status.server import Page


@dataclass(frozen=True, slots=True)
class Health:
    """What the health pages read. Nothing here blocks."""

    worker_id: str
    watchdog: Watchdog
    keeper: LeaseKeeper
    claims: Claims
    endings: Endings
    redis: Reachability
    has_started: Callable[[], bool]  # it has been able to claim chunks
    is_draining: Callable[[], bool]
    hints_refused: Callable[[], Mapping[str, int]]
    monotonic: Callable[[], float] = time.monotonic

    def problems(self) -> list[str]:
        """Why the process should be restarted, or is not up yet; empty if it is healthy."""
        found = [] if self.has_started() else ["starting"]
        overdue = [*self.watchdog.overdue(), *self.keeper.hanging()]
        return found + sorted({f"{phase.loop}: {phase.name} hangs" for phase in overdue})

    def obstacles(self) -> list[str]:
        """Why the worker claims no chunks now; empty if it is ready."""
        found = self.problems()
        if self.is_draining():
            found.append("draining")
        if not self.redis.is_ok:
            found.append("Redis is away")
        return found

    def report(self) -> dict[str, Any]:
        """The full report, for JSON. Ages are in seconds."""
        now = self.monotonic()
        return {
            "worker_id": self.worker_id,
            "problems": self.problems(),
            "draining": self.is_draining(),
            "seconds_since_progress": round(now - self.keeper.progress.last, 1),
            "chunks_held": len(self.claims.held()),
            "chunks_completed": self.endings.completed,
            "redis": {"ok": self.redis.is_ok, "for_seconds": round(self.redis.for_seconds, 1)},
            "hints_refused": dict(self.hints_refused()),
            "phases": [
                {
                    "loop": phase.loop,
                    "phase": phase.name,
                    "seconds": round(now - phase.since, 1),
                    "limit_seconds": phase.limit_seconds,
                }
                for phase in self.watchdog.phases()
            ],
        }


def health_pages(health: Health) -> dict[str, Callable[[], Page]]:
    """Make the pages `/healthz` (503: restart the process) and `/readyz` (503: it claims no chunks)."""

    def healthz() -> Page:
        return _json(health.report(), not health.problems())

    def readyz() -> Page:
        obstacles = health.obstacles()
        return _json({"ready": not obstacles, "obstacles": obstacles}, not obstacles)

    return {"/healthz": healthz, "/readyz": readyz}


def _json(value: object, is_good: bool) -> Page:
    status = HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE
    return Page(status, json.dumps(value, indent=1).encode() + b"\n")
