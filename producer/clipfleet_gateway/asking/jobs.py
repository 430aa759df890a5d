"""The jobs of requests, which live in Redis until a minute after their end. All calls block."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clipfleet.contract.jobs import (
    REDIS_OUTPUT,
    DecodeRoute,
    ErrorCode,
    Exif,
    ItemError,
    Job,
    JobState,
    Lane,
    SourceDescription,
    Task,
)
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.model_names import normalise_model
from clipfleet.contract.parts import INLINE_COLUMN, item_schema
from clipfleet.contract.policies import DecisionLog
from clipfleet.contract.versions import lowest_version
from clipfleet.errors import usage_errors
from clipfleet.hints import Hints, make_app
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger, Quota, Retention
from clipfleet.ledger.row_store import RedisStore
from clipfleet.settings import Settings
from clipfleet.submit.small_jobs import chunk_size_of
from clipfleet_gateway.asking.work_hints import WorkHints
from clipfleet_gateway.inputs.asked import Item
from clipfleet_gateway.policies.logs import DecisionLogs
from clipfleet_gateway.policies.stored import StoredPolicy

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

FULL_INPUTS = 64  # of a job that requests share: one chunk
_TEXT = "text"  # column of the texts
_RETENTION = Retention(job_seconds=60, result_seconds=60)


@dataclass(frozen=True, slots=True)
class Kind:
    """What the inputs of one job have in common."""

    task: Task
    model: str
    label_set: LabelSet | None = None
    label_set_hash: str = ""
    host: str = ""  # of URLs: a slow one delays no others
    policy: StoredPolicy | None = None  # of a moderation job,
    owner: str = ""  # which belongs to one key

    def __hash__(self) -> int:
        return hash((self.task, self.model, self.label_set_hash, self.host, self.policy, self.owner))


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one input."""

    vector: np.ndarray | None = None  # (d,) float16, of a task that embeds
    labels: Sequence[str] = ()
    scores: Sequence[float] = ()
    error: ItemError | None = None
    decided: Mapping[str, Any] | None = None  # all columns, of a moderation job


def new_job_id() -> str:
    """An id of a job that no list shows, see `UNNAMED_JOB_ID_PATTERN`."""
    return f"door-{secrets.token_hex(8)}"


class RequestJobs:
    """Submits jobs and reads their rows. Thread-safe. Raises `RedisUnavailableError` if Redis is away."""

    def __init__(self, settings: Settings, logs: DecisionLogs) -> None:
        self._opened = ExitStack()
        self._logs = logs
        url, broker_url = settings.require_redis_url(), settings.require_broker_url()
        self.ledger = Ledger(url)
        self._opened.callback(self.ledger.close)
        self._store = RedisStore(url)
        self._opened.callback(self._store.close)
        hints = Hints(make_app(broker_url), broker_url)
        self._opened.callback(hints.close)
        self._hints = WorkHints(hints.publish_work)
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
            OutputUnavailableError: the log of decisions cannot be begun.
        """
        from clipfleet.submit.staging import staged_bytes

        log = None if kind.policy is None else self._logs.log_of(kind.owner)
        job = _job(job_id, kind, len(items), log)
        if kind.policy is not None:
            self._logs.begin(job, kind.policy, kind.owner)
        staged = staged_bytes(_rows(kind, items), job)
        self._store.submit_whole(job, staged, _RETENTION, self._quota)
        self._hints.want(staged.chunks)

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


def _job(job_id: str, kind: Kind, count: int, log: DecisionLog | None) -> Job:
    label_sets: tuple[LabelSet, ...] = () if kind.label_set is None else (kind.label_set,)
    policy = None if kind.policy is None else kind.policy.policy
    by_policy: dict[str, Any] = {}
    if kind.policy is not None and policy is not None:
        label_sets = policy.label_sets
        by_policy = {
            "heads": policy.heads, "policy": kind.policy.of_job, "decisions": log,
            "decode": DecodeRoute(policy.decode), "exif": Exif(policy.exif),
        }  # fmt: skip
    text_column = _TEXT if kind.task is Task.EMBED_TEXT else None
    with usage_errors():
        return Job(
            schema_version=lowest_version(
                output_is_redis=True, applies_exif=by_policy.get("exif") is Exif.APPLY,
                has_newer_label_sets=any(one.needs_version_3 for one in label_sets),
                has_heads_or_vectors=bool(by_policy.get("heads")), has_a_policy=policy is not None,
            ),
            job_id=job_id,
            task=kind.task,
            model=normalise_model(kind.model),
            label_sets=label_sets,
            text_column=text_column,
            top_k=max((len(one.labels) for one in label_sets), default=1),
            lane=Lane.HIGH,
            chunk_size=count if count <= FULL_INPUTS else chunk_size_of(count),
            source=SourceDescription(
                kind="request", uri="gateway:", extra_columns=(text_column,) if text_column else ()
            ),
            output=REDIS_OUTPUT,
            created_at=datetime.now(UTC),
            **by_policy,
        )  # fmt: skip


def _rows(kind: Kind, items: Sequence[Item]) -> pa.Table:
    """Items as a source yields them. Nobody sees their ids."""
    import pyarrow as pa

    count = len(items)
    extra: dict[str, pa.Array] = {}
    uris = [""] * count
    if kind.task is Task.EMBED_TEXT:
        extra[_TEXT] = pa.array(items, pa.string())
    else:
        images = [item for item in items if not isinstance(item, str)]
        uris = [item.get("url", "") for item in images]
        if any("bytes" in item for item in images):
            extra[INLINE_COLUMN] = pa.array([item.get("bytes") for item in images], pa.binary())
    return pa.Table.from_arrays(
        [
            pa.array(range(count), pa.int64()),
            pa.array(map(str, range(count)), pa.string()),
            pa.array(uris, pa.string()),
            *extra.values(),
        ],
        schema=item_schema([pa.field(name, values.type) for name, values in extra.items()]),
    )


def _row(row: Mapping[str, Any], vector: np.ndarray | None) -> Row:
    if row.get("decision"):
        return Row(decided=row)
    if row.get("error_code"):
        return Row(error=ItemError(ErrorCode(row["error_code"]), row.get("error_detail") or ""))
    return Row(vector, row.get("labels") or (), row.get("scores") or ())
