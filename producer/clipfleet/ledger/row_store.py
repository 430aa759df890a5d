"""What a `redis://` job keeps beside its entries in the ledger: rows, vectors, ids; objects: `RedisOutput`.

Bytes in, bytes out; what they mean is said elsewhere. Rows become visible by `Ledger.complete`, never here.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import redis

from clipfleet.contract.parts import UNKNOWN_DIMENSION, PartIdentity, part_schema
from clipfleet.ledger import keys
from clipfleet.ledger.answers import WriteAnswer
from clipfleet.ledger.scripts import LuaScripts
from clipfleet.redis.connection import connect, damage_of, redis_errors
from clipfleet.redis.patience import Patience, patient

_SCRIPTS = ("put_object", "write_rows")
# The columns that every job has are not written down with each: few jobs have others.
_COMMON = pa.schema([field for field in part_schema(UNKNOWN_DIMENSION) if field.name != "embedding"])
_KEEP_PENDING_SECONDS = 3600  # rows whose worker died; one that lives completes them within seconds


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Some rows of a chunk, at most 500: a call to Redis should be short."""

    schema: pa.Schema  # of the rows, without `embedding`; the same for the whole job
    rows: Mapping[int, str]  # item_index -> JSON
    vectors: Mapping[int, bytes]  # item_index -> little-endian float16, where there is one
    ids: Mapping[str, int]  # item_id -> its lowest item_index in the chunk


class RedisStore:
    """All calls raise `RedisUnavailableError` while Redis is away, or its memory is full."""

    def __init__(self, url: str, *, client: redis.Redis | None = None) -> None:
        self._url = url
        self.client = client or connect(url, decode=False)
        self.run = LuaScripts(self.client, url, _SCRIPTS).run

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def with_patience(self, patience: Patience) -> RedisStore:
        """The same store, whose calls wait out a Redis that is away; this one keeps the connections."""
        return RedisStore(self._url, client=patient(self.client, patience))

    @contextmanager
    def reading(self, job_id: str) -> Iterator[redis.Redis]:
        """The client, for a job's values; what Redis or a planted value raises becomes an error of ours."""
        with damage_of(job_id), redis_errors(self._url):
            yield self.client

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
        """Schema of a job's rows, without `embedding`; None if there is no row yet."""
        with self.reading(job_id) as client:
            text: Any = client.hget(keys.job(job_id), "row_schema")
            try:
                return None if text is None else _schema_of(text)
            except (OSError, pa.ArrowException) as error:  # of Arrow, for bytes that are no schema
                raise ValueError(str(error)) from None

    def has_rows(self, job_id: str) -> bool:
        """Whether a job has rows here."""
        with self.reading(job_id) as client:
            return bool(client.exists(keys.job(job_id, keys.ROWS)))

    def values(self, job_id: str, suffix: str, indexes: Sequence[int]) -> list[bytes | None]:
        """What `keys.ROWS` or `keys.VECTORS` has of these items, None where there is nothing (yet)."""
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
        """The `item_index` of the rows of a chunk, None if it is not complete."""
        with self.reading(job_id) as client:
            span: Any = client.hget(keys.job(job_id, keys.CHUNKS), str(chunk_id))
            return None if span is None else _indexes(span)

    def chunks(self, job_id: str) -> dict[int, range]:
        """Likewise for each chunk that is complete, in order."""
        with self.reading(job_id) as client:
            spans: Any = client.hgetall(keys.job(job_id, keys.CHUNKS))
            return dict(sorted((int(chunk_id), _indexes(span)) for chunk_id, span in spans.items()))


def _schema_text(schema: pa.Schema) -> bytes:
    """The columns after the common ones; empty where there are none."""
    fields = list(schema)
    if fields[: len(_COMMON)] != list(_COMMON):
        raise ValueError("rows without the columns of every job")
    others = fields[len(_COMMON) :]
    return b64encode(pa.schema(others).serialize()) if others else b""


def _schema_of(text: bytes) -> pa.Schema:
    others = pa.ipc.read_schema(pa.py_buffer(b64decode(text))) if text else ()
    return pa.schema([*_COMMON, *others])


def _indexes(span: bytes) -> range:
    first, count = map(int, span.split(b"-"))
    return range(first, first + count)
