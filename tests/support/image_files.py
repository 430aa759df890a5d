"""Files of every sort that is read, from an image: formats, modes, bits, compressions, frames, extras."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

from tests.support.images import encoded

Encode = Callable[[Image.Image], bytes]

_ORIENTATION = 0x0112
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: grey, grey with alpha, colours, colours with alpha
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(pixels: np.ndarray, *, interlaced: bool = False) -> bytes:
    """A PNG of pixels (height, width, channels), uint8 or uint16: Pillow writes no such sorts."""
    height, width, channels = pixels.shape
    bits = pixels.dtype.itemsize * 8
    header = struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPES[channels], 0, 0, interlaced)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    lines = b"".join(
        b"\0" + row.astype(f">u{pixels.dtype.itemsize}").tobytes()  # no filter
        for left, top, across, down in passes
        for row in pixels[top::down, left::across]
        if row.size
    )
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _as(mode: str, image_format: str, **options: object) -> Encode:
    return lambda image: encoded(image.convert(mode), image_format, **options)


def _with_alpha(image: Image.Image, mode: str = "RGBA") -> Image.Image:
    image = image.convert("RGB")
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image.convert(mode)


def _palette(image: Image.Image) -> Image.Image:
    return image.convert("P", palette=Image.Palette.ADAPTIVE, colors=32)


def _with_exif(image_format: str, **options: object) -> Encode:
    """Also the container of an AVIF says then that it is turned."""
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    return lambda image: encoded(image, image_format, exif=exif, **options)


def _animated(image_format: str, **options: object) -> Encode:
    def encode(image: Image.Image) -> bytes:
        other = Image.new(image.mode, image.size, "red")
        return encoded(image, image_format, save_all=True, append_images=[other], **options)

    return encode


def _adobe(transform: int | None) -> Encode:
    """A JPEG in four colours as another program might mark it: without Adobe's segment, or as YCCK."""

    def encode(image: Image.Image) -> bytes:
        data = encoded(image.convert("CMYK"), "JPEG")
        start = data.index(b"\xff\xee\x00\x0eAdobe")
        if transform is None:
            return data[:start] + data[start + 16 :]
        return data[: start + 15] + bytes([transform]) + data[start + 16 :]

    return encode


def _deep(mode: str, *, interlaced: bool = False) -> Encode:
    """16 bits a channel, the lower eight being noise."""

    def encode(image: Image.Image) -> bytes:
        source = _with_alpha(image, mode) if mode.endswith("A") else image.convert(mode)
        pixels = np.asarray(source)
        pixels = pixels.reshape(*pixels.shape[:2], -1).astype(np.uint16) * 256
        noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint16)
        return png(pixels + noise, interlaced=interlaced)

    return encode


def _interlaced(mode: str) -> Encode:
    def encode(image: Image.Image) -> bytes:
        source = _with_alpha(image, mode) if mode.endswith("A") else image.convert(mode)
        pixels = np.asarray(source)
        return png(pixels.reshape(*pixels.shape[:2], -1), interlaced=True)

    return encode


def _array(dtype: str, scale: float, image_format: str) -> Encode:
    def encode(image: Image.Image) -> bytes:
        return encoded(
            Image.fromarray((np.asarray(image.convert("L"), dtype="float64") * scale).astype(dtype)),
            image_format,
        )

    return encode


_AVIF: dict[str, object] = {"speed": 10, "max_threads": 1}  # the same bytes everywhere

# Formats that only children read, see `decode.step`.
AVIFS: dict[str, Encode] = {
    "avif": _as("RGB", "AVIF", **_AVIF),
    "best 4:4:4 avif": _as("RGB", "AVIF", quality=100, subsampling="4:4:4", **_AVIF),
    "4:2:2 avif of limited range": _as("RGB", "AVIF", subsampling="4:2:2", range="limited", **_AVIF),
    "grey avif": _as("L", "AVIF", **_AVIF),
    "avif with alpha": lambda image: encoded(_with_alpha(image), "AVIF", **_AVIF),
    "grey avif with alpha": lambda image: encoded(_with_alpha(image, "LA"), "AVIF", **_AVIF),
    "palette avif": lambda image: encoded(_palette(image), "AVIF", **_AVIF),
    "animated avif": _animated("AVIF", **_AVIF),
    "avif with exif rotation": _with_exif("AVIF", **_AVIF),
}
HEIFS: dict[str, Encode] = {
    "heic": _as("RGB", "HEIF"),
    "lossless heic": _as("RGB", "HEIF", quality=-1, chroma=444),
    "grey heic": _as("L", "HEIF"),
    "heic with alpha": lambda image: encoded(_with_alpha(image), "HEIF"),
    "grey heic with alpha": lambda image: encoded(_with_alpha(image, "LA"), "HEIF"),
    "10 bit grey heic": _array("uint16", 257, "HEIF"),
    "heic in tiles": _as("RGB", "HEIF", tile_size=64),
    "heic of two images": _animated("HEIF"),
}

