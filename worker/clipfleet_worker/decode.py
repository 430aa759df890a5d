"""From bytes to uint8 RGB at the model's size, by one of two routes.

`exact` is open_clip's own transform on Pillow. `fast` decodes JPEGs with libjpeg-turbo, large ones scaled down on the
way, and resizes with torch; whatever it does not cover takes the exact route. No EXIF rotation: open_clip does none.
This module knows nothing of open_clip itself.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from clipfleet.contract import DecodeRoute, ErrorCode
from clipfleet_worker.failures import ItemFailure

# Importing these registers them; else Pillow would load all of its plugins at the first picture.
_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# A JPEG is decoded at n/8 of its size where that leaves this many times the model's size (measured on sharp text,
# shapes and textures, the worst content: README of tests/integration/test_fidelity.py's figures). Small models see
# every grey level: below 5 and 16 the bars of that test break. Other n than 1, 2, 4 have no SIMD code in
# libjpeg-turbo and are slower than decoding at full size.
_SCALED_MARGIN = 5.0
_SCALED_MARGIN_SMALL = 16.0
_SMALL_TARGET = 128
_SCALED_EIGHTHS = (1, 2, 4)
_FULL_SIZE = 8

# A strip of 1 x 65000 is few pixels, but gigabytes once its short side has the model's size.
_MAX_RESIZED_PIXELS = 1 << 25

_FAST_INTERPOLATIONS = ("bicubic", "bilinear")
_FAST_COLOURS = {"Gray": "gray", "YCbCr": "rgb", "RGB": "rgb"}  # simplejpeg's word -> what is asked of it

# What Pillow raises for damaged files, each seen in fuzzing or in its source; NotImplementedError: a variant of a
# format that it does not read.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    ZeroDivisionError,
    AssertionError,
    NotImplementedError,
)

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")
# (offset, bytes, name); a file is what its first matching line says.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    *((0, start, "TIFF") for start in _TIFF_STARTS),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\0\0\2\0", "CUR"),
    (0, b"icns", "ICNS"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"%!PS-Adobe", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"gimp xcf", "XCF"),
    (0, b"/* XPM */", "XPM"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
)
_PATTERNS = (
    (re.compile(rb"P[1-7]\s+(#[^\n]*\n\s*)*(\d|WIDTH)"), "PPM"),
    # "BM" alone could open a text; the size of the second header follows at offset 14.
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "BMP"),
)
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<")
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)\b", re.IGNORECASE)
_SNIFFED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """What a model wants to see."""

    width: int  # of the model's input
    height: int
    interpolation: str  # bicubic, bilinear
    resize_mode: str  # shortest (then centre crop), longest (then pad), squash
    mean: tuple[float, float, float]  # of values in 0..1, by channel
    std: tuple[float, float, float]
    exact: Callable[[Image.Image], Image.Image]  # open_clip's own transform up to the tensor; gives RGB

    def facts(self) -> list[object]:
        """What a fingerprint covers."""
        return [
            self.width,
            self.height,
            self.interpolation,
            self.resize_mode,
            list(self.mean),
            list(self.std),
        ]


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture at the model's size."""

    pixels: np.ndarray  # uint8 (height, width, 3) of the model, C-contiguous
    width: int  # of the original
    height: int


