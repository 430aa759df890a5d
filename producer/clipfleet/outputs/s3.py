"""An output below a prefix of an S3 bucket.

A put that succeeds only if the name is free (`If-None-Match: *`) creates an object. Every write carries an id
that identifies it if its response was lost. A canary before the first write detects a store that ignores
conditions; there, a plain put follows a check.
"""

from __future__ import annotations

import io
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from clipfleet.errors import OutputUnavailableError, OutputUnreachableError, UsageError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.outputs.guarded_body import GuardedBody
from clipfleet.outputs.scratch import local_scratch, output_errors
from clipfleet.s3.client import SCHEME, S3Client, list_folders, list_objects, split_s3_uri
from clipfleet.s3.failures import S3Problem, explain, failures_of_calls, s3_errors
from clipfleet.s3.file import S3File

_WRITE_ID = "clipfleet-write"  # object metadata: id of the write
_CONFLICT_ATTEMPTS = 6
_CONFLICT_SECONDS = 0.1  # doubles
_PROBE_PATIENCE_SECONDS = 30.0  # so that queued writers fail soon if the store is down
_KEYS_OF_A_DELETE = 1000  # S3's own limit
_MAX_KEY_BYTES = 900  # S3 allows 1024, including the names below the prefix


class S3Output:
    """See `clipfleet.outputs.Output`."""

    def __init__(self, bucket: str, prefix: str, client: S3Client) -> None:
        """Send nothing. The bucket must exist; the prefix may be empty and has no trailing slash."""
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""
        self.uri = f"{SCHEME}{bucket}/{prefix}".rstrip("/")
        self._client = client
        self._conditional: bool | None = None  # unknown
        self._probing = threading.Lock()

    @property
    def has_conditional_writes(self) -> bool:
        """Probed by the first call, with a canary object."""
        if not self._probing.acquire(timeout=_PROBE_PATIENCE_SECONDS):
            raise OutputUnavailableError(f"{self.uri}: timed out while probing the store")
        try:
            if self._conditional is None:
                with self._errors():
                    self._conditional = self._probe()
            return self._conditional
        finally:
            self._probing.release()

    def scratch(self) -> AbstractContextManager[Path]:
        """Create a local scratch file."""
        return local_scratch()

    def publish(
        self, scratch: Path, name: str, *, replace: bool = False, confirm: Confirm = unconditionally
    ) -> bool:
        with _opened(scratch) as file:
            return self._put(name, file, confirm) if replace else self._put_if_absent(name, file, confirm)

    def version(self, name: str) -> str | None:
        """The ETag, equal for equal bytes: objects that must not be confused differ in their bytes."""
        head = self._head(name)
        return None if head is None else str(head["ETag"])

    def replace_if(
        self, scratch: Path, name: str, version: str, *, confirm: Confirm = unconditionally
    ) -> bool:
        """Replace with `If-Match`. Without conditional writes, another writer may come in between."""
        with _opened(scratch) as file:
            if self.has_conditional_writes:
                return self._put(name, file, confirm, {"IfMatch": version})
            return self.version(name) == version and self._put(name, file, confirm)

    def create(self, name: str, data: bytes, *, confirm: Confirm = unconditionally) -> bool:
        return self._put_if_absent(name, data, confirm)

    def replace(self, name: str, data: bytes, *, confirm: Confirm = unconditionally) -> None:
        self._put(name, data, confirm)

    def read(self, name: str) -> bytes | None:
        try:
            with S3File(self._client, self._bucket, self._root + name) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def open(self, name: str) -> pa.NativeFile:
        """Open the current version, read by byte ranges."""
        return pa.PythonFile(S3File(self._client, self._bucket, self._root + name), mode="r")

    def names(self, prefix: str) -> Iterator[str]:
        yield from sorted(self._names(prefix, delimiter="/"))

    def folders(self, name: str) -> Iterator[str]:
        with self._errors(name):
            found = sorted(list_folders(self._client, self._bucket, f"{self._root}{name}/"))
        yield from found

    def remove(self, name: str) -> None:
        with self._errors(name):
            self._client.delete_object(Bucket=self._bucket, Key=self._root + name)

    def remove_folder(self, name: str) -> None:
        """Do nothing: buckets have no folders."""

    def sweep(self, kept: Collection[str], *, confirm: Confirm = unconditionally) -> None:
        with suppress(OutputUnavailableError):
            self.sweep_scratch()
            for prefix in (objects.STAGED_PREFIX, objects.FOOTER_PREFIX):
                self._remove_all([name for name in self._names(prefix) if name not in kept], confirm)

    def sweep_scratch(self, *, idle_seconds: float = 0.0) -> None:
        """Remove all canaries, which writers expect; scratch files are local."""
        self._remove_all(list(self._names(f"{objects.TMP}/")))

    def clear(self, *, confirm: Confirm = unconditionally) -> None:
        found = [objects.SUCCESS, objects.MANIFEST]
        for layout in objects.LAYOUTS:
            found += [layout.errors, *self._names(layout.part_prefix, delimiter="/")]
        found += [
            name for name in self._names(f"{objects.INTERNAL}/") if not name.startswith(objects.KEPT_BY_CLEAR)
        ]
        self._remove_all(found, confirm)

    # --- Writing ---

    def _put_if_absent(self, name: str, body: bytes | BinaryIO, confirm: Confirm) -> bool:
        if self.has_conditional_writes:
            return self._put(name, body, confirm, {"IfNoneMatch": "*"})
        return self._head(name) is None and self._put(name, body, confirm)

    def _put(
        self, name: str, body: bytes | BinaryIO, confirm: Confirm, condition: dict[str, str] | None = None
    ) -> bool:
        """Put an object; False if the condition fails."""
        from botocore.exceptions import ClientError

        write_id = uuid.uuid4().hex
        guarded = GuardedBody(io.BytesIO(body) if isinstance(body, bytes) else body, confirm)
        for attempt in range(_CONFLICT_ATTEMPTS):
            guarded.seek(0)
            confirm()
            with self._errors(name), guarded.refusing():
                try:
                    self._client.put_object(
                        Bucket=self._bucket,
                        Key=self._root + name,
                        Body=guarded if confirm is not unconditionally else body,
                        Metadata={_WRITE_ID: write_id},
                        **(condition or {}),
                    )
                    return True
                except ClientError as error:
                    if _status(error) == 412 or (condition and _status(error) == 404 and _no_object(error)):
                        # Ours, if only the response to an earlier attempt was lost.
                        return self._is_written_by(name, write_id)
                    if _status(error) != 409:
                        raise
            # Another conditional write of this name is in progress; retry to see its result.
            time.sleep(_CONFLICT_SECONDS * 2**attempt)
        raise OutputUnavailableError(f"{self.uri}/{name}: conflicts with other writers do not end")

    def _is_written_by(self, name: str, write_id: str) -> bool:
        head = self._head(name)
        return head is not None and head.get("Metadata", {}).get(_WRITE_ID) == write_id

    def _probe(self) -> bool:
        """Create a canary repeatedly; only a store that ignores the condition succeeds each time.

        Three times, as a sweep may remove it once.
        """
        from botocore.exceptions import ClientError

        where = {"Bucket": self._bucket, "Key": f"{self._root}{objects.TMP}/canary-{uuid.uuid4().hex}"}
        try:
            for _ in range(3):
                self._client.put_object(**where, Body=b"canary", IfNoneMatch="*")
        except ClientError as error:
            if _status(error) == 412:
                return True
            if not _is_unknown_condition(error):
                raise
        finally:
            with suppress(*failures_of_calls()):  # the sweep at the end of the job removes it
                self._client.delete_object(**where)
        return False

    # --- Looking and removing ---

    def _head(self, name: str) -> dict[str, Any] | None:
        """Metadata of an object, or None. Uses GET: a refused HEAD has no error body."""
        from botocore.exceptions import ClientError

        where = {"Bucket": self._bucket, "Key": self._root + name}
        with self._errors(name):
            try:
                found: dict[str, Any] = self._client.get_object(**where, Range="bytes=0-0")
                found["Body"].close()
                return found
            except ClientError as error:
                if _status(error) == 404:
                    return None
                if _status(error) != 416:  # an empty object has no first byte
                    raise
            try:
                head: dict[str, Any] = self._client.head_object(**where)
                return head
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise

    def _names(self, prefix: str, *, delimiter: str = "") -> Iterator[str]:
        with self._errors(prefix):
            found = list_objects(self._client, self._bucket, self._root + prefix, delimiter=delimiter)
            names = [entry.key[len(self._root) :] for entry in found]
        return iter(names)

    def _remove_all(self, names: Sequence[str], confirm: Confirm = unconditionally) -> None:
        for start in range(0, len(names), _KEYS_OF_A_DELETE):
            confirm()
            slice_of_names = names[start : start + _KEYS_OF_A_DELETE]
            entries = [{"Key": self._root + name} for name in slice_of_names]
            with self._errors():
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": entries, "Quiet": True}
                )
            for error in answer.get("Errors", ()):
                raise OutputUnreachableError(
                    f"{SCHEME}{self._bucket}/{error.get('Key')}: cannot be removed ({error.get('Code')})"
                )

    @contextmanager
    def _errors(self, name: str = "") -> Iterator[None]:
        with s3_errors(f"{self.uri}/{name}".rstrip("/")):
            yield


