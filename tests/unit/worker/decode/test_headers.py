"""Headers of images, whatever is in them: what they say is read, or refused with a code."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.decode.formats import (
    ALLOWED_FORMATS,
    END_OF_IMAGE,
    FRAME_MARKERS,
    START_OF_SCAN,
    allowed_format,
    is_baseline_jpeg,
)
from clipfleet_worker.decode.outline import check_outline, jpeg_coefficient_bytes, webp_size
from clipfleet_worker.failures import ItemFailure
from tests.support.hostile_files import riff, segment
from tests.support.images import encoded, photo

IMAGES = {name: encoded(photo(1, 40, 30), name) for name in ALLOWED_FORMATS}
IMAGES["progressive JPEG"] = encoded(photo(1, 40, 30), progressive=True)
BEFORE_A_FRAME = sorted(set(range(0xE0, 0xF0)) | {0xC4, 0xDB, 0xFE})  # applications, tables, comments
SIDES = st.integers(1, 40_000)  # one scan of the largest is within the limit of scanned pixels


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image of any format, cut off, or with some of its bytes overwritten."""
    data = bytearray(IMAGES[draw(st.sampled_from(sorted(IMAGES)))])
    for start, noise in draw(st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=8)), max_size=4)):
        data[start : start + len(noise)] = noise
    return bytes(data[: draw(st.integers(0, len(data)))])


@st.composite
def segments(draw: st.DrawFn) -> bytes:
    """What may stand before a JPEG's frame, fill bytes included."""
    kinds = st.tuples(st.sampled_from(BEFORE_A_FRAME), st.binary(max_size=50), st.integers(0, 3))
    found = draw(st.lists(kinds, max_size=5))
    return b"".join(b"\xff" * fill + segment(marker, body) for marker, body, fill in found)


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=200), damaged()))
def test_any_bytes_have_an_allowed_format_or_a_code(data: bytes) -> None:
    try:
        assert allowed_format(data) in ALLOWED_FORMATS
    except ItemFailure as failure:
        assert failure.error.code in (ErrorCode.EMPTY, ErrorCode.NOT_AN_IMAGE, ErrorCode.FORMAT_REFUSED)


@settings(max_examples=500)
@given(damaged())
def test_any_damaged_file_has_an_outline_or_is_broken(data: bytes) -> None:
    for image_format in ALLOWED_FORMATS:
        try:
            check_outline(data, image_format)
            assert jpeg_coefficient_bytes(data) >= 0
        except ItemFailure as failure:
            assert failure.error.code is ErrorCode.BROKEN_IMAGE
    width, height = webp_size(data) or (0, 0)
    assert 0 <= width <= 1 << 24 and 0 <= height <= 1 << 24


@given(segments(), st.sampled_from(sorted({*FRAME_MARKERS, START_OF_SCAN, END_OF_IMAGE})), st.data())
def test_a_jpeg_is_baseline_by_its_frame_whatever_comes_before(
    before: bytes, marker: int, data: st.DataObject
) -> None:
    head = b"\xff\xd8" + before

    assert is_baseline_jpeg(head + segment(marker, bytes(6))) is (marker == 0xC0)
    assert not is_baseline_jpeg(head[: data.draw(st.integers(0, len(head)))])


@given(segments(), SIDES, SIDES, st.booleans())
def test_the_coefficients_of_a_progressive_jpeg_are_those_of_whole_blocks(
    before: bytes, width: int, height: int, progressive: bool
) -> None:
    frame = struct.pack(">BHHB", 8, height, width, 1) + bytes((1, 0x11, 0))
    data = b"\xff\xd8" + before + segment(0xC2 if progressive else 0xC0, frame)
    data += segment(START_OF_SCAN, bytes((1, 1, 0, 0, 63, 0)))
    blocks = -(-width // 8) * -(-height // 8)

    assert jpeg_coefficient_bytes(data) == (blocks * 64 * 2 if progressive else 0)


@pytest.mark.parametrize("kind", ["VP8X", "VP8 ", "VP8L"])
@given(st.integers(1, 0x3FFF), st.integers(1, 0x3FFF))
def test_the_size_of_a_webp_is_that_of_its_header(kind: str, width: int, height: int) -> None:
    bodies = {
        "VP8X": bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
        "VP8 ": bytes(6) + struct.pack("<HH", width, height),
        "VP8L": b"\x2f" + (width - 1 | (height - 1) << 14).to_bytes(4, "little") + bytes(5),
    }

    assert webp_size(riff((kind.encode(), bodies[kind]))) == (width, height)
