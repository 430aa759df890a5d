"""The images of rows, read where they lie: files, members of archives, S3 objects. Fetches nothing else.

An image counts only if it is the one that the job has seen.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from clipfleet.contract.tar_member import tar_member
from clipfleet.errors import SourceError, SourceUnavailableError
from clipfleet.s3.client import SCHEME, default_client, split_s3_uri
from clipfleet.s3.file import S3File
from clipfleet.sources.uris import has_scheme, local_path

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


def image_of(row: Mapping[str, Any]) -> bytes | None:
    """The image of a row; None: it is on the web, is gone, or is another one now.

    Args:
        row: with `uri` and `content_hash`.

    Raises:
        SourceUnavailableError: S3 does not answer; `SourceError`: it refuses.
    """
    uri, expected = row["uri"], row["content_hash"]
    if not uri or expected is None:
        return None
    try:
        data = _read(uri)
    except (OSError, ValueError):  # not there any more, not for this user, or no archive's member
        return None
    return data if data is not None and hashlib.sha256(data).hexdigest() == expected else None


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
