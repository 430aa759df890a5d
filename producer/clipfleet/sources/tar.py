"""Shards of webdataset and img2dataset: tar archives whose members are grouped by the name before the dot.

Every image of a group is an item. Its id is that key (or the whole name, if the group has several images).
Its siblings become columns: the fields of `.json`, the text of `.txt`, the number of `.cls`.

Only headers and those texts are read here. Workers read the images from the archive by byte range: staging
them would write and read everything twice. On a local disk the submit seeks from header to header; from S3 it
streams the archive once, because one request per header would take longer.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.parts import VERSION_COLUMN
from clipfleet.contract.tar_member import TarMember
from clipfleet.errors import SourceError
from clipfleet.sources.batches import in_batches
from clipfleet.sources.files import ReadOptions, SourceFile
from clipfleet.sources.lists.records import RecordTable, size_bytes
from clipfleet.sources.walk import is_image_name

# Key and extension, as webdataset defines them.
_NAME = re.compile(r"(?:\./)*((?:.*/|)[^./][^./]*)\.([^/]*)", re.DOTALL)
_NUMBER = re.compile(r"0|-?[1-9]\d{0,17}")
_SAMPLE_ITEMS = 256
_MAX_TEXT_BYTES = 16 * 1024 * 1024  # of one .json, .txt or .cls
_BLOCK_BYTES = 512

_CARRIED = ("json", "txt", "cls")  # extensions of the members that become columns

# Names that no field of a .json can have.
_URI_FIELD = "\0uri"
_ID_FIELD = "\0id"


@dataclass(frozen=True, slots=True)
class Shard:
    """An archive, opened lazily."""

    uri: str
    open: Callable[[], SourceFile]


@dataclass(slots=True)
class Group:
    """Members with one key."""

    key: str
    images: list[tuple[TarMember, str]] = field(default_factory=list)  # each with its mtime
    texts: dict[str, bytes] = field(default_factory=dict)  # by extension

    def records(self) -> Iterator[tuple[dict[str, Any], str]]:
        """One record per image, with its mtime."""
        carried = _carried(self.texts)
        for image, changed in self.images:
            name = self.key if len(self.images) == 1 else image.name
            yield {_URI_FIELD: image.uri(), _ID_FIELD: name, **carried}, changed


class TarSource:
    """See `clipfleet.sources.Source`: at least one shard, in item order.

    `state` is the version of the shards, as `SourceDescription.options`.
    """

    def __init__(self, shards: Sequence[Shard], *, uri: str, state: dict[str, str]) -> None:
        self._shards = shards
        self._uri = uri
        with closing(self._records()) as records:
            sample = [record for record, _ in islice(records, _SAMPLE_ITEMS)]
            is_all = next(records, None) is None
        if not sample:
            raise SourceError(f"{uri}: no images in {len(shards)} tar files")
        options = ReadOptions(url_column=_URI_FIELD, id_column=_ID_FIELD)
        self._table = RecordTable(sample, options, where=uri, base="/", is_all=is_all)
        self.description = SourceDescription(
            kind="tar", uri=uri, options=state, extra_columns=self._table.extra_columns
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        index = 0
        for members in in_batches(self._records(), lambda member: size_bytes(member[0])):
            batch = self._table.batch(index, [record for record, _ in members])
            times = pa.array([changed for _, changed in members], pa.string())
            yield batch.append_column(VERSION_COLUMN, times)  # the size is in the URI
            index += len(members)

    def _records(self) -> Generator[tuple[dict[str, Any], str], None, None]:
        """Iterate over the items, each with its mtime."""
        for shard in self._shards:
            file = shard.open()
            with file.open() as stream:
                for group in groups(stream, file):
                    yield from group.records()


def shards_state(shards: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Number of shards, and a digest of their URIs and states."""
    digest = hashlib.sha256("\n".join(f"{uri}\t{state}" for uri, state in shards).encode(errors="replace"))
    return {"shards": str(len(shards)), "sha256": digest.hexdigest()[:16]}


def groups(stream: BinaryIO, file: SourceFile, extensions: Collection[str] = _CARRIED) -> Iterator[Group]:
    """Group consecutive members by key; read those with these extensions, in lower case, beside the images.

    Raises:
        SourceError: the archive is damaged or truncated.
    """
    group = Group("")
    for archive, info in _members(stream, file.name):
        match = _NAME.fullmatch(info.name)
        if match is None or not info.isreg():
            continue
        key, extension = match[1], match[2].lower()
        if key != group.key:
            yield group
            group = Group(key)
        if is_image_name(info.name):
            member = TarMember(file.uri, info.name, info.offset_data, info.size)
            group.images.append((member, str(info.mtime)))
        elif extension in extensions:
            group.texts[extension] = _content(archive, info, file.name)
    yield group


def _members(stream: BinaryIO, name: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Iterate over the headers in order.

    Raises:
        SourceError: the archive is damaged or truncated, so that members would be missing.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it caches all of them
                if info.issparse():
                    raise SourceError(f"{name}: {info.name} is a sparse file; pack it without --sparse")
                yield archive, info
            # tarfile treats an invalid header and a premature end as the end.
            stream.seek(archive.offset)
            block = stream.read(_BLOCK_BYTES)
    except tarfile.TarError as error:
        raise SourceError(f"{name}: not a complete tar file: {error}") from error
    if len(block) < _BLOCK_BYTES:
        raise SourceError(f"{name}: the tar file is truncated; is the copy complete?")
    if block.strip(b"\0"):
        raise SourceError(f"{name}: the tar file is damaged at byte {archive.offset}")


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo, name: str) -> bytes:
    if info.size > _MAX_TEXT_BYTES:
        raise SourceError(f"{name}: {info.name} is larger than {_MAX_TEXT_BYTES:,} bytes")
    reader = archive.extractfile(info)
    try:
        data = reader.read() if reader is not None else b""
    except tarfile.ReadError:
        data = b""
    if len(data) < info.size:
        raise SourceError(f"{name}: the tar file is truncated in {info.name}; is the copy complete?")
    return data


def _carried(texts: dict[str, bytes]) -> dict[str, Any]:
    """Columns from the texts of a group."""
    carried: dict[str, Any] = {}
    for extension in ("txt", "cls"):
        if extension in texts:
            text = texts[extension].decode(errors="replace")
            is_number = extension == "cls" and _NUMBER.fullmatch(text)
            carried[extension] = int(text) if is_number else text
    if "json" in texts:
        try:
            value = json.loads(texts["json"])
        except (ValueError, RecursionError):
            value = texts["json"].decode(errors="replace")
        carried |= value if isinstance(value, dict) else {"json": value}
    return carried
