"""Objects of S3 as files that sources read, and listings of pictures below a prefix."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import BinaryIO, cast

import pyarrow as pa

from clipfleet.contract import SourceDescription
from clipfleet.errors import SourceError, SourceUnavailableError
from clipfleet.parts import VERSION_COLUMN
from clipfleet.s3 import S3Client, S3Object, list_objects, s3_errors
from clipfleet.s3_file import S3File
from clipfleet.sources.batches import in_batches, item_batch

_READ_BYTES = 8 * 1024 * 1024  # a request takes tens of milliseconds, whatever its size


class ObjectFile:
    """See `clipfleet.sources.files.SourceFile`. The store is asked when the object is first needed."""

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self.name = self.uri = f"s3://{bucket}/{key}"
        self.folder = self.uri[: self.uri.rindex("/") + 1]

    @cached_property
    def _state(self) -> tuple[int, str]:
        with self._object() as file:
            if file.size() == 0:
                raise SourceError(f"{self.name}: the object is empty")
            return file.size(), file.etag

    def state(self) -> dict[str, str]:
        """Size and entity tag."""
        size, etag = self._state
        return {"size": str(size), "etag": etag}

    def listed(self) -> S3Object:
        """The object as a listing has it."""
        return S3Object(self._key, *self._state)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """See the protocol.

        Raises:
            SourceUnavailableError: the store is away.
        """
        with self._object() as file:
            if (file.size(), file.etag) != self._state:
                raise SourceError(f"{self.name}: the object was changed meanwhile; submit it again")
            yield cast(BinaryIO, io.BufferedReader(file, _READ_BYTES))

    def _object(self) -> S3File:
        try:
            return S3File(
                self._client, self._bucket, self._key, away=SourceUnavailableError, lasting=SourceError
            )
        except FileNotFoundError:
            raise SourceError(f"{self.name}: does not exist") from None


class PrefixSource:
    """See `clipfleet.sources.Source`: objects below a prefix, in the store's order.

    Args:
        objects: of a bucket.
        bucket: its name.
        prefix: what the ids leave out; ends in a slash, or is empty.
        accepts: whether an object is wanted, by what its key has after the prefix.
        wanted: what that means, for the message where there is none.
        uri: of the whole, for people.
    """

    def __init__(
        self,
        objects: Callable[[], Iterable[S3Object]],
        bucket: str,
        prefix: str,
        accepts: Callable[[str], bool],
        *,
        wanted: str,
        uri: str,
    ) -> None:
        self._objects = objects
        self._base = f"s3://{bucket}/{prefix}"
        self._skip = len(prefix)
        self._accepts = accepts
        self._wanted = wanted
        self.description = SourceDescription(kind="s3", uri=uri)

    def batches(self) -> Iterator[pa.RecordBatch]:
        index = 0
        for found in in_batches(one for one in self._objects() if self._accepts(one.key[self._skip :])):
            names = [one.key[self._skip :] for one in found]
            versions = [f"{one.size_bytes} {one.etag}" for one in found]
            yield item_batch(
                index,
                pa.array(names, pa.string()),
                pa.array([self._base + name for name in names], pa.string()),
                {VERSION_COLUMN: pa.array(versions, pa.string())},
            )
            index += len(found)
        if index == 0:
            raise SourceError(f"{self.description.uri}: {self._wanted}")


def listing(client: S3Client, bucket: str, prefix: str) -> Iterator[S3Object]:
    """All objects below a prefix, without the markers that some tools leave for folders.

    Raises:
        SourceError: there is no such bucket, or it must not be listed.
        SourceUnavailableError: the store is away.
    """
    where = f"s3://{bucket}/{prefix}"
    with s3_errors(where, away=SourceUnavailableError, lasting=SourceError):
        for one in list_objects(client, bucket, prefix):
            if not one.key.endswith("/"):
                yield one


def is_hidden(name: str) -> bool:
    """True if a part of the name begins with a dot, as in `.cache/a.jpg`."""
    return name.startswith(".") or "/." in name
