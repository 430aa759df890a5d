"""Recognise a file by its first bytes: only an allowed format ever reaches a parser.

Neither the file's name nor a server's content type counts. Nothing is decoded here.
"""

from __future__ import annotations

import re

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure

ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")  # as Pillow names them

_SNIFFED_BYTES = 1024

# Markers of JPEG.
_MARKER = 0xFF
_BASELINE = 0xC0
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the others are tables and reserved
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9

_TEXT_START = rb"(?:\xef\xbb\xbf)?\s*"
_HTML_TAG = rb"(?i:!doctype html|html|head|body)\b"

# How a file begins -> its format; the first line that matches counts. The file may end within the pattern.
_FORMATS: tuple[tuple[bytes, str], ...] = (
    (rb"\xff\xd8(?:\xff|\Z)", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n|\x89P[NG\r\n\x1a]{0,5}\Z", "PNG"),
    (rb"RIFF(?:.{4}WEBP|.{0,7}\Z)", "WEBP"),
    (rb"GIF8(?:[79](?:a|\Z)|\Z)", "GIF"),
    # Two letters may begin a text, so the size of the second header is checked, too: it is at offset 14.
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"II\*\0.{4}CR", "CR2"),
    (rb"II[*+]\0|MM\0[*+]|II\0\*|MM\*\0", "TIFF"),
    (rb"8BPS", "PSD"),
    (rb"\0\0\x01\0", "ICO"),
    (rb"\0\0\x02\0", "CUR"),
    (rb"icns", "ICNS"),
    (rb".{4}ftyp(?:avi[fs]|m[is]f1.{4}(?:.{4}){0,6}avi[fs])", "AVIF"),
    (rb".{4}ftyp(?:he[iv]|m[is]f1)", "HEIF"),  # HEIC is HEIF with HEVC inside
    (rb".{4}jP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000"),
    (rb".{4}JXL \r\n\x87\n|\xff\x0a", "JPEG XL"),
    (rb"DDS ", "DDS"),
    (rb"qoif", "QOI"),
    (rb"%!PS-Adobe|\xc5\xd0\xd3\xc6", "EPS"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?RADIANCE", "Radiance HDR"),
    (rb"SIMPLE  =", "FITS"),
    (rb"gimp xcf", "XCF"),
    (rb"/\* XPM \*/", "XPM"),
    (rb"\xd7\xcd\xc6\x9a", "WMF"),
    (rb"P[1-7]\s+(#[^\n]*\n\s*)*(\d|WIDTH)", "PPM"),
    (rb"%PDF-", "PDF"),
    (rb".{4}ftypqt  |.{4}(?:moov|mdat)", "QuickTime video"),
    (rb".{4}ftypcrx ", "CR3"),
    (rb".{4}ftyp", "MP4 video"),
    (rb"\x1a\x45\xdf\xa3", "Matroska or WebM video"),
    (rb"RIFF.{4}AVI ", "AVI video"),
    (rb"\0\0\x01[\xba\xb3]", "MPEG video"),
    (rb"FLV\x01", "Flash video"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media video"),
    (_TEXT_START + rb"<(?!" + _HTML_TAG + rb")(?:.*<)?svg\b", "SVG"),
)
_OTHER_FILES: tuple[tuple[bytes, str], ...] = (
    (_TEXT_START + rb"<" + _HTML_TAG, "an HTML page"),
    (_TEXT_START + rb"<[?!A-Za-z]", "an XML document"),
    (_TEXT_START + rb"[{\[]\s*[\[\]{}\"\d]", "a JSON document"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "gzip-compressed data"),
    (rb"[^\0-\x08\x0e-\x1f\x7f]+\Z", "a text"),
)


def _compiled(table: tuple[tuple[bytes, str], ...]) -> tuple[tuple[re.Pattern[bytes], str], ...]:
    return tuple((re.compile(beginning, re.DOTALL), name) for beginning, name in table)


_FORMAT_PATTERNS = _compiled(_FORMATS)
_OTHER_PATTERNS = _compiled(_OTHER_FILES)


def allowed_format(data: bytes) -> str:
    """Name of a file's format, one of `ALLOWED_FORMATS`.

    Raises:
        ItemFailure: `empty`, `not_an_image` or `format_refused`; the detail names the format. It never quotes
            the file: error messages must not let a job's submitter read files.
    """
    if not data:
        raise ItemFailure(ErrorCode.EMPTY, "no bytes")
    head = data[:_SNIFFED_BYTES]
    name = _first_match(_FORMAT_PATTERNS, head)
    if name is None:
        what = _first_match(_OTHER_PATTERNS, head) or "no image format starts with these bytes"
        raise ItemFailure(ErrorCode.NOT_AN_IMAGE, what)
    if name not in ALLOWED_FORMATS:
        raise ItemFailure(
            ErrorCode.FORMAT_REFUSED,
            f"{name} is not among the formats read here: {', '.join(ALLOWED_FORMATS)}",
        )
    return name


def _first_match(patterns: tuple[tuple[re.Pattern[bytes], str], ...], head: bytes) -> str | None:
    return next((name for pattern, name in patterns if pattern.match(head)), None)


def is_boxed(data: bytes) -> bool:
    """Whether this begins like an AVIF, a HEIF or an MP4; the codecs of all three are those of videos."""
    return data[4:8] == b"ftyp"


def is_png(data: bytes) -> bool:
    """Whether this is a PNG, animated or not."""
    return data.startswith(b"\x89PNG\r\n\x1a\n")


def is_baseline_jpeg(data: bytes) -> bool:
    """Whether this is a baseline JPEG: one pass, 8 bits, Huffman-coded."""
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    while position + 4 <= len(data) and data[position] == _MARKER:
        marker = data[position + 1]
        if marker == _MARKER:  # fill bytes
            position += 1
        elif marker in FRAME_MARKERS:
            return marker == _BASELINE
        elif marker in (START_OF_SCAN, END_OF_IMAGE):
            return False
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False
