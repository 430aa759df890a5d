"""What files are told to be by their first bytes: images of Pillow's own making, and others."""

from __future__ import annotations

import gzip
import io
import zipfile

import pytest
from PIL import features

from clipfleet_worker.decode.formats import ALLOWED_FORMATS, allowed_format, is_baseline_jpeg, is_png
from clipfleet_worker.failures import ItemFailure
from tests.support.images import encoded, make_image

IMAGE = make_image(1, 40, 30)


def box(kind: bytes, brands: bytes = b"") -> bytes:
    """The first box of an MP4 and its relatives."""
    body = b"ftyp" + kind + b"\0\0\2\0" + brands
    return (len(body) + 4).to_bytes(4, "big") + body + b"\0\0\0\x08free"


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", encoded(IMAGE))
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ALLOWED_FORMATS)
def test_what_is_read(image_format: str) -> None:
    assert allowed_format(encoded(IMAGE, image_format)) == image_format


@pytest.mark.parametrize(
    ("major", "compatible", "image_format"),
    [
        (b"avif", b"avifmif1miaf", "AVIF"),
        (b"avis", b"avifmsf1miaf", "AVIF"),
        (b"mif1", b"miafavif", "AVIF"),
        (b"msf1", b"avismiaf", "AVIF"),
        (b"heic", b"mif1heic", "HEIF"),
        (b"heix", b"mif1heix", "HEIF"),
        (b"hevc", b"msf1hevc", "HEIF"),
        (b"mif1", b"mif1heic", "HEIF"),
        (b"msf1", b"hevcheic", "HEIF"),
    ],
)
def test_brands(major: bytes, compatible: bytes, image_format: str) -> None:
    assert allowed_format(box(major, compatible)) == image_format


@pytest.mark.parametrize("big_tiff", [False, True])
def test_every_sort_of_tiff(big_tiff: bool) -> None:
    assert allowed_format(encoded(IMAGE, "TIFF", big_tiff=big_tiff)) == "TIFF"
    assert allowed_format(b"MM\0*" + b"\0" * 100) == "TIFF"


def refusal(data: bytes) -> str:
    with pytest.raises(ItemFailure) as caught:
        allowed_format(data)
    return str(caught.value)


REFUSED = {
    **{name: encoded(IMAGE, name) for name in ("ICO", "ICNS", "DDS", "PPM", "EPS", "PDF")},
    "JPEG 2000": encoded(IMAGE, "JPEG2000") if features.check("jpg_2000") else b"\xff\x4f\xff\x51",
    "PSD": b"8BPS\0\1" + bytes(20),
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
    "QOI": b"qoif" + bytes(10),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "CR2": b"II*\0\x10\0\0\0CR\2\0",
    "MP4 video": box(b"isom", b"isomiso2avc1mp41"),
    "QuickTime video": box(b"qt  "),
    "Matroska or WebM video": b"\x1a\x45\xdf\xa3\x9f\x42\x86",
    "AVI video": b"RIFF\x10\0\0\0AVI LIST",
    "MPEG video": b"\0\0\1\xba!",
    "Flash video": b"FLV\1\5",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name: str) -> None:
    expected = f"format_refused: {name} is not among the formats read here: JPEG, PNG"
    assert refusal(REFUSED[name]).startswith(expected)


@pytest.mark.parametrize(
    ("data", "what"),
    {
        b"<!DOCTYPE html><html><body>404</body></html>": "an HTML page",
        b"\xef\xbb\xbf\n <HTML><svg></svg></HTML>": "an HTML page",
        b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>': "an XML document",
        b'{"error": "gone"}': "a JSON document",
        b'[{"a": 1}]': "a JSON document",
        b"hello": "a text",
        b"BMW is no picture": "a text",
        zipped(): "a ZIP archive",
        gzip.compress(encoded(IMAGE)): "gzip-compressed data",
        b"\0" * 500: "no image format starts with these bytes",
        b"P": "a text",
    }.items(),
)
def test_what_is_no_image_says_what_it_is(data: bytes, what: str) -> None:
    assert refusal(data) == f"not_an_image: {what}"


@pytest.mark.parametrize(
    "data", [b"<svg>", b'<?xml version="1.0"?>\n<svg>', b'<!-- a comment --><svg width="4">']
)
def test_an_svg_may_begin_like_other_xml(data: bytes) -> None:
    assert refusal(data).startswith("format_refused: SVG")


@pytest.mark.parametrize(("image_format", "least"), [("JPEG", 2), ("PNG", 2), ("WEBP", 4), ("GIF", 4)])
def test_an_image_that_breaks_off_at_once_is_still_one(image_format: str, least: int) -> None:
    """Its row should say `broken_image`, which is not what a web page gets."""
    data = encoded(IMAGE, image_format)
    assert {allowed_format(data[:size]) for size in range(least, 40)} == {image_format}


def test_nothing_at_all() -> None:
    assert refusal(b"").startswith("empty: ")


class TestSimpleFormats:
    """What `ISOLATE_DECODE` reads in the process."""

    @pytest.mark.parametrize(
        "options",
        [{}, {"quality": 1}, {"subsampling": 2}, {"optimize": True}, {"icc_profile": b"x" * 70_000}],
    )
    def test_baseline_jpegs(self, options: dict[str, object]) -> None:
        assert is_baseline_jpeg(encoded(IMAGE, "JPEG", **options))
        assert is_baseline_jpeg(encoded(IMAGE.convert("CMYK"), "JPEG", **options))
        assert not is_baseline_jpeg(encoded(IMAGE, "JPEG", progressive=True, **options))

    @pytest.mark.parametrize("image_format", ["GIF", "WEBP", "TIFF", "BMP", "PNG"])
    def test_other_formats(self, image_format: str) -> None:
        data = encoded(IMAGE, image_format)
        assert not is_baseline_jpeg(data)
        assert is_png(data) == (image_format == "PNG")
