"""Where results go, as a small store of named objects: the protocol, and one file per kind.

Names are relative (`part-00000000.parquet`, `_clipfleet/job.json`) and come from `keys.py`.
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
from clipfleet.s3.client import SCHEME, default_client


class Output(Protocol):
    """A store of objects in which creating is atomic and exclusive.

    Every method raises `OutputUnavailableError` where waiting may help (disk full, store away) and
    `OutputUnreachableError` where it will not (no such mount, no right to write).

    `confirm` is called immediately before each change that others can see, however often that is tried; what
    it raises keeps the change from being made.
    """

    uri: str  # absolute name of the output, equal on every machine

    @property
    def has_conditional_writes(self) -> bool:
        """Whether names are taken and versions replaced by one step of the store, not by a look before it."""

    def scratch(self) -> AbstractContextManager[Path]:
        """A path for a new local file that `publish` can make visible; gone when the context ends."""

    def publish(
        self, scratch: Path, name: str, *, replace: bool = False, confirm: Confirm = unconditionally
    ) -> bool:
        """Make a finished scratch file visible under `name`, whole or not at all.

        Returns:
            False if `replace` is off and the name exists already: then nothing was changed.
        """

    def version(self, name: str) -> str | None:
        """What `replace_if` wants to know of an object: it differs for other bytes. None if there is none."""

    def replace_if(
        self, scratch: Path, name: str, version: str, *, confirm: Confirm = unconditionally
    ) -> bool:
        """Like `publish` over an object, but only if that is still of this version.

        Returns:
            False if the object is another one by now, or gone: then nothing was changed.
        """

    def create(self, name: str, data: bytes, *, confirm: Confirm = unconditionally) -> bool:
        """Like `publish` for a few bytes."""

    def replace(self, name: str, data: bytes, *, confirm: Confirm = unconditionally) -> None:
        """Write an object, whole or not at all, over what may be there."""

    def read(self, name: str) -> bytes | None:
        """All bytes of an object, or None if there is none of this name."""

    def open(self, name: str) -> pa.NativeFile:
        """Random access to an object, to be closed by the caller. Raises `FileNotFoundError`."""

    def names(self, prefix: str) -> Iterator[str]:
        """Sorted names of the objects that start with `prefix`; none from folders further below."""

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""

    def sweep(self, kept: Collection[str], *, confirm: Confirm = unconditionally) -> None:
        """Remove what killed programs left: scratch files, and staged files and footers that are not `kept`.

        For the end of a job, when all its parts are in place. What cannot be removed stays. Idempotent.
        """

    def sweep_scratch(self) -> None:
        """Remove scratch files only. Idempotent.

        A writer that still needs one loses it: its `publish` raises `OutputUnavailableError`.
        """

    def clear(self, *, confirm: Confirm = unconditionally) -> None:
        """Remove everything that a job left here (parts, manifest, staged items) but `keys.KEPT_BY_CLEAR`."""


def output_uri(text: str) -> str:
    """The absolute name of the output that a user means by `text`.

    Raises:
        UsageError: no output of this kind exists, or S3 is not configured in a way that can work.
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
    """The output of a job; raises like `open_output`."""
    return RedisOutput(store, job.job_id) if job.output_is_redis else open_output(job.output)


def open_output(uri: str) -> Output:
    """The output at a folder's path or an `s3://` URI.

    Raises:
        UsageError: no output of this kind exists, or S3 is not configured in a way that can work.
    """
    if uri.startswith(REDIS_OUTPUT):
        raise UsageError(f"{REDIS_OUTPUT} holds the results of many jobs: give a job id")
    if uri.startswith(SCHEME):
        return s3_output(uri, default_client())
    if "://" in uri and not uri.startswith("file://"):
        scheme = uri.partition("://")[0]
        raise UsageError(
            f"output {uri!r}: {scheme}:// is not supported, give the path of a folder or s3://BUCKET/PREFIX"
        )
    return FolderOutput(Path(uri.removeprefix("file://")))
