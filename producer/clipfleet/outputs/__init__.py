"""Outputs of jobs, as small stores of named objects: the protocol, and one module per kind. Knows no
columns and no ledger.

Names are relative (`part-00000000.parquet`, `_clipfleet/job.json`) and defined in `objects.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from clipfleet.contract.jobs import REDIS_OUTPUT, Job
from clipfleet.errors import UsageError
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs.folder import Confirm, FolderOutput, unconditionally
from clipfleet.outputs.redis import RedisOutput
from clipfleet.outputs.s3 import s3_output
from clipfleet.s3.client import SCHEME, default_client, with_s3_scheme


class Output(Protocol):
    """A store of objects with atomic, exclusive creation.

    Every method raises `OutputUnavailableError` if waiting may help (disk full, store unavailable) and
    `OutputUnreachableError` if not (missing mount, no write permission).

    `confirm` is called immediately before each visible change, in every attempt; if it raises, the change is
    not made.
    """

    uri: str  # absolute name of the output, equal on every machine

    @property
    def has_conditional_writes(self) -> bool:
        """Whether create and replace are atomic in the store, instead of a check before a write."""

    def scratch(self) -> AbstractContextManager[Path]:
        """Reserve a path for a local file to `publish`; it is removed when the context ends."""

    def publish(
        self, scratch: Path, name: str, *, replace: bool = False, confirm: Confirm = unconditionally
    ) -> bool:
        """Make a finished scratch file visible under `name`, atomically.

        Returns:
            False if `replace` is off and the name exists; nothing was changed.
        """

    def version(self, name: str) -> str | None:
        """Version of an object for `replace_if`, different for different bytes. None if it does not exist."""

    def replace_if(
        self, scratch: Path, name: str, version: str, *, confirm: Confirm = unconditionally
    ) -> bool:
        """Replace an object by a scratch file, if it still has this version.

        Returns:
            False if the object has changed or is gone; nothing was changed.
        """

    def create(self, name: str, data: bytes, *, confirm: Confirm = unconditionally) -> bool:
        """Create an object from bytes; False if the name exists."""

    def replace(self, name: str, data: bytes, *, confirm: Confirm = unconditionally) -> None:
        """Write an object atomically, whether or not it exists."""

    def read(self, name: str) -> bytes | None:
        """Read an object, or return None if it does not exist."""

    def open(self, name: str) -> pa.NativeFile:
        """Open an object for random access; the caller closes it. Raises `FileNotFoundError`."""

    def names(self, prefix: str) -> Iterator[str]:
        """List names that start with `prefix`, sorted, without those in deeper folders."""

    def folders(self, name: str) -> Iterator[str]:
        """List the folders directly below a folder by their own names, sorted."""

    def remove(self, name: str) -> None:
        """Remove an object. Idempotent."""

    def remove_folder(self, name: str) -> None:
        """Remove a folder without objects, if the store has folders. Best effort. Idempotent."""

    def sweep(self, kept: Collection[str], *, confirm: Confirm = unconditionally) -> None:
        """Remove leftovers of killed programs: scratch files, and staged files and footers not in `kept`.

        Called at the end of a job, when all parts are in place. Best effort. Idempotent.
        """

    def sweep_scratch(self, *, idle_seconds: float = 0.0) -> None:
        """Remove scratch files only, those that were not written to for so long. Idempotent.

        The `publish` of a writer that still uses one raises `OutputUnavailableError`.
        """

    def clear(self, *, confirm: Confirm = unconditionally) -> None:
        """Remove everything that a job wrote (parts, manifest, staged items) but `objects.KEPT_BY_CLEAR`."""


def output_uri(text: str) -> str:
    """Normalise the output that a user gives to its absolute URI.

    Raises:
        UsageError: the kind of output is unsupported, or the S3 configuration is invalid.
    """
    if not text.startswith(REDIS_OUTPUT):
        return open_output(text).uri
    if text != REDIS_OUTPUT:
        raise UsageError(
            f"output {text!r}: results go into the Redis of CLIPFLEET_REDIS_URL: "
            f"write {REDIS_OUTPUT} without an address"
        )
    return REDIS_OUTPUT


def output_of(job: Job, store: RedisStore) -> Output:
    """Open the output of a job; raises like `open_output`."""
    return RedisOutput(store, job.job_id) if job.output_is_redis else open_output(job.output)


def open_output(uri: str) -> Output:
    """Open the output at a path or an `s3://` URI.

    Raises:
        UsageError: the kind of output is unsupported, or the S3 configuration is invalid.
    """
    if uri.startswith(REDIS_OUTPUT):
        raise UsageError(f"{REDIS_OUTPUT} holds the results of many jobs: give a job id")
    uri = with_s3_scheme(uri)
    if uri.startswith(SCHEME):
        return s3_output(uri, default_client())
    if "://" in uri and not uri.startswith("file://"):
        scheme = uri.partition("://")[0]
        raise UsageError(
            f"output {uri!r}: {scheme}:// is not supported, give the path of a folder or s3://BUCKET/PREFIX"
        )
    return FolderOutput(Path(uri.removeprefix("file://")))