def s3_output(uri: str, client: S3Client) -> S3Output:
    """Open the output at `s3://bucket/prefix`.

    Raises:
        UsageError: a prefix that some stores normalise or refuse.
    """
    bucket, key = split_s3_uri(uri)
    prefix = key.rstrip("/")
    segments = prefix.split("/") if prefix else []
    if any(segment in ("", ".", "..") for segment in segments):
        raise UsageError(
            f"output {uri!r}: empty segments, `.` and `..` have no meaning in S3: leave them out"
        )
    if len(prefix.encode()) > _MAX_KEY_BYTES or any(len(segment.encode()) > 255 for segment in segments):
        raise UsageError(f"output {uri!r} is too long for a key")
    if any(not character.isprintable() for character in prefix):
        raise UsageError(f"output {uri!r}: control characters are not allowed")
    return S3Output(bucket, prefix, client)


def _is_unknown_condition(error: Exception) -> bool:
    """Whether the store refuses conditions, instead of ignoring them."""
    return _status(error) == 501 or (_status(error) == 400 and explain(error).problem is S3Problem.REFUSED)


def _no_object(error: Exception) -> bool:
    return explain(error).problem is S3Problem.NO_OBJECT


def _status(error: Any) -> int:
    return int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))


@contextmanager
def _opened(scratch: Path) -> Iterator[BinaryIO]:
    with output_errors(scratch), scratch.open("rb") as file:
        yield file
