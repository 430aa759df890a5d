"""Walk the outline of a file before any parser reads it, and refuse what would be slow or large to decode.

Pillow steps through the pieces of a file in Python, and libjpeg goes over the whole image for every scan:
millions of either fit into a small file. Nothing is decoded here; contents of pieces are skipped.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.decode.formats import END_OF_IMAGE, FRAME_MARKERS, START_OF_SCAN
from clipfleet_worker.failures import ItemFailure

# Memory that one image may take. A photograph of 12 megapixels passes in every format.
DEFAULT_MAX_DECODE_BYTES = 187 << 20

# Segments, chunks, blocks, and bytes that belong to none: in the worst case a tenth of a second in Pillow.
MAX_PIECES = 65_536

# Ten or twelve scans are usual. The largest image may have 16, smaller ones more: about two seconds.
MAX_SCANS = 1000
MAX_SCANNED_PIXELS = 1_600_000_000

_PNG_START = 8
_PNG_CHUNK_BYTES = 12  # of an empty one
_GIF_START = 13
_TIFF_PLACES = (273, 324)  # where strips, or tiles, are
_MARKER = re.compile(rb"\xff+")
_MARKER_IN_SCAN = re.compile(rb"\xff+[^\xff\x00\xd0-\xd7]")
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
# Without a length, as in Pillow: restarts, start and end, and reserved markers.
_BARE_MARKERS = frozenset({0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_COEFFICIENT_BYTES = 2
_BLOCK = 8


def check_outline(data: bytes, image_format: str) -> None:
    """Refuse files of too many pieces.

    Raises:
        ItemFailure: `broken_image`.
    """
    if image_format == "PNG":
        _check_png(data)
    elif image_format == "GIF":
        _check_gif(data)
    elif image_format == "TIFF":
        _check_tiff(data)
    elif image_format == "HEIF":
        _check_heif(data)


def _check_pieces(pieces: int, what: str) -> None:
    if pieces > MAX_PIECES:
        raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"{what}: more than {MAX_PIECES}")


def _check_png(data: bytes) -> None:
    """Up to the end of the first image: the rest of an animation is not read."""
    if len(data) < _PNG_START + MAX_PIECES * _PNG_CHUNK_BYTES:
        return
    position, pieces, is_in_image = _PNG_START, 0, False
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND" or (kind == b"fcTL" and is_in_image):
            return
        is_in_image = is_in_image or kind == b"IDAT"
        pieces += 1
        _check_pieces(pieces, "chunks of this PNG")
        position += _PNG_CHUNK_BYTES + size


def _check_gif(data: bytes) -> None:
    """Up to the first frame."""
    flags = data[10] if len(data) > 10 else 0
    position = _GIF_START + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    pieces = 0
    while position < len(data) and data[position] not in b",;":
        pieces += 1
        _check_pieces(pieces, "blocks before the first frame of this GIF")
        if data[position] != ord("!"):
            position += 1
            continue
        position += 2
        while position < len(data) and data[position]:
            pieces += 1
            _check_pieces(pieces, "blocks before the first frame of this GIF")
            position += 1 + data[position]
        position += 1


def _check_tiff(data: bytes) -> None:
    """The first directory: how many tags it has, and how many strips or tiles the image."""
    order, is_big = ("<" if data.startswith(b"I") else ">"), b"+" in data[2:4]
    word, number = ("Q", "Q") if is_big else ("I", "H")
    entry = struct.Struct(f"{order}HH{word}{word}")
    try:
        (start,) = struct.unpack_from(order + word, data, 8 if is_big else 4)
        (tags,) = struct.unpack_from(order + number, data, start)
    except (struct.error, OverflowError):  # no directory there: Pillow reports it
        return
    _check_pieces(tags, "tags of this TIFF")
    start += struct.calcsize(order + number)
    whole = (len(data) - start) // entry.size
    for index in range(min(tags, whole)):
        tag, _, count, _ = entry.unpack_from(data, start + index * entry.size)
        if tag in _TIFF_PLACES:
            _check_pieces(count, "strips or tiles of this TIFF")


def _check_heif(data: bytes) -> None:
    """The boxes at the top: libheif shows a HEIF that breaks off without the tiles that it lacks."""
    position, pieces = 0, 0
    while position + 16 <= len(data):
        size, kind, large_size = struct.unpack_from(">I4sQ", data, position)
        size = large_size if size == 1 else size
        if size < 8:  # 0: up to the end of the file; else no box
            return
        pieces += 1
        _check_pieces(pieces, "boxes of this HEIF")
        position += size
        if kind == b"mdat" and position > len(data):
            raise ItemFailure(ErrorCode.BROKEN_IMAGE, "HEIF: the file breaks off within its pixels")


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP's canvas by its header; None if the header cannot be read."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    return None


def jpeg_coefficient_bytes(data: bytes) -> int:
    """Memory of the coefficients that libjpeg keeps between the scans of a JPEG; 0 for a single scan.

    Raises:
        ItemFailure: `broken_image` for too many segments, fill bytes or scans.
    """
    frame, is_progressive = b"", False
    position, pieces = 2, 0
    while True:
        found = _MARKER.search(data, position)
        end = len(data) if found is None else found.end()
        pieces += end - position
        _check_pieces(pieces, "segments and fill bytes of this JPEG")
        if end + 4 > len(data):
            return 0  # no scan: neither decoder makes an image of it
        marker, position = data[end], end + 1
        if marker == START_OF_SCAN:
            break
        if marker in _BARE_MARKERS:
            continue
        (size,) = struct.unpack_from(">H", data, position)
        if marker in FRAME_MARKERS:
            frame, is_progressive = data[position + 2 : position + size], marker in _PROGRESSIVE
        position += max(size, 2)
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        return 0
    height, width, components = struct.unpack_from(">HHB", frame, 1)
    if not is_progressive and data[position + 2] >= components:
        return 0
    _check_scans(data, position - 2, width * height)
    factors = [divmod(frame[7 + 3 * number], 16) for number in range(components)]
    return _COEFFICIENT_BYTES * sum(_component_pixels(width, height, factors))


def _component_pixels(width: int, height: int, factors: list[tuple[int, int]]) -> Iterator[int]:
    """Pixels in whole blocks of each component, by its sampling factors (across, down)."""
    most_across, most_down = (max((pair[side] for pair in factors), default=0) or 1 for side in (0, 1))
    for across, down in factors:
        yield _rounded_up(width * across / most_across) * _rounded_up(height * down / most_down)


def _rounded_up(size: float) -> int:
    return -int(-size // _BLOCK) * _BLOCK


def _check_scans(data: bytes, start: int, pixels: int) -> None:
    """Count the scans of a JPEG from its first one; each goes over the whole image."""
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // max(1, pixels))
    if data.count(b"\xff\xda", start) <= most:
        return
    position, scans, pieces = start, 0, 0
    while found := _MARKER_IN_SCAN.search(data, position):
        marker, position = data[found.end() - 1], found.end()
        if marker == END_OF_IMAGE:
            return
        scans, pieces = scans + (marker == START_OF_SCAN), pieces + 1
        if scans > most:
            raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"this JPEG has more than {most} scans")
        _check_pieces(pieces, "segments of this JPEG")
        if marker not in _BARE_MARKERS and position + 2 <= len(data):
            position += max(2, struct.unpack_from(">H", data, position)[0])