FILES: dict[str, Encode] = {
    "jpeg": _as("RGB", "JPEG", quality=90),
    "progressive jpeg": _as("RGB", "JPEG", progressive=True),
    "optimised 4:4:4 jpeg": _as("RGB", "JPEG", optimize=True, subsampling="4:4:4"),
    "jpeg with restarts": _as("RGB", "JPEG", restart_marker_rows=1),
    "jpeg in rgb": _as("RGB", "JPEG", keep_rgb=True),
    "grey jpeg": _as("L", "JPEG"),
    "progressive grey jpeg": _as("L", "JPEG", progressive=True),
    "cmyk jpeg": _as("CMYK", "JPEG"),
    "progressive cmyk jpeg": _as("CMYK", "JPEG", progressive=True),
    "cmyk jpeg without a mark": _adobe(None),
    "ycck jpeg": _adobe(2),
    "jpeg with exif rotation": _with_exif("JPEG"),
    "jpeg with a profile": lambda image: encoded(
        image, "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ),
    "jpeg with garbage behind": lambda image: encoded(image, "JPEG") + b"garbage" * 100,
    "mpo": _animated("MPO"),
    "png": _as("RGB", "PNG"),
    "grey png": _as("L", "PNG"),
    "black and white png": _as("1", "PNG"),
    "palette png": lambda image: encoded(_palette(image), "PNG"),
    "palette png with 4 bits": lambda image: encoded(_palette(image).quantize(16), "PNG", bits=4),
    "palette png, one colour transparent": lambda image: encoded(_palette(image), "PNG", transparency=3),
    "palette png, degrees of transparency": lambda image: encoded(
        _palette(image), "PNG", transparency=bytes(range(0, 256, 8))
    ),
    "png, one colour transparent": _as("RGB", "PNG", transparency=(10, 20, 30)),
    "png with alpha": lambda image: encoded(_with_alpha(image), "PNG"),
    "grey png with alpha": lambda image: encoded(_with_alpha(image, "LA"), "PNG"),
    "interlaced png": _interlaced("RGB"),
    "interlaced grey png": _interlaced("L"),
    "interlaced png with alpha": _interlaced("RGBA"),
    "16 bit png": _deep("RGB"),
    "16 bit png, interlaced, with alpha": _deep("RGBA", interlaced=True),
    "16 bit grey png": _deep("L"),
    "16 bit grey png with alpha": _deep("LA"),
    "animated png": _animated("PNG"),
    "lossy webp": _as("RGB", "WEBP", quality=80),
    "lossless webp": _as("RGB", "WEBP", lossless=True),
    "lossy webp with alpha": lambda image: encoded(_with_alpha(image), "WEBP"),
    "lossless webp with alpha": lambda image: encoded(_with_alpha(image), "WEBP", lossless=True),
    "animated webp": _animated("WEBP"),
    "gif": _as("RGB", "GIF"),
    "grey gif": _as("L", "GIF"),
    "gif, not interlaced": _as("RGB", "GIF", interlace=False),
    "gif, one colour transparent": lambda image: encoded(_palette(image), "GIF", transparency=1),
    "animated gif": _animated("GIF"),
    "bmp": _as("RGB", "BMP"),
    "grey bmp": _as("L", "BMP"),
    "black and white bmp": _as("1", "BMP"),
    "palette bmp": lambda image: encoded(_palette(image), "BMP"),
    "bmp with alpha": lambda image: encoded(_with_alpha(image), "BMP"),
    "tiff": _as("RGB", "TIFF"),
    "lzw tiff": _as("RGB", "TIFF", compression="tiff_lzw"),
    "deflate tiff": _as("RGB", "TIFF", compression="tiff_adobe_deflate"),
    "packbits tiff": _as("L", "TIFF", compression="packbits"),
    "jpeg tiff": _as("RGB", "TIFF", compression="jpeg"),
    "fax tiff": _as("1", "TIFF", compression="group4"),
    "palette tiff": lambda image: encoded(_palette(image), "TIFF"),
    "cmyk tiff": _as("CMYK", "TIFF"),
    "lab tiff": _as("LAB", "TIFF"),
    "tiff with alpha": lambda image: encoded(_with_alpha(image), "TIFF"),
    "16 bit tiff": _array("uint16", 257, "TIFF"),
    "32 bit tiff": _array("int32", 1, "TIFF"),
    "float tiff": _array("float32", 1, "TIFF"),
    "big tiff": _as("RGB", "TIFF", big_tiff=True),
    "tiff of two pages": _animated("TIFF"),
    **AVIFS,
    **HEIFS,
}
