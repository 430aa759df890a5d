"""The jobs of requests, which live in Redis until a minute after their end. All calls block."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipfleet.contract.jobs import ErrorCode, ItemError, JobState, Lane, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.hints import Hints, make_app
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger, Quota, Retention
from clipfleet.ledger.row_store import RedisStore
from clipfleet.settings import Settings
from clipfleet.submit.options import JobOptions, make_job
from clipfleet.submit.small_jobs import chunk_size_of
from clipfleet_gateway.inputs.asked import Item

if TYPE_CHECKING:
    import numpy as np

FULL_INPUTS = 64  # of a job that requests share: one chunk
_RETENTION = Retention(job_seconds=60, result_seconds=60)


@dataclass(frozen=True, slots=True)
class Kind:
    """What the inputs of one job have in common."""

    task: Task
    model: str
    label_set: LabelSet | None = None
    label_set_hash: str = ""
    host: str = ""  # of URLs: a slow one delays no others

    def __hash__(self) -> int:
        return hash((self.task, self.model, self.label_set_hash, self.host))


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one input."""

    vector: np.ndarray | None = None  # (d,) float16, of a task that embeds
    labels: Sequence[str] = ()
    scores: Sequence[float] = ()
    error: ItemError | None = None


def new_job_id() -> str:
    """An id of a job that no list shows, see `UNNAMED_JOB_ID_PATTERN`."""
    return f"door-{secrets.token_hex(8)}"


class RequestJobs:
    """Submits jobs and reads their rows. Thread-safe. Raises `RedisUnavailableError` if Redis is away."""

    def __init__(self, settings: Settings) -> None:
        self._opened = ExitStack()
        url, broker_url = settings.require_redis_url(), settings.require_broker_url()
        self.ledger = Ledger(url)
        self._opened.callback(self.ledger.close)
        self._store = RedisStore(url)
        self._opened.callback(self._store.close)
        self._hints = Hints(make_app(broker_url), broker_url)
        self._opened.callback(self._hints.close)
        self._quota = Quota(settings.quota_items, settings.quota_bytes)

    def close(self) -> None:
        """Close the connections."""
        self._opened.close()

    def submit(self, job_id: str, kind: Kind, items: Sequence[Item]) -> None:
        """Add a job over some items.

        Raises:
            UsageError: the model's name is wrong.
            QuotaExceededError: too much waits in Redis.
        """
        import pyarrow as pa

        from clipfleet.sources import ReadOptions, source_of
        from clipfleet.sources.texts import text_source_of
        from clipfleet.submit.staging import staged_bytes

        size = len(items) if len(items) <= FULL_INPUTS else chunk_size_of(len(items))
        options = JobOptions(model=kind.model, lane=Lane.HIGH, job_id=job_id, chunk_size=size)
        source = (
            text_source_of(items, text_column=None, id_column=None)
            if kind.task is Task.EMBED_TEXT
            else source_of(items, ReadOptions())
        )
        sets = [kind.label_set] if kind.label_set is not None else []
        top_k = max(1, *(len(one.labels) for one in sets), 1)
        job = make_job(source, options, kind.task, sets, top_k=top_k)
        rows = pa.Table.from_batches(source.batches())
        staged = staged_bytes(rows, job)
        self._store.submit_whole(job, staged, _RETENTION, self._quota)
        self._hints.publish_work(min(staged.chunks, FULL_INPUTS))

    def rows(self, job_id: str, count: int) -> list[Row]:
        """The rows of an ended job of so many items; fewer if some are missing."""
        import numpy as np

        indexes = range(count)
        texts = self._store.values(job_id, keys.ROWS, indexes)
        vectors = self._store.values(job_id, keys.VECTORS, indexes)
        return [
            _row(json.loads(text), None if vector is None else np.frombuffer(vector, "<f2"))
            for text, vector in zip(texts, vectors, strict=True)
            if text is not None
        ]

    def state(self, job_id: str) -> JobState:
        """The state of a job. Raises `JobNotFoundError`."""
        return self.ledger.status(job_id).state

    def cancel(self, job_id: str) -> None:
        """End a job that nobody waits for any more. Raises `JobNotFoundError`."""
        self.ledger.cancel(job_id, ttl_seconds=_RETENTION.job_seconds)


def _row(row: Mapping[str, Any], vector: np.ndarray | None) -> Row:
    if row.get("error_code"):
        return Row(error=ItemError(ErrorCode(row["error_code"]), row.get("error_detail") or ""))
    return Row(vector, row.get("labels") or (), row.get("scores") or ())
