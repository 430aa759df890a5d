"""Broken and hostile images, made from nothing: bombs, lies, loops, polyglots, and what is no image.

`HOSTILE` names each kind, how it is made and what its row must say. What is an image after all shows `CORE`,
unless noted, and `is_core` knows it again.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from clipfleet.contract.jobs import ErrorCode
from tests.support.images import encoded

MB = 1_000_000
CORE_COLOUR = (200, 60, 30)
CORE = Image.new("RGB", (64, 48), CORE_COLOUR)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_START = b"II*\0\x08\0\0\0"
_DIRECTORY = 8 + 64 * 48 * 3  # of `CORE` as a TIFF


def is_core(pixels: np.ndarray) -> bool:
    """Whether these pixels (height, width, 3) show `CORE`, give or take what a JPEG loses."""
    return bool(np.abs(pixels.astype(int) - CORE_COLOUR).max() <= 12)


# PNG


def chunk(kind: bytes, data: bytes = b"", *, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def zeros_deflated(count: int) -> bytes:
    """A zlib stream of `count` zeros, made in no time: one block flushed and repeated."""
    block_size = 1 << 20
    deflate = zlib.compressobj(9, wbits=-15)
    block = deflate.compress(bytes(block_size)) + deflate.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, wbits=-15)
    rest = last.compress(bytes(count % block_size)) + last.flush()
    checksum = ((count % 65521) << 16) | 1  # Adler-32 of nothing but zeros
    return b"\x78\xda" + block * (count // block_size) + rest + struct.pack(">I", checksum)


def png_header(width: int, height: int, *, bits: int = 8, colour_type: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlace))


def _headed_png(width: int, height: int, **options: int) -> bytes:
    return _PNG_SIGNATURE + png_header(width, height, **options)


def _png_start(width: int, height: int, **options: int) -> bytes:
    """Next to nothing behind the header."""
    return _headed_png(width, height, **options) + chunk(b"IDAT", b"x")


def black_png(width: int, height: int, *, colour_type: int = 2) -> bytes:
    """All pixels are there, in next to no bytes."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    data = chunk(b"IDAT", zeros_deflated(height * (1 + width * channels)))
    return _headed_png(width, height, colour_type=colour_type) + data + chunk(b"IEND")


def _png_of_16_bits() -> bytes:
    line = b"\0" + b"".join(bytes([value, 0]) for value in CORE_COLOUR) * 64
    return _headed_png(64, 48, bits=16) + chunk(b"IDAT", zlib.compress(line * 48)) + chunk(b"IEND")


def core_png(*, before: bytes = b"", after: bytes = b"") -> bytes:
    """`CORE` with chunks put in before and after its data."""
    data = encoded(CORE, "PNG")
    start, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    return data[:start] + before + data[start:end] + after + data[end:]


def _png_with_wrong_crc(kind: bytes) -> bytes:
    data = bytearray(core_png(before=chunk(b"tEXt", b"Title\0x")))
    start = data.index(kind)
    size = struct.unpack(">I", data[start - 4 : start])[0]
    data[start + 4 + size] ^= 0xFF
    return bytes(data)


def _png_bomb_in_text(kind: bytes, head: bytes) -> bytes:
    return core_png(before=chunk(kind, head + zeros_deflated(500 * MB)))


def _indexed_png(indices: bytes, palette: bytes | None) -> bytes:
    """64 x 48 of 8-bit indices."""
    lines = b"".join(b"\0" + indices[row * 64 : row * 64 + 64] for row in range(48))
    plte = b"" if palette is None else chunk(b"PLTE", palette)
    return _headed_png(64, 48, colour_type=3) + plte + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND")


def _text(data: bytes) -> bytes:
    return chunk(b"zTXt", b"T\0\0" + data)


def _animated_png(frames: int) -> bytes:
    """`CORE`, then many frames that must not be read."""
    control = struct.pack(">IIIIIHHBB", 0, 64, 48, 0, 0, 1, 10, 0, 0)
    before = chunk(b"acTL", struct.pack(">II", frames, 0)) + chunk(b"fcTL", control)
    parts = []
    for number in range(1, 2 * frames - 1, 2):
        parts.append(chunk(b"fcTL", struct.pack(">I", number) + control[4:]))
        parts.append(chunk(b"fdAT", struct.pack(">I", number + 1) + zlib.compress(b"broken")))
    return core_png(before=before, after=b"".join(parts))


