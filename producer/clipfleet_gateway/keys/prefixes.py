"""Which sources a key may read: places below its prefixes, however they are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipfleet.errors import UsageError
from clipfleet.s3.client import SCHEME, split_s3_uri, with_s3_scheme


def checked_prefix(text: str) -> str:
    """A prefix as it is kept: an absolute folder, or `s3://BUCKET/PREFIX`; both end in a slash.

    Raises:
        UsageError: it is neither.
    """
    uri = with_s3_scheme(text)
    if uri.startswith(SCHEME):
        bucket, key = split_s3_uri(uri)
        return f"{SCHEME}{bucket}/{key.strip('/')}/" if key.strip("/") else f"{SCHEME}{bucket}/"
    if "://" in uri or not Path(uri).is_absolute():
        raise UsageError(f"source {text!r}: give the absolute path of a folder, or s3://BUCKET/PREFIX")
    folder = str(Path(uri).resolve())
    return folder if folder.endswith("/") else f"{folder}/"


def has_folders(prefixes: Sequence[str]) -> bool:
    """Whether `may_read` looks at the disk, which may take long if a file system does not answer."""
    return any(not one.startswith(SCHEME) for one in prefixes)


def may_read(place: str, prefixes: Sequence[str]) -> bool:
    """Whether a path or an `s3://` URI lies below one of some prefixes.

    Paths are compared after links and `..` are resolved; keys of S3 verbatim, as S3 has neither. A link that
    is changed between this look and the read of a worker may lead elsewhere: who may write into a folder of a
    key decides what the key reads, within what the workers may.

    Args:
        place: an absolute path, or a URI of S3.
        prefixes: as `checked_prefix` returns them.
    """
    uri = with_s3_scheme(place)
    if not uri.startswith(SCHEME):
        if "://" in uri or not Path(uri).is_absolute() or "\0" in uri or not has_folders(prefixes):
            return False
        uri = str(Path(uri).resolve())
    elif any(part in (".", "..") for part in uri.split("/")):
        return False  # some stores normalise them
    return any(f"{uri}/".startswith(prefix) for prefix in prefixes)
