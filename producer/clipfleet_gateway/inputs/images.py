"""An image as it is written in a body: URL, data: URI, base64, own file, or a place that the key may read."""

from __future__ import annotations

import binascii
import re
from urllib.parse import unquote_to_bytes

from clipfleet_gateway.errors import ApiError, invalid
from clipfleet_gateway.inputs.asked import Item
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.keys.sources import require_readable

MOST_IMAGE_BYTES = 32 << 20  # of an image in a body, decoded
_MOST_ADDRESS_CHARACTERS = 8192
_OWN_FILE = re.compile(r"file-[A-Za-z0-9_-]{1,80}")
_IMAGE_URI = re.compile(r"data:image/[\w.+-]+[;,]", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*")
_BLANKS = b" \t\n\v\f\r"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_JPEG_IN_BASE64 = "/9j/"  # the one image format whose base64 looks like a path


def is_image_uri(text: str) -> bool:
    """Whether a string is an image, whatever the body says it is."""
    return _IMAGE_URI.match(text) is not None


def own_file_id(item: Item) -> str | None:
    """The id of the own file that an item names; None if it names none."""
    address = "" if isinstance(item, str) else item.get("url", "")
    return address if _OWN_FILE.fullmatch(address) else None


def image_item(text: str, key: Key, param: str) -> Item:
    """The item of an image.

    Raises:
        ApiError: it is none, it is too large, or the key must not read it.
    """
    if text[:5].lower() == "data:":
        return {"bytes": _content(text, param)}
    if _OWN_FILE.fullmatch(text):
        return {"url": text}
    if not text.strip():
        raise invalid(f"{param} is empty", param, "empty_input")
    is_path = text.startswith("/") and not text.startswith(_JPEG_IN_BASE64)
    if not is_path and (data := _decoded(text, param)) is not None:
        return {"bytes": data}
    if len(text) > _MOST_ADDRESS_CHARACTERS:
        raise invalid(
            f"{param} is neither valid base64 nor an address: it has {len(text):,} characters",
            param,
            "invalid_image",
        )
    if not is_path and _BASE64.fullmatch(text):
        raise _invalid_base64(param)
    require_readable(text, key, param)
    return {"url": text}


def _content(uri: str, param: str) -> bytes:
    head, comma, data = uri.partition(",")
    if not comma:
        raise invalid(f"{param} is a data: URI without a comma", param, "invalid_image")
    if not head.lower().rstrip().endswith(";base64"):
        return _bounded(unquote_to_bytes(data), param)
    decoded = _decoded(data if "%" not in data else unquote_to_bytes(data).decode("latin-1"), param)
    if decoded is None:
        raise _invalid_base64(param)
    return decoded


def _decoded(data: str, param: str) -> bytes | None:
    """The content that base64 spells; None if it is no base64. Quick: other threads wait meanwhile."""
    if len(data) > 2 * MOST_IMAGE_BYTES:
        raise _too_large(param)
    try:
        return _bounded(binascii.a2b_base64(data, strict_mode=True), param)
    except ValueError:  # with blanks, of the alphabet for URLs, or without padding
        pass
    try:
        packed = data.encode("ascii").translate(_TO_STANDARD, _BLANKS).rstrip(b"=")
        return _bounded(binascii.a2b_base64(packed + b"=" * (-len(packed) % 4), strict_mode=True), param)
    except ValueError:
        return None


def _invalid_base64(param: str) -> ApiError:
    return invalid(f"{param} is not valid base64", param, "invalid_base64")


def _bounded(data: bytes, param: str) -> bytes:
    if len(data) > MOST_IMAGE_BYTES:
        raise _too_large(param)
    if not data:
        raise invalid(f"{param} is an empty image", param, "empty_input")
    return data


def _too_large(param: str) -> ApiError:
    most = f"{MOST_IMAGE_BYTES >> 20} MiB"
    return invalid(f"{param} has more than {most}: send a URL, or a smaller image", param, "image_too_large")
