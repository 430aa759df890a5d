"""Images that are written out in their URI: `data:image/png;base64,...` (RFC 2397)."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from clipfleet.contract import ErrorCode
from clipfleet_worker.failures import ItemFailure, too_many_bytes

_BLANKS = re.compile(rb"\s+")
_FROM_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")


def read_data_uri(uri: str, max_image_bytes: int) -> bytes:
    """The bytes that stand in it. The media type is not looked at, the bytes tell.

    As in a browser, base64 may lack its padding and have blanks in it.

    Raises:
        ItemFailure: `bad_uri` or `too_many_bytes`.
    """
    head, comma, content = uri.partition(",")
    if not comma:
        raise ItemFailure(ErrorCode.BAD_URI, "a data URI without the comma before its content")
    data = unquote_to_bytes(content)
    if head.rstrip().lower().endswith(";base64"):
        data = _from_base64(data)
    if len(data) > max_image_bytes:
        raise too_many_bytes(max_image_bytes)
    return data


def _from_base64(text: bytes) -> bytes:
    packed = _BLANKS.sub(b"", text).translate(_FROM_URL_ALPHABET).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        raise ItemFailure(ErrorCode.BAD_URI, f"a data URI that is not base64: {error}") from error
