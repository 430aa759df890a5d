"""URIs of images inside tar archives, by byte range, so that a worker reads only the image. No I/O.

`tar+file:///data/00000.tar#offset=1536&size=48123&name=000000001.jpg`, and `tar+s3://bucket/...` :
the archive's path is percent-encoded, `offset` and `size` are in bytes. The name is informative.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

FILE_SCHEME = "tar+file"
S3_SCHEME = "tar+s3"

_URI = re.compile(
    r"tar\+(?P<archive>(?:file|s3)://[^#?]+)#offset=(?P<offset>\d{1,18})&size=(?P<size>\d{1,18})&name=(?P<name>.*)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in an uncompressed archive."""

    archive: str  # an absolute path, a `file://` URL, or `s3://bucket/key` with the key as it stands
    name: str  # in the archive
    offset_bytes: int  # of its content
    size_bytes: int

    def uri(self) -> str:
        """Format the URI, see the module."""
        if self.archive.startswith("/"):
            archive = f"file://{quote(self.archive)}"
        elif self.archive.startswith("s3://"):
            archive = f"s3://{quote(self.archive.removeprefix('s3://'))}"
        else:
            archive = self.archive  # percent-encoded already
        name = quote(self.name, errors="replace")
        return f"tar+{archive}#offset={self.offset_bytes}&size={self.size_bytes}&name={name}"


def tar_member(uri: str) -> TarMember:
    """Parse a `TarMember.uri`; a local archive becomes a `file://` URL.

    Raises:
        ValueError: not such a URI.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise ValueError("not tar+file:// or tar+s3:// with #offset=BYTES&size=BYTES&name=NAME")
    archive = match["archive"]
    if archive[:3].lower() == "s3:":
        archive = f"s3://{unquote(archive[5:])}"
    return TarMember(archive, unquote(match["name"]), int(match["offset"]), int(match["size"]))
