"""The output of a `redis://` job: its objects are values in the ledger's own Redis, below the job's keys.

The job file is the spec in the ledger, so it exists before any other object. There are no parts: rows are
stored by the `complete` of their chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipfleet.contract.jobs import REDIS_OUTPUT
from clipfleet.errors import TooManyItemsError
from clipfleet.ledger import keys
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import objects
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.outputs.scratch import local_scratch, output_errors

_MAX_OBJECT_BYTES = 500 << 20  # Redis takes 512 MB in one value
_ANYTHING = "any"  # see put_object.lua


class RedisOutput:
    """See `clipfleet.outputs.Output`. All methods raise `RedisUnavailableError` while Redis is down."""

    uri = REDIS_OUTPUT  # names no server: always the ledger of the caller
    has_conditional_writes = True

    def __init__(self, store: RedisStore, job_id: str) -> None:
        self._store = store
        self._job_id = job_id
        self._items = keys.job(job_id, keys.ITEMS)

    def scratch(self) -> AbstractContextManager[Path]:
        """Create a local scratch file."""
        return local_scratch()

    def publish(
        self, scratch: Path, name: str, *, replace: bool = False, confirm: Confirm = unconditionally
    ) -> bool:
        """Store the file as a value; also False if the job has ended."""
        confirm()
        return self._put(name, _content(scratch), _ANYTHING if replace else "")

    def version(self, name: str) -> str | None:
        data = self.read(name)
        # The hash function that Redis scripts have.
        return None if data is None else hashlib.sha1(data, usedforsecurity=False).hexdigest()

    def replace_if(
        self, scratch: Path, name: str, version: str, *, confirm: Confirm = unconditionally
    ) -> bool:
        """Replace the value; also False if the job has ended."""
        confirm()
        return self._put(name, _content(scratch), version)

    def create(self, name: str, data: bytes, *, confirm: Confirm = unconditionally) -> bool:
        confirm()
        return name != objects.JOB_FILE and self._put(name, data, "")

    def replace(self, name: str, data: bytes, *, confirm: Confirm = unconditionally) -> None:
        confirm()
        self._put(name, data, _ANYTHING)

    def _put(self, name: str, data: bytes, over: str) -> bool:
        """Write over nothing (""), anything, or this version; False if the object does not match."""
        if len(data) > _MAX_OBJECT_BYTES:
            raise TooManyItemsError(
                f"a chunk has {len(data) >> 20:,} MiB of items, more than Redis stores in one value: "
                "choose a smaller `chunk_size=`, or an `output=`"
            )
        return bool(self._store.run("put_object", self._job_id, name, data, over))

    def read(self, name: str) -> bytes | None:
        with self._store.reading(self._job_id) as client:
            if name == objects.JOB_FILE:
                return client.get(keys.job(self._job_id, keys.SPEC))  # type: ignore[return-value]  # or async
            return client.hget(self._items, name)  # type: ignore[return-value]  # likewise

    def open(self, name: str) -> pa.NativeFile:
        data = self.read(name)
        if data is None:
            raise FileNotFoundError(f"{self.uri}/{name}")
        return pa.BufferReader(data)

    def names(self, prefix: str) -> Iterator[str]:
        with self._store.reading(self._job_id) as client:
            names: list[Any] = client.hkeys(self._items)
        return (name for name in sorted(map(bytes.decode, names)) if name.startswith(prefix))

    def folders(self, name: str) -> Iterator[str]:
        below = len(name) + 1
        found = {one[below:].partition("/")[0] for one in self.names(f"{name}/") if "/" in one[below:]}
        return iter(sorted(found))

    def remove(self, name: str) -> None:
        with self._store.reading(self._job_id) as client:
            client.hdel(self._items, name)

    def remove_folder(self, name: str) -> None:
        """Do nothing: names in Redis have no folders."""

    def sweep(self, kept: Collection[str], *, confirm: Confirm = unconditionally) -> None:
        """Do nothing: the script that ends a job removes leftovers."""

    def sweep_scratch(self, *, idle_seconds: float = 0.0) -> None:
        """Do nothing: scratch files are local to their writers."""

    def clear(self, *, confirm: Confirm = unconditionally) -> None:
        """Remove items and results; the job itself stays in the ledger."""
        confirm()
        with self._store.reading(self._job_id) as client:
            client.unlink(self._items, *(keys.job(self._job_id, suffix) for suffix in keys.RESULT_SUFFIXES))


def _content(scratch: Path) -> bytes:
    with output_errors(scratch):
        return scratch.read_bytes()
