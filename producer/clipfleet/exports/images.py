"""The images of rows, read where they lie: files, members of archives, S3 objects. Fetches nothing else.

An image counts only if it is the one that the job has seen.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from clipfleet.contract.parts import ItemStatus
from clipfleet.contract.tar_member import tar_member
from clipfleet.errors import SourceError, SourceUnavailableError, UsageError
from clipfleet.exports.column_names import unique_names
from clipfleet.parts import read_ahead
from clipfleet.results.rows import RowReader, RowStream
from clipfleet.s3.client import SCHEME, default_client, split_s3_uri
from clipfleet.s3.file import S3File
from clipfleet.sources.uris import has_scheme, local_path

LACK = "an image in a file or on S3 that is the one of the job"
READERS = 16  # images that are read at a time
IMAGE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
_SLICE_ROWS = 4  # whose images one thread reads
_OF_IMAGE = ("item_index", "uri", "content_hash", "status")
_MOST_BYTES = 1 << 28  # no job reads larger images
_FILE, _TAR = "file://", "tar+"
# The first bytes of a file, and after how many; and its extension.
_BEGINNINGS = (
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (8, b"WEBP", "webp"),
    (0, b"GIF8", "gif"),
    (0, b"BM", "bmp"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (4, b"ftypavif", "avif"),
)


def extension_of(data: bytes) -> str:
    """The extension of an image file by its first bytes; `img`: another format."""
    for place, beginning, extension in _BEGINNINGS:
        if data.startswith(beginning, place):
            return extension
    return "img"


def stem_of(row: Mapping[str, Any]) -> str:
    """The name of a row's image, without its extension; sorts as the rows."""
    return f"{row['item_index']:09d}"


def image_of(row: Mapping[str, Any]) -> bytes | None:
    """The image of a row; None: the row has failed, or its image is on the web, gone, or another one now.

    Args:
        row: with `status`, `uri` and `content_hash`.

    Raises:
        SourceUnavailableError: S3 does not answer; `SourceError`: it refuses.
    """
    uri, expected = row["uri"], row["content_hash"]
    if row["status"] != ItemStatus.OK or not uri or expected is None:
        return None
    try:
        data = _read(uri)
    except (OSError, ValueError):  # not there any more, not for this user, or no archive's member
        return None
    return data if data is not None and hashlib.sha256(data).hexdigest() == expected else None


def no_image(reader: RowReader) -> UsageError:
    """The error where no row has an image."""
    return UsageError(f"{reader.uri}: no row has {LACK}: this layout holds images")


class WithImages:
    """Rows with their images in the first column `image`, null where `image_of` finds none.

    A column of the source with this name becomes `source_image`.
    """

    def __init__(self, rows: RowStream) -> None:
        self._rows = rows
        self.found = 0  # images so far
        names = unique_names(rows.schema.names, [IMAGE.name])
        fields = [rows.schema.field(column).with_name(name) for name, column in names.items()]
        self.schema = pa.schema([IMAGE, *fields])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for rows, images in read_ahead(_with_images, self._slices(), depth=READERS):
            self.found += len(images) - images.null_count
            yield pa.RecordBatch.from_arrays([images, *rows.columns], schema=self.schema)

    def _slices(self) -> Iterator[pa.RecordBatch]:
        for batch in self._rows.batches:
            for first in range(0, batch.num_rows, _SLICE_ROWS):
                yield batch.slice(first, _SLICE_ROWS)


def _with_images(rows: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.Array]:
    images = [(row, image_of(row)) for row in rows.select(_OF_IMAGE).to_pylist()]
    found = [
        None if data is None else {"bytes": data, "path": f"{stem_of(row)}.{extension_of(data)}"}
        for row, data in images
    ]
    return rows, pa.array(found, IMAGE.type)


def _read(uri: str) -> bytes | None:
    """The bytes at a URI, cut if they are too many; None: they are on the web."""
    offset_bytes, size_bytes = 0, _MOST_BYTES
    if uri[: len(_TAR)].lower() == _TAR:
        member = tar_member(uri)
        uri, offset_bytes, size_bytes = member.archive, member.offset_bytes, member.size_bytes
    file = _opened(uri)
    if file is None:
        return None
    with file:
        file.seek(offset_bytes)
        return file.read(min(size_bytes, _MOST_BYTES))


def _opened(uri: str) -> BinaryIO | None:
    """A file or an S3 object; None: neither. Raises `OSError`."""
    if uri.startswith(SCHEME):
        bucket, key = split_s3_uri(uri)
        found = S3File(default_client(), bucket, key, away=SourceUnavailableError, lasting=SourceError)
        return cast(BinaryIO, io.BufferedReader(found))
    if has_scheme(uri) and uri[: len(_FILE)].lower() != _FILE:
        return None
    path = Path(local_path(uri))
    return path.open("rb") if path.is_file() else None