# JPEG


def segment(marker: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def core_jpeg(*, before: bytes = b"", **options: object) -> bytes:
    """`CORE` with segments put in behind its first two bytes."""
    return _with_segments(encoded(CORE, "JPEG", quality=95, **options), before)


def _with_segments(data: bytes, before: bytes) -> bytes:
    return data[:2] + before + data[2:]


def _cmyk_jpeg(before: bytes = b"") -> bytes:
    return _with_segments(encoded(CORE.convert("CMYK"), "JPEG", quality=95), before)


def _in_scans(image: Image.Image) -> bytes:
    return encoded(image, "JPEG", progressive=True, subsampling="4:4:4")


def _sized(data: bytes, start_of_frame: bytes, width: int, height: int) -> bytes:
    changed = bytearray(data)
    start = changed.index(start_of_frame)
    changed[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(changed)


def grey_jpeg(width: int, height: int, *, with_data: bool = True) -> bytes:
    """All blocks are there: of 6 bits each, the shortest that standard tables have."""
    data = encoded(Image.new("L", (16, 16), 128), "JPEG", optimize=False)
    data = _sized(data, b"\xff\xc0", width, height)
    start = data.index(b"\xff\xda")
    start += 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]
    blocks = -(-width // 8) * -(-height // 8) if with_data else 0
    return data[:start] + b"\x28\xa2\x8a" * -(-blocks // 4) + b"\xff\xd9"


def jpeg_of_many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each goes over the whole image."""
    data = encoded(Image.new("RGB", (width, height), CORE_COLOUR), "JPEG", progressive=True, quality=95)
    last = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, last)
    again = data[tables:-2]
    return data[:-2] + again * scans + b"\xff\xd9"


def _jpeg_with_bad_tables() -> bytes:
    data = bytearray(encoded(CORE, "JPEG"))
    start = data.index(b"\xff\xc4")
    data[start + 5 : start + 21] = b"\xff" * 16  # 255 codes of each length
    return bytes(data)


def _exif_of_nonsense() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 4711
    return exif.tobytes()


def _exif(exif: bytes) -> bytes:
    """In segments, as Pillow joins them again."""
    pieces = [exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    return b"".join(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces)


def _greedy_exif(claimed: int, behind: int = 0) -> bytes:
    """Thousands of tags, each of which claims all the bytes there are."""
    tags = b"".join(struct.pack("<HHII", tag + 1, 7, claimed, 0) for tag in range(5000))
    return _exif(b"II*\0" + struct.pack("<IH", 8, 5000) + tags + bytes(4 + behind))


def _profile_in_segments(size: int) -> bytes:
    pieces = -(-size // 65_000)
    return b"".join(
        segment(0xE2, b"ICC_PROFILE\0" + bytes([number + 1, pieces]) + bytes(65_000))
        for number in range(pieces)
    )


# GIF


def _gif_header(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(CORE_COLOUR) + b"\0\0\0"


def blocks(data: bytes, size: int = 255) -> bytes:
    """Data in the small blocks of a GIF, closed."""
    parts = (data[start : start + size] for start in range(0, len(data), size))
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def gif_frame(width: int, height: int, *, left: int = 0, top: int = 0, clears: int | None = None) -> bytes:
    """A frame of colour 0 in one code per pixel, or as few as asked for."""
    count = width * height if clears is None else clears
    # A code of three bits per pixel, cleared before the codes would grow: clear, 0, 0, clear, 0, 0, ...
    bits, filled, out = 0, 0, bytearray()
    codes = [4, 0, 0] * (count // 2) + [4, 0] * (count % 2) + [5]
    for code in codes:
        bits |= code << filled
        filled += 3
        while filled >= 8:
            out.append(bits & 0xFF)
            bits >>= 8
            filled -= 8
    out.append(bits & 0xFF)
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\2" + blocks(bytes(out))


def core_gif(*, before: bytes = b"", after: bytes = b"") -> bytes:
    return _gif_header(64, 48) + before + gif_frame(64, 48) + after + b";"


# WebP


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_extended(width: int, height: int, flags: int = 0) -> bytes:
    return bytes([flags, 0, 0, 0]) + _u24(width - 1) + _u24(height - 1)


def _u24(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def _core_webp_chunk(*, lossless: bool = True) -> tuple[bytes, bytes]:
    data = encoded(CORE, "WEBP", lossless=lossless, quality=90)
    return data[12:16], data[20:]


def _animated_webp(frames: int) -> bytes:
    kind, data = _core_webp_chunk()
    inner = kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    frame = _u24(0) + _u24(0) + _u24(63) + _u24(47) + _u24(10) + b"\0" + inner
    return riff((b"VP8X", _webp_extended(64, 48, flags=2)), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * frames)


def _webp_that_lies(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    return riff((b"VP8X", _webp_extended(width, height)), _core_webp_chunk(), *more)


def _webp_with_profile_and_exif() -> bytes:
    header, large = (b"VP8X", _webp_extended(64, 48, flags=0x28)), bytes(10 * MB)
    return riff(header, (b"ICCP", large), _core_webp_chunk(), (b"EXIF", large))


def _black_webp(side: int) -> bytes:
    return encoded(Image.new("RGB", (side, side)), "WEBP", lossless=True, quality=0, method=0)


# TIFF


def tiff(tags: Mapping[int, tuple[int, list[int]]], data: bytes = b"", *, next_directory: int = 0) -> bytes:
    """A little-endian TIFF: data from offset 8, then the directory with (type, values) by tag."""
    sizes = {1: "B", 3: "H", 4: "I"}
    start = 8 + len(data) + len(data) % 2
    entries, values = bytearray(), bytearray()
    values_start = start + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        kind, numbers = tags[tag]
        packed = struct.pack(f"<{len(numbers)}{sizes[kind]}", *numbers)
        if len(packed) > 4:
            place = struct.pack("<I", values_start + len(values))
            values += packed + b"\0" * (len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + place
    directory = struct.pack("<H", len(tags)) + bytes(entries) + struct.pack("<I", next_directory)
    return b"II*\0" + struct.pack("<I", start) + data + b"\0" * (len(data) % 2) + directory + values


def _many_tags(count: int) -> dict[int, tuple[int, list[int]]]:
    """Tags that mean nothing: neither other directories nor another format."""
    return {tag: (4, [1]) for tag in range(1000, 1000 + count) if tag not in (34_665, 34_853, 48_129)}


def _rgb_tags(width: int, height: int, size: int) -> dict[int, tuple[int, list[int]]]:
    numbers = {256: width, 257: height, 273: 8, 278: height, 279: size}
    shorts = {258: [8, 8, 8], 259: [1], 262: [2], 277: [3]}
    return {tag: (4, [value]) for tag, value in numbers.items()} | {tag: (3, v) for tag, v in shorts.items()}


def _core_tiff(extra: Mapping[int, tuple[int, list[int]]] | None = None, *, next_directory: int = 0) -> bytes:
    pixels = bytes(CORE_COLOUR) * (64 * 48)
    return tiff(_rgb_tags(64, 48, len(pixels)) | dict(extra or {}), pixels, next_directory=next_directory)


def _tiff_of_a_million_strips() -> bytes:
    return _core_tiff({273: (4, [8] * 1_000_000), 278: (4, [1]), 279: (4, [3] * 1_000_000)})


def _big_tiff_with_exif(tags: int) -> bytes:
    """`CORE` as a BigTIFF with a second directory of many tags that Pillow reads after the image."""
    pixels = bytes(CORE_COLOUR) * (64 * 48)
    exif_start = 16 + len(pixels)
    exif = struct.pack("<Q", tags) + struct.pack("<HHQQ", 40_000, 4, 1, 1) * tags + bytes(8)
    values = {256: 64, 257: 48, 258: 0, 259: 1, 262: 2, 273: 16, 277: 3, 278: 48, 279: len(pixels)}
    values[34_665] = exif_start
    entries = b"".join(
        struct.pack("<HHQ", tag, 3, 3) + struct.pack("<HHHH", 8, 8, 8, 0)
        if tag == 258
        else struct.pack("<HHQQ", tag, 4, 1, value)
        for tag, value in values.items()
    )
    directory = struct.pack("<Q", len(values)) + entries + bytes(8)
    return b"II+\0\x08\0\0\0" + struct.pack("<Q", exif_start + len(exif)) + pixels + exif + directory


def deflated_tiff(width: int, height: int, *, tile: int | None = None) -> bytes:
    """Black, compressed; in one strip or in tiles of one size that all are the same bytes."""
    size = height * width * 3 if tile is None else tile * tile * 3
    data = zeros_deflated(size)
    tags = _rgb_tags(width, height, len(data)) | {259: (3, [8])}
    if tile is not None:
        count = -(-width // tile) * -(-height // tile)
        for tag in (273, 278, 279):
            del tags[tag]
        tags |= {322: (4, [tile]), 323: (4, [tile]), 324: (4, [8] * count), 325: (4, [len(data)] * count)}
    return tiff(tags, data)


def _tiff_of_greedy_tags(count: int) -> bytes:
    """Every tag's value is the whole file, several times over if one kept them all."""
    filler = bytes(4 * MB)
    data = _core_tiff()
    start = struct.unpack("<I", data[4:8])[0]
    known = struct.unpack("<H", data[start : start + 2])[0]
    entries = data[start + 2 : start + 2 + 12 * known]
    greedy = b"".join(struct.pack("<HHII", 40_000 + tag, 7, len(filler), 8) for tag in range(count))
    directory = struct.pack("<H", known + count) + entries + greedy + bytes(4)
    return b"II*\0" + struct.pack("<I", len(data) + len(filler)) + data[8:] + filler + directory


# BMP


def bmp(width: int, height: int, data: bytes = b"", *, bits: int = 24, compression: int = 0) -> bytes:
    palette = bytes([CORE_COLOUR[2], CORE_COLOUR[1], CORE_COLOUR[0], 0]) * (1 << bits) if bits <= 8 else b""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + palette + data


def _bmp_of_runs(width: int, height: int, data: bytes) -> bytes:
    return bmp(width, height, data, bits=8, compression=1)


# AVIF and HEIF


def _boxed(image_format: str, *, size: tuple[int, int] | None = None) -> bytes:
    """`CORE`; its container may say another size. Other sides would be padded and cropped by a second box."""
    data = encoded(CORE.resize((64, 64)), image_format)
    if size is None:
        return data
    start = data.index(b"ispe") + 8
    return data[:start] + struct.pack(">II", *size) + data[start + 8 :]


def _box(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


# Others


def _zip_of(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def _noise(size: int, seed: int = 5) -> bytes:
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True)
class Hostile:
    """One kind of file, and what is due for it."""

    build: Callable[[], bytes]
    code: ErrorCode | None  # None: it is an image after all
    shows_core: bool


_CORE, _OTHER = "core", "other"
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
_HTML = b"<!DOCTYPE html><html><script>alert(1)</script></html>"

# What is due: an image that shows `CORE`, another image, or a code.
_KINDS: dict[str, dict[str, Callable[[], bytes]]] = {
    _CORE: {
        "png: a tEXt of 20 MB": lambda: core_png(before=chunk(b"tEXt", b"T\0" + b"x" * 20 * MB)),
        "png: EXIF of 20 MB": lambda: core_png(before=chunk(b"eXIf", b"II*\0\x08\0\0\0" + bytes(20 * MB))),
        "png: 16 bits a channel": _png_of_16_bits,
        "png: an animation of 10,000 frames": lambda: _animated_png(10_000),
        "png: with a web page behind it": lambda: core_png() + _HTML,
        "png: a web page in a text": lambda: core_png(before=chunk(b"tEXt", b"Comment\0" + _HTML)),
        "png: called a JPEG": core_png,
        "jpeg: CMYK": _cmyk_jpeg,
        "jpeg: profile of 10 MB": lambda: core_jpeg(before=_profile_in_segments(10 * MB)),
        "jpeg: EXIF of 20 MB": lambda: core_jpeg(before=_exif(_TIFF_START + bytes(20 * MB))),
        "jpeg: EXIF whose tags claim everything": lambda: core_jpeg(before=_greedy_exif(60_000)),
        "jpeg: EXIF whose tags claim everything, in four colours": lambda: _cmyk_jpeg(_greedy_exif(MB, MB)),
        "jpeg: orientation of 4711": lambda: core_jpeg(exif=_exif_of_nonsense()),
        "jpeg: of two images (MPO)": lambda: encoded(CORE, "MPO", save_all=True, append_images=[CORE]),
        "jpeg: with a ZIP archive behind it": lambda: core_jpeg() + _zip_of("a.txt", b"hello"),
        "jpeg: a web page in its comment": lambda: core_jpeg(before=segment(0xFE, _HTML)),
        "jpeg: called a PNG": core_jpeg,
        "gif: an animation of 10,000 frames": lambda: core_gif(after=gif_frame(64, 48) * 10_000),
        "gif: a comment of 10 MB": lambda: core_gif(before=b"!\xfe" + blocks(bytes(10 * MB))),
        "gif: a script behind its header": lambda: core_gif() + b"/*alert(1)*/=1;",
        "webp: an animation of 10,000 frames": lambda: _animated_webp(10_000),
        "webp: profile and EXIF of 20 MB": _webp_with_profile_and_exif,
        "webp: a million chunks": lambda: _webp_that_lies(64, 48, *[(b"abcd", b"")] * 1_000_000),
        "tiff: its directories go round in a circle": lambda: _core_tiff(next_directory=_DIRECTORY),
        "tiff: an image inside itself": lambda: _core_tiff(dict.fromkeys((330, 34_665), (4, [_DIRECTORY]))),
        "tiff: 5,000 tags of 4 MB each": lambda: _tiff_of_greedy_tags(5000),
        "tiff: 60,000 tags": lambda: _core_tiff(_many_tags(60_000)),
        "tiff: orientation of 4711": lambda: _core_tiff({274: (3, [4711])}),
        "tiff: a million tags of EXIF": lambda: _big_tiff_with_exif(1_000_000),
        "avif: with a web page behind it": lambda: _boxed("AVIF") + _HTML,
        "avif: a box of 20 MB behind it": lambda: _boxed("AVIF") + _box(b"free", bytes(20 * MB)),
        "heif: with a web page behind it": lambda: _boxed("HEIF") + _HTML,
        "heif: a box of 20 MB behind it": lambda: _boxed("HEIF") + _box(b"free", bytes(20 * MB)),
        "bmp: upside down": lambda: bmp(64, -48, bytes(reversed(CORE_COLOUR)) * (64 * 48)),
        "bmp: run lengths": lambda: _bmp_of_runs(64, 48, b"\x40\0\0\0" * 48 + b"\0\1"),
    },
    _OTHER: {
        "png: a bomb just below the limit of memory": lambda: black_png(6950, 6950),
        "png: a bomb with alpha just below the limit of memory": lambda: black_png(4920, 4920, colour_type=6),
        "png: no palette": lambda: _indexed_png(bytes(64 * 48), None),
        "png: indices beyond its palette": lambda: _indexed_png(_noise(64 * 48), bytes(CORE_COLOUR)),
        "jpeg: grey at the limit of pixels": lambda: grey_jpeg(10_000, 10_000),
        "jpeg: scans just below the limit of memory": lambda: _in_scans(Image.new("RGB", (4400, 4400))),
        "jpeg: Huffman codes called arithmetic": lambda: core_jpeg().replace(b"\xff\xc0", b"\xff\xc9", 1),
        "webp: a bomb just below the limit of memory": lambda: _black_webp(3500),
        "tiff: a bomb just below the limit of memory": lambda: deflated_tiff(4950, 4950),
    },
    ErrorCode.TOO_MANY_PIXELS: {
        "png: 50,000 x 50,000, only a header": lambda: _png_start(50_000, 50_000),
        "png: 50,000 x 50,000, with all its data": lambda: black_png(50_000, 50_000),
        "png: a bomb at the limit of pixels": lambda: black_png(10_000, 10_000),
        "png: a bomb with alpha at the limit of pixels": lambda: black_png(10_000, 10_000, colour_type=6),
        "png: a strip that the model makes large": lambda: encoded(Image.new("RGBA", (65_000, 400)), "PNG"),
        "png: sizes of 2^31": lambda: _png_start(1 << 31, 1 << 31),
        "png: sizes of 2^31 - 1": lambda: _png_start((1 << 31) - 1, (1 << 31) - 1),
        "png: 2^31 - 1 wide, one high": lambda: _png_start((1 << 31) - 1, 1),
        "jpeg: 50,000 x 50,000, only a header": lambda: grey_jpeg(50_000, 50_000, with_data=False),
        "jpeg: 50,000 x 50,000, with all its data": lambda: grey_jpeg(50_000, 50_000),
        "jpeg: scans at the limit of pixels": lambda: _sized(_in_scans(CORE), b"\xff\xc2", 10_000, 10_000),
        "gif: 65,535 x 65,535": lambda: _gif_header(65_535, 65_535) + gif_frame(4, 4) + b";",
        "gif: a frame beyond its screen": lambda: _gif_header(64, 48) + gif_frame(65_535, 65_535, clears=4),
        "webp: 16 million x 200": lambda: _webp_that_lies(1 << 24, 200),
        "webp: a canvas at the limit of pixels": lambda: _webp_that_lies(10_000, 10_000),
        "webp: a bomb": lambda: _black_webp(8000),
        "tiff: 65,000 x 65,000 in one strip": lambda: tiff(_rgb_tags(65_000, 65_000, 100), bytes(100)),
        "tiff: a bomb in one strip, at the limit of pixels": lambda: deflated_tiff(10_000, 10_000),
        "tiff: a bomb in tiles that are one and the same": lambda: deflated_tiff(20_000, 20_000, tile=512),
        "tiff: a small image in a huge tile": lambda: deflated_tiff(64, 48, tile=16_384),
        "avif: 10,000 x 10,000, only a header": lambda: _boxed("AVIF", size=(10_000, 10_000)),
        "heif: 10,000 x 10,000, only a header": lambda: _boxed("HEIF", size=(10_000, 10_000)),
        "heif: 50,000 x 50,000, only a header": lambda: _boxed("HEIF", size=(50_000, 50_000)),
        "bmp: 2^31 - 1 wide": lambda: bmp((1 << 31) - 1, (1 << 31) - 1),
        "bmp: negative width": lambda: bmp(-64, 48, bytes(64 * 48 * 3)),
        "bmp: the lowest height": lambda: bmp(64, -(1 << 31), bytes(100)),
        "bmp: run lengths, at the limit of pixels": lambda: _bmp_of_runs(10_000, 10_000, b"\xff\0" * 400_000),
        "bmp: run lengths that only end lines": lambda: _bmp_of_runs(10_000, 10_000, b"\1\0\0\0" * 10_000),
        "bmp: 100 million pixels in 24 bits that break off": lambda: bmp(10_000, 10_000, bytes(100)),
    },
    ErrorCode.BROKEN_IMAGE: {
        "png: no size": lambda: _png_start(0, 0),
        "png: wrong checksum of its header": lambda: _png_with_wrong_crc(b"IHDR"),
        "png: wrong checksum of a text": lambda: _png_with_wrong_crc(b"tEXt"),
        "png: a bomb in zTXt": lambda: _png_bomb_in_text(b"zTXt", b"Title\0\0"),
        "png: a bomb in iTXt": lambda: _png_bomb_in_text(b"iTXt", b"Title\0\1\0\0\0"),
        "png: a bomb in its profile": lambda: _png_bomb_in_text(b"iCCP", b"icc\0\0"),
        "png: thousands of texts": lambda: core_png(before=_text(zeros_deflated(MB)) * 3000),
        "png: two million chunks before the image": lambda: core_png(before=chunk(b"abCd") * 2_000_000),
        "png: two million chunks behind the image": lambda: core_png(after=chunk(b"abCd") * 2_000_000),
        "png: a length of 2^32 - 1": lambda: _headed_png(64, 48) + b"\xff\xff\xff\xffIDAT" + bytes(100),
        "png: a palette of 20 MB": lambda: _indexed_png(bytes(64 * 48), bytes(CORE_COLOUR) * 7_000_000),
        "png: unknown colour type": lambda: _png_start(64, 48, colour_type=5),
        "jpeg: 10,000 scans": lambda: jpeg_of_many_scans(1500, 1500, 10_000),
        "jpeg: 100,000 scans of a small image": lambda: jpeg_of_many_scans(64, 48, 100_000),
        "jpeg: no height, as if a DNL came": lambda: _sized(core_jpeg(), b"\xff\xc0", 64, 0),
        "jpeg: bad Huffman tables": _jpeg_with_bad_tables,
        "jpeg: lossless in name": lambda: core_jpeg().replace(b"\xff\xc0", b"\xff\xc3", 1),
        "jpeg: seven million empty segments": lambda: core_jpeg(before=segment(0xEF) * 7_000_000),
        "jpeg: seven million empty segments, in four colours": lambda: _cmyk_jpeg(segment(0xEF) * 7_000_000),
        "jpeg: 25 MB of filling before the image": lambda: core_jpeg(before=b"\xff" * 25 * MB),
        "jpeg: 25 MB of filling and no image": lambda: b"\xff\xd8" + b"\xff" * 25 * MB,
        "jpeg: 25 MB of zeros before the image": lambda: core_jpeg(before=segment(0xEF) + bytes(25 * MB)),
        "jpeg: 25 MB of zeros and no image": lambda: b"\xff\xd8\xff\xe0\0\2" + bytes(25 * MB),
        "jpeg: nothing but its first bytes": lambda: b"\xff\xd8\xff",
        "jpeg: noise behind its first bytes": lambda: b"\xff\xd8\xff\xe0" + _noise(100_000),
        "gif: a comment of ten million blocks": lambda: core_gif(before=b"!\xfe" + b"\1x" * 10 * MB + b"\0"),
        "gif: six million extensions": lambda: core_gif(before=b"!\x01\x01x\0" * 6_000_000),
        "gif: codes that never end": lambda: _gif_header(64, 48) + gif_frame(64, 48, clears=20),
        "gif: no frame": lambda: _gif_header(64, 48) + b";",
        "webp: a canvas that is not the image's": lambda: _webp_that_lies(640, 480),
        "webp: a size of 4 GB": lambda: b"RIFF\xff\xff\xff\xffWEBPVP8X\xff\xff\xff\xff" + bytes(100),
        "tiff: a million strips": _tiff_of_a_million_strips,
        "tiff: thousands of samples per pixel": lambda: _core_tiff({277: (3, [60_000])}),
        "tiff: a strip outside the file": lambda: _core_tiff({273: (4, [0xFFFFFFF0])}),
        "tiff: no directory": lambda: b"II*\0\xff\xff\xff\xff" + bytes(100),
        "tiff: a directory behind 2^64 bytes": lambda: b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(100),
        "tiff: a directory of 2^64 tags": lambda: b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 100,
        "tiff: a directory that is the header": lambda: b"II*\0\0\0\0\0" + bytes(100),
        "avif: 50,000 x 50,000, only a header": lambda: _boxed("AVIF", size=(50_000, 50_000)),
        "avif: no size": lambda: _boxed("AVIF", size=(0, 0)),
        "avif: nothing but its first box": lambda: _boxed("AVIF")[:32],
        "heif: no size": lambda: _boxed("HEIF", size=(0, 0)),
        "heif: nothing but its first box": lambda: _boxed("HEIF")[:28],
        "heif: a million boxes behind it": lambda: _boxed("HEIF") + _box(b"free") * 1_000_000,
        "bmp: 20 MB of run lengths that say nothing": lambda: _bmp_of_runs(64, 48, b"\0\2\0\0" * 5_000_000),
    },
    ErrorCode.FORMAT_REFUSED: {
        "refused: SVG": lambda: _SVG,
        "refused: PDF": lambda: encoded(CORE, "PDF"),
        "refused: PostScript": lambda: encoded(CORE, "EPS"),
        "refused: ICO": lambda: encoded(CORE, "ICO"),
        "refused: PPM": lambda: b"P6\n50000 50000\n255\n",
        "refused: video": lambda: b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
    },
    ErrorCode.NOT_AN_IMAGE: {
        "bmp: a header of 4 GB": lambda: b"BM" + bytes(12) + b"\xff" * 40,
        "nothing: one byte": lambda: b"\xff",
        "nothing: zeros": lambda: bytes(100_000),
        "nothing: noise": lambda: _noise(100_000),
        "nothing: a text": lambda: b"Not found\n",
        "nothing: a web page": lambda: _HTML,
        "nothing: a web page with an image behind it": lambda: _HTML + core_png(),
        "nothing: a ZIP archive": lambda: _zip_of("a.png", core_png()),
        "nothing: a compressed image": lambda: gzip.compress(core_png()),
        "nothing: a pickle": lambda: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    },
    ErrorCode.EMPTY: {
        "nothing: zero bytes": lambda: b"",
    },
}


def _pieces() -> dict[str, Callable[[], bytes]]:
    """Each format broken off at many places."""
    texture = Image.effect_noise((320, 240), 60).convert("RGB")
    found = {}
    for name in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "HEIF"):
        whole = encoded(texture, name, **({"compression": "tiff_lzw"} if name == "TIFF" else {}))
        for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
            piece = whole[: int(len(whole) * share)]
            found[f"{name.lower()}: broken off after {share:.0%}"] = lambda piece=piece: piece
    return found


_KINDS[ErrorCode.BROKEN_IMAGE] |= _pieces()

HOSTILE: dict[str, Hostile] = {
    name: Hostile(build, due if isinstance(due, ErrorCode) else None, due == _CORE)
    for due, kinds in _KINDS.items()
    for name, build in kinds.items()
}