class Decoder:
    """Called by many threads at once; keeps nothing but its limit.

    Making one changes two things for the whole process: Pillow's own limit of pixels is lifted, since a check of
    ours comes first, and Pillow's warnings about odd files are silenced, since the row says what matters.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        Image.MAX_IMAGE_PIXELS = None
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def decode(self, data: bytes, spec: PixelSpec, route: DecodeRoute) -> DecodedImage:
        """The picture in a file's bytes; of an animation or a multi-page file the first frame.

        Raises:
            ItemFailure: `empty`, `not_an_image`, `format_refused`, `too_many_pixels`, `broken_image` or
                `out_of_memory`.
        """
        image_format = _allowed_format(data)
        try:
            if route is DecodeRoute.FAST and image_format == "JPEG":
                image = self._fast(data, spec)
                if image is not None:
                    return image
            return self._exact(data, spec, image_format)
        except MemoryError:
            raise ItemFailure(
                ErrorCode.OUT_OF_MEMORY, f"not enough memory to decode this {image_format}"
            ) from None

    def _exact(self, data: bytes, spec: PixelSpec, image_format: str) -> DecodedImage:
        try:
            image = Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS)
            width, height = image.size
            self._check_size(width, height, spec)
            image.load()
        except UnidentifiedImageError:
            raise ItemFailure(
                ErrorCode.BROKEN_IMAGE, f"the header of this {image_format} cannot be read"
            ) from None
        except _DAMAGED as error:
            raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"{image_format}: {_described(error)}") from None
        try:
            pixels = np.array(spec.exact(image), dtype=np.uint8)
        except ValueError as error:  # a mode or a size that Pillow cannot convert or resize
            detail = f"{image_format} of mode {image.mode}, {width} x {height}: {_described(error)}"
            raise ItemFailure(ErrorCode.BROKEN_IMAGE, detail) from None
        return DecodedImage(pixels, width, height)

    def _fast(self, data: bytes, spec: PixelSpec) -> DecodedImage | None:
        """The picture in a JPEG, or None where this route does not cover it."""
        if not _is_covered(spec):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            wanted = _FAST_COLOURS.get(colours)
            if wanted is None:
                return None
            self._check_size(width, height, spec)
            target = _resized_size(width, height, spec)
            eighths = _eighths(width, height, target, spec)
            scaled = (math.ceil(height * eighths / 8), math.ceil(width * eighths / 8))
            pixels = simplejpeg.decode_jpeg(
                data, wanted, min_height=scaled[0], min_width=scaled[1], min_factor=1
            )
        except ValueError:
            return None  # damaged or unusual: Pillow judges
        if pixels.shape[:2] != scaled:
            return None
        pixels = _resize(pixels, (width * eighths / 8, height * eighths / 8), target, spec.interpolation)
        pixels = _centre_crop(pixels, spec.width, spec.height)
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        return DecodedImage(np.ascontiguousarray(pixels), width, height)

    def _check_size(self, width: int, height: int, spec: PixelSpec) -> None:
        if width * height > self._max_pixels:
            raise ItemFailure(
                ErrorCode.TOO_MANY_PIXELS, f"{width} x {height} is more than {self._max_pixels} pixels"
            )
        if spec.resize_mode == "shortest":
            growth = max(spec.width / width, spec.height / height)
            if width * growth * height * growth > _MAX_RESIZED_PIXELS:
                raise ItemFailure(
                    ErrorCode.TOO_MANY_PIXELS,
                    f"{width} x {height} is too long a strip: its short side at the model's {spec.height} pixels "
                    f"would make more than {_MAX_RESIZED_PIXELS} pixels",
                )


def _allowed_format(data: bytes) -> str:
    """Name of the format, told from the first bytes; only what passes here meets a parser."""
    if not data:
        raise ItemFailure(ErrorCode.EMPTY, "no bytes")
    name = _format_of(data[:_SNIFFED_BYTES])
    if name is None:
        what = "an HTML page" if _HTML.match(data) else "no image format starts with these bytes"
        raise ItemFailure(ErrorCode.NOT_AN_IMAGE, what)
    if name not in ALLOWED_FORMATS:
        raise ItemFailure(
            ErrorCode.FORMAT_REFUSED,
            f"{name} is not among the formats read here: {', '.join(ALLOWED_FORMATS)}",
        )
    return name


def _format_of(head: bytes) -> str | None:
    for offset, magic, name in _SIGNATURES:
        if head.startswith(magic, offset):
            return name
    for pattern, name in _PATTERNS:
        if pattern.match(head):
            return name
    is_svg = _MARKUP.match(head) and b"<svg" in head and not _HTML.match(head)
    return "SVG" if is_svg else None


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, OSError | SyntaxError | ValueError) else repr(error)


def _is_covered(spec: PixelSpec) -> bool:
    """Whether the fast route knows how open_clip resizes for this model."""
    if spec.interpolation not in _FAST_INTERPOLATIONS:
        return False
    # open_clip has a resize of its own for `shortest` with other than square targets.
    return spec.resize_mode == "squash" or (spec.resize_mode == "shortest" and spec.width == spec.height)


def _resized_size(width: int, height: int, spec: PixelSpec) -> tuple[int, int]:
    """(width, height) after the resize and before the crop, by torchvision's own formula."""
    if spec.resize_mode == "squash":
        return spec.width, spec.height
    longer = int(spec.width * max(width, height) / min(width, height))
    return (spec.width, longer) if width <= height else (longer, spec.width)


def _eighths(width: int, height: int, target: tuple[int, int], spec: PixelSpec) -> int:
    """N of the scale n/8 at which a JPEG is decoded: the smallest that keeps enough for the resize."""
    margin = _SCALED_MARGIN_SMALL if min(spec.width, spec.height) < _SMALL_TARGET else _SCALED_MARGIN
    times = min(width / target[0], height / target[1])
    return next((n for n in _SCALED_EIGHTHS if times * n / 8 >= margin), _FULL_SIZE)


def _resize(
    pixels: np.ndarray, rectangle: tuple[float, float], target: tuple[int, int], interpolation: str
) -> np.ndarray:
    """Resize the rectangle (width, height) at the top left to the target (width, height), antialiased.

    An array of a scaled JPEG is up to one pixel larger than the picture in it. Resizing it whole would shift the
    picture; given as factors, the scale is that of the picture, and what comes out too much is cut off.
    """
    import torch

    height, width = pixels.shape[:2]
    if (width, height) == rectangle == target:
        return pixels
    planes = torch.from_numpy(pixels[None]).permute(
        0, 3, 1, 2
    )  # with this batch stride torch works in place of copies
    is_whole = (width, height) == rectangle
    try:
        resized = torch.nn.functional.interpolate(
            planes,
            size=(target[1], target[0]) if is_whole else None,
            scale_factor=None if is_whole else (target[1] / rectangle[1], target[0] / rectangle[0]),
            mode=interpolation,
            align_corners=False,
            antialias=True,
        )
    except RuntimeError as error:
        if "allocate memory" in str(error):
            raise MemoryError from error
        raise
    array: np.ndarray = resized[0, :, : target[1], : target[0]].permute(1, 2, 0).numpy()
    return array


def _centre_crop(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Torchvision's centre crop, with its rounding (half to even)."""
    top, left = round((pixels.shape[0] - height) / 2.0), round((pixels.shape[1] - width) / 2.0)
    return pixels[top : top + height, left : left + width]
