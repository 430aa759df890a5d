"""Ended jobs whose outputs may hold files of killed workers: noted by the ledger, swept by any worker."""

from __future__ import annotations

from dataclasses import dataclass

import redis

from clipfleet.lua_scripts import LuaScripts
from clipfleet.redis_connection import connect

_SCRIPTS = ("claim_sweep", "drop_sweep")


@dataclass(frozen=True, slots=True)
class Sweep:
    """An output to be swept."""

    job_id: str
    job_fingerprint: str
    job_created_ms: int  # with id and fingerprint, what tells a job from all that were before it
    left: int  # sweeps that are due, this one included


class Sweeps:
    """What is still to be swept. Calls raise `RedisUnavailableError` while Redis is away."""

    def __init__(self, url: str, *, client: redis.Redis | None = None) -> None:
        self._redis = client or connect(url)
        self._run = LuaScripts(self._redis, url, _SCRIPTS).run

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def claim(self, lease_seconds: float) -> Sweep | None:
        """One that is due; unless it is dropped within the lease, it is handed out again."""
        answer = self._run("claim_sweep", int(lease_seconds * 1000))
        if not answer:
            return None
        job_id, fingerprint, created_ms, left = answer
        return Sweep(job_id, fingerprint, int(created_ms), int(left))

    def drop(self, sweep: Sweep) -> None:
        """It was done. Idempotent."""
        self._run("drop_sweep", sweep.job_id, sweep.left)
