"""S3 objects as source files, and listings of images below a prefix."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, cast

import pyarrow as pa

from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.parts import VERSION_COLUMN
from clipfleet.errors import SourceError, SourceUnavailableError
from clipfleet.s3.client import S3Client, S3Object, list_objects, split_s3_uri
from clipfleet.s3.failures import s3_errors
from clipfleet.s3.file import S3File
from clipfleet.sources.batches import in_batches, item_batch

_READ_BYTES = 8 * 1024 * 1024  # a request takes tens of milliseconds, independent of its size


class ObjectFile:
    """See `clipfleet.sources.files.SourceFile`. The first access sends the first request."""

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
        """Size and ETag."""
        size, etag = self._state
        return {"size": str(size), "etag": etag}

    def listed(self) -> S3Object:
        """The object as a listing entry."""
        return S3Object(self._key, *self._state)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the object; also raises `SourceUnavailableError` if the store is unavailable."""
        with self._object() as file:
            if (file.size(), file.etag) != self._state:
                raise SourceError(f"{self.name}: the object changed while it was read; submit it again")
            yield cast(BinaryIO, io.BufferedReader(file, _READ_BYTES))

    def _object(self) -> S3File:
        try:
            return S3File(
                self._client, self._bucket, self._key, away=SourceUnavailableError, lasting=SourceError
            )
        except FileNotFoundError:
            raise SourceError(f"{self.name}: does not exist") from None


@dataclass(frozen=True, slots=True)
class PrefixSource:
    """See `clipfleet.sources.Source`: objects below a prefix, in the store's order."""

    objects: Callable[[], Iterable[S3Object]]
    base: str  # part of the URI that ids omit: bucket and prefix, ends in a slash
    uri: str  # of the whole source, for messages
    wanted: str = ""  # message if nothing is found
    accepts: Callable[[str], bool] = lambda name: True  # filter on the key without the prefix

    @property
    def description(self) -> SourceDescription:
        return SourceDescription(kind="s3", uri=self.uri)

    def batches(self) -> Iterator[pa.RecordBatch]:
        _, prefix = split_s3_uri(self.base)
        index, skip = 0, len(prefix)
        for found in in_batches(one for one in self.objects() if self.accepts(one.key[skip:])):
            names = [one.key[skip:] for one in found]
            versions = [f"{one.size_bytes} {one.etag}" for one in found]
            yield item_batch(
                index,
                pa.array(names, pa.string()),
                pa.array([self.base + name for name in names], pa.string()),
                {VERSION_COLUMN: pa.array(versions, pa.string())},
            )
            index += len(found)
        if index == 0:
            raise SourceError(f"{self.uri}: {self.wanted}")


def listing(client: S3Client, bucket: str, prefix: str) -> Iterator[S3Object]:
    """List all objects below a prefix, without the folder markers of some tools.

    Raises:
        SourceError: no such bucket, or listing is denied.
        SourceUnavailableError: the store is unavailable.
    """
    where = f"s3://{bucket}/{prefix}"
    with s3_errors(where, away=SourceUnavailableError, lasting=SourceError):
        for one in list_objects(client, bucket, prefix):
            if not one.key.endswith("/"):
                yield one


def is_hidden(name: str) -> bool:
    """Whether a component of the name starts with a dot, as in `.cache/a.jpg`."""
    return name.startswith(".") or "/." in name
