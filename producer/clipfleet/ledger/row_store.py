"""Rows, vectors and IDs of a `redis://` job, as bytes; `RedisOutput` has its objects.

`Ledger.complete` makes rows visible; nothing here does.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import redis

from clipfleet.contract.jobs import Job, read_job
from clipfleet.contract.parts import UNKNOWN_DIMENSION, PartIdentity, part_schema
from clipfleet.ledger import keys
from clipfleet.ledger.answers import SubmitAnswer, WriteAnswer
from clipfleet.ledger.arguments import brief_argument
from clipfleet.ledger.refusals import conflict, quota_exceeded
from clipfleet.ledger.scripts import LuaScripts
from clipfleet.ledger.values import Quota, Retention
from clipfleet.redis.connection import connect, damage_of, redis_errors
from clipfleet.redis.patience import Patience, patient

_SCRIPTS = ("put_object", "write_rows", "submit_whole")
# The columns of every job are not stored with each: few jobs have others after them, or among them.
_COMMON = pa.schema([field for field in part_schema(UNKNOWN_DIMENSION) if field.name != "embedding"])
_KEEP_PENDING_SECONDS = 3600  # of rows whose worker died; a living worker completes them within seconds


@dataclass(frozen=True, slots=True)
class WholeItems:
    """All items of a small job, as a staged file."""

    name: str  # of the object
    data: bytes
    chunks: int
    items: int


@dataclass(frozen=True, slots=True)
class RowSlice:
    """At most 500 rows of a chunk: a call to Redis should be short."""

    schema: pa.Schema  # of the rows, without `embedding`; the same for the whole job
    rows: Mapping[int, str]  # item_index -> JSON
    vectors: Mapping[int, bytes]  # item_index -> little-endian float16, if it has one
    ids: Mapping[str, int]  # item_id -> its lowest item_index in the chunk


class RedisStore:
    """The store. All calls raise `RedisUnavailableError` while Redis is unavailable or its memory is full."""

    def __init__(self, url: str, *, client: redis.Redis | None = None) -> None:
        self._url = url
        self.client = client or connect(url, decode=False)
        self.run = LuaScripts(self.client, url, _SCRIPTS).run

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def with_patience(self, patience: Patience) -> RedisStore:
        """The same store on the same connections, whose calls wait while Redis is unavailable."""
        return RedisStore(self._url, client=patient(self.client, patience))

    @contextmanager
    def reading(self, job_id: str) -> Iterator[redis.Redis]:
        """Give the client for a job's values, and translate errors of Redis or of planted values."""
        with damage_of(job_id), redis_errors(self._url):
            yield self.client

    def submit_whole(self, job: Job, items: WholeItems, retention: Retention, quota: Quota) -> None:
        """Add a job whose rows live here, with all of its items, in one step. Idempotent.

        Raises:
            JobConflictError: a different job has this id.
            QuotaExceededError: the quota has no room for it.
        """
        spec = job.model_dump_json()
        word, *more = self.run(
            "submit_whole", job.job_id, spec, job.fingerprint, job.lane.value, job.model, job.chunk_size,
            brief_argument(job, spec), *retention.milliseconds, quota.items, quota.bytes, items.name,
            items.data, items.chunks, items.items,
        )  # fmt: skip
        answer = SubmitAnswer(word.decode())
        if answer is SubmitAnswer.QUOTA:
            raise quota_exceeded(quota, more[0].decode(), more[1])
        if answer is SubmitAnswer.EXISTS and more[0] != job.fingerprint.encode():
            raise conflict(job, more[1].decode())

    def write_rows(self, identity: PartIdentity, token: str, rows: RowSlice) -> WriteAnswer:
        """Write rows of a chunk claimed by this token; `Ledger.complete` makes them visible. Idempotent."""
        kinds: Sequence[Mapping[Any, Any]] = (rows.rows, rows.vectors, rows.ids)
        flat = [
            value
            for kind in kinds
            for value in (len(kind), *(part for pair in kind.items() for part in pair))
        ]
        answer: bytes = self.run(
            "write_rows", identity.job_id, identity.chunk_id, token, identity.generation,
            _KEEP_PENDING_SECONDS * 1000, _schema_text(rows.schema), *flat,
        )  # fmt: skip
        return WriteAnswer(answer.decode())

    def schema(self, job_id: str) -> pa.Schema | None:
        """Schema of a job's rows, without `embedding`; None if it has no rows yet."""
        with self.reading(job_id) as client:
            text: Any = client.hget(keys.job(job_id), "row_schema")
            try:
                return None if text is None else _schema_of(text)
            except (OSError, pa.ArrowException) as error:  # of Arrow, for bytes that are not a schema
                raise ValueError(str(error)) from None

    def job(self, job_id: str) -> Job | None:
        """The job that has the rows of this id; None if only they are left of it."""
        with self.reading(job_id) as client:
            spec: Any = client.get(keys.job(job_id, keys.SPEC))
        return None if spec is None else read_job(spec)

    def has_rows(self, job_id: str) -> bool:
        """Whether a job has rows here."""
        with self.reading(job_id) as client:
            return bool(client.exists(keys.job(job_id, keys.ROWS)))

    def values(self, job_id: str, suffix: str, indexes: Sequence[int]) -> list[bytes | None]:
        """The values of these items in `keys.ROWS` or `keys.VECTORS`; None for each that has none (yet)."""
        if not indexes:
            return []
        with self.reading(job_id) as client:
            return client.hmget(keys.job(job_id, suffix), list(map(str, indexes)))  # type: ignore[return-value]  # or async

    def dimension(self, job_id: str) -> int | None:
        """Length of a job's vectors; None if it has none."""
        with self.reading(job_id) as client:
            pair: Any = client.hrandfield(keys.job(job_id, keys.VECTORS), 1, withvalues=True)
        vector = pair[-1] if pair else b""
        if isinstance(vector, list):  # RESP3 pairs them
            vector = vector[-1]
        return len(vector) // 2 or None

    def chunk(self, job_id: str, chunk_id: int) -> range | None:
        """The `item_index` of the rows of a chunk; None if it is not complete."""
        with self.reading(job_id) as client:
            span: Any = client.hget(keys.job(job_id, keys.CHUNKS), str(chunk_id))
            return None if span is None else _indexes(span)

    def chunks(self, job_id: str) -> dict[int, range]:
        """The `item_index` of the rows of each complete chunk, in order."""
        with self.reading(job_id) as client:
            spans: Any = client.hgetall(keys.job(job_id, keys.CHUNKS))
            return dict(sorted((int(chunk_id), _indexes(span)) for chunk_id, span in spans.items()))


def _schema_text(schema: pa.Schema) -> bytes:
    """The columns after the common ones, all columns if others stand among those; empty if there are none."""
    fields = list(schema)
    if [field for field in fields if field in _COMMON] != list(_COMMON):
        raise ValueError("the rows lack columns that every job has")
    if fields[: len(_COMMON)] == list(_COMMON):
        fields = fields[len(_COMMON) :]
    return b64encode(pa.schema(fields).serialize()) if fields else b""


def _schema_of(text: bytes) -> pa.Schema:
    stored = pa.ipc.read_schema(pa.py_buffer(b64decode(text))) if text else pa.schema([])
    return stored if _COMMON.names[0] in stored.names else pa.schema([*_COMMON, *stored])


def _indexes(span: bytes) -> range:
    first, count = map(int, span.split(b"-"))
    return range(first, first + count)
