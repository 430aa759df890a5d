"""What a shell offers when Tab is pressed: the newest jobs. It must answer at once, or with nothing."""

from __future__ import annotations

from pydantic import ValidationError
from redis.exceptions import RedisError

from clipfleet import keys
from clipfleet.errors import UsageError
from clipfleet.redis_connection import connect
from clipfleet.settings import Settings

_NEWEST_JOBS = 50
_PATIENCE_SECONDS = 0.5


def job_ids(incomplete: str) -> list[str]:
    """Ids of the newest jobs that begin like this, newest first; none where Redis is away or slow."""
    try:
        with connect(Settings().require_redis_url(), retries=0, patience_seconds=_PATIENCE_SECONDS) as client:
            newest = client.zrange(keys.JOBS, 0, _NEWEST_JOBS - 1, desc=True)
    except (ValidationError, UsageError, RedisError, OSError):
        return []  # the command itself says what is wrong
    return [job_id for job_id in map(str, newest) if job_id.startswith(incomplete)]
