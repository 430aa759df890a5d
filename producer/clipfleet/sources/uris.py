"""Names of images as text: URLs, and a reversible form of local paths."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

_SCHEME = r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|data:)"
_LEADING_DOT = r"^(?:\./+)+"


def has_scheme(text: str) -> bool:
    """Whether text is a URL: `https://...`, `s3://...`, `data:...`. A path may contain a colon."""
    return re.match(_SCHEME, text) is not None


def local_uri(path: str) -> str:
    """Return the absolute path, or a percent-encoded `file://` URL if it is not UTF-8.

    Args:
        path: absolute, undecodable bytes as lone surrogates (as `os.fsdecode` gives them).
    """
    return path if _is_unicode(path) else "file://" + quote_from_bytes(os.fsencode(path))


def local_path(uri: str) -> str:
    """Invert `local_uri`; anything but a `file://` URL is taken as a path."""
    if uri[:7].lower() != "file://":
        return uri
    return os.fsdecode(unquote_to_bytes(uri[7:].removeprefix("localhost")))


def utf8_name(name: str) -> str:
    """Return a file name as valid text: unchanged, or percent-encoded if it is not UTF-8."""
    return name if _is_unicode(name) else quote_from_bytes(os.fsencode(name))


def without_userinfo(uri: str) -> str:
    """The URI without `user:password@`."""
    if "@" not in uri or "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        scheme, _, rest = uri.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def base_of(base_uri: str) -> str:
    """Normalise the base that a user gives to a prefix for relative names.

    A relative folder becomes absolute. A slash is added, unless the base ends in one, or in a query that
    needs a value (`https://host/image?name=`).
    """
    if not has_scheme(base_uri):
        path = Path(base_uri)
        with suppress(RuntimeError):  # no such user or home: an ordinary name
            path = path.expanduser()
        base_uri = str(path.absolute())
    return base_uri if base_uri.endswith(("/", "=")) else base_uri + "/"


def absolute_uris(uris: pa.Array, base: str) -> pa.Array:
    """Prefix the relative entries of a list with `base`; keep URLs, absolute paths and empty entries.

    Args:
        uris: strings.
        base: an absolute folder or a URI with a trailing slash; empty: change nothing.
    """
    if not base:
        return uris
    settled = pc.or_(pc.match_substring_regex(uris, _SCHEME), pc.match_substring_regex(uris, "^(/|$)"))
    if pc.all(settled, min_count=0).as_py():
        return uris
    relative = pc.replace_substring_regex(uris, _LEADING_DOT, "")
    if _is_unicode(base):
        absolute = pc.binary_join_element_wise(base, relative, "")
    else:
        absolute = pa.array([local_uri(base + name) for name in relative.to_pylist()], pa.string())
    return pc.if_else(settled, uris, absolute)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
