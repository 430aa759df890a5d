"""Ended jobs of which the user's own Celery task is to be told: noted by the ledger, sent by any worker."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

import redis

from clipfleet.lua_scripts import LuaScripts
from clipfleet.redis_connection import connect

_SCRIPTS = ("claim_announcement", "drop_announcement")
_NAMESPACE = uuid.UUID("8f2c1f5e-3c1e-4a57-9f0e-6b1f7f0f6a3d")


@dataclass(frozen=True, slots=True)
class Announcement:
    """The end of one generation of a job."""

    text: str  # as the ledger keeps it
    task: str  # name of the user's Celery task
    queue: str
    event: dict[str, Any]  # its only argument: job_id, generation, state, total, ok, failed, output, reason

    @property
    def task_id(self) -> str:
        """The same for every repetition, and another one for each generation of each job."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.event['job_id']}:{self.event['generation']}"))


class Announcements:
    """What is still to be sent. Calls raise `RedisUnavailableError` while Redis is away."""

    def __init__(self, url: str, *, client: redis.Redis | None = None) -> None:
        self._redis = client or connect(url)
        self._run = LuaScripts(self._redis, url, _SCRIPTS).run

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def claim(self, lease_seconds: float) -> Announcement | None:
        """One that is due; unless it is dropped within the lease, it is handed out again."""
        text = self._run("claim_announcement", int(lease_seconds * 1000))
        if not text:
            return None
        value = json.loads(text)
        return Announcement(text, value["task"], value["queue"], value["event"])

    def drop(self, announcement: Announcement) -> None:
        """It was sent. Idempotent."""
        self._run("drop_announcement", announcement.text)
