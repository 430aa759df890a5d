"""From bytes to uint8 RGB at the model's size, by one of two routes.

`exact` is open_clip's own transform on Pillow. `fast` decodes JPEGs with libjpeg-turbo, large ones scaled
down on the way, and resizes with torch; whatever it does not cover takes the exact route. No EXIF rotation:
open_clip does none. This module knows nothing of open_clip itself.

Each route has two halves. `Decoder.read` parses the file, which a stranger may have made: it may run in
another process, see `decode_step`. `fit` brings what was read, plain pixels, to the model's size.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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

from clipfleet.contract.jobs import DecodeRoute, ErrorCode
from clipfleet_worker.decode.formats import ALLOWED_FORMATS, allowed_format
from clipfleet_worker.decode.outline import (
    DEFAULT_MAX_DECODE_BYTES,
    check_outline,
    jpeg_coefficient_bytes,
    webp_size,
)
from clipfleet_worker.decode.sizes import JpegSizes, is_covered, jpeg_sizes, pixels_of_passes, resized_pixels
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import InputSize, PixelSpec
from clipfleet_worker.process.device import memory_errors

# Importing these registers them; else Pillow would load all of its plugins at the first image.
_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)

# A strip of 1 x 65000 is few pixels, but gigabytes once its short side has the model's size.
_MAX_RESIZED_PIXELS = 1 << 25

_FAST_COLOURS = {"Gray": "gray", "YCbCr": "rgb", "RGB": "rgb"}  # simplejpeg's word -> what is asked of it

# Pillow decodes run lengths in Python: a second for these.
_MAX_RUN_LENGTH_PIXELS = 1 << 22
_MAX_RUN_LENGTH_BYTES_PER_PIXEL = 2  # they are there to be fewer
_RUN_LENGTH_SPARE_BYTES = 65_536

_TIFF_TILE_WIDTH = 322
_TIFF_TILE_HEIGHT = 323

_NO_MEMORY = "out of memory"  # an OSError of Pillow's says so (ImageFile.ERRORS)

# What Pillow raises for damaged files, each seen in fuzzing or in its source; NotImplementedError: a variant
# of a format that it does not read.
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError, IndexError, KeyError,
    TypeError, AttributeError, ZeroDivisionError, AssertionError, NotImplementedError,
)  # fmt: skip

# What is in memory at a time, told from the header. The factors are those of Pillow 13;
# tests/unit/worker/decode/test_hostile_images.py holds bombs against them. The file itself is not counted.
_SMALL_MODES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_PILLOW_PIXEL_BYTES = 4  # of all other modes
_WITH_ALPHA = ("RGBA", "LA")

# Per pixel: libwebp's two canvases, a copy of one, and the image.
WEBP_PIXEL_BYTES = 16
TIFF_TILE_PIXEL_BYTES = 4

_WEBP_CANVASES_BYTES = 8  # per pixel: they live as long as the image
_TIFF_STRIP_BYTES = 4  # per pixel: one strip may hold the whole image
_RUN_LENGTH_BYTES = 2  # per pixel: Pillow's own decoder, twice
_TIFF_ORIENTATION = 274


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image at the model's size."""

    pixels: np.ndarray  # uint8 (height, width, 3) of the model, C-contiguous
    width: int  # of the original
    height: int


@dataclass(frozen=True, slots=True)
class ScaledJpeg:
    """What the fast route reads: a JPEG at a fraction of its size."""

    pixels: np.ndarray  # uint8 (height * eighths / 8, width * eighths / 8, 1 or 3), both rounded up
    eighths: int
    width: int  # of the original
    height: int


@dataclass(frozen=True, slots=True)
class WholeImage:
    """What the exact route reads: all pixels, as they are in the file."""

    image: Image.Image  # loaded, in the mode that Pillow gives it
    image_format: str


Raster = ScaledJpeg | WholeImage


class Decoder:
    """Called by many threads at once; keeps nothing but its limits.

    Making one changes two things for the whole process: Pillow's own limit of pixels is lifted, since a check
    of ours comes first, and Pillow's warnings about odd files are silenced, since the row says what matters.
    """

    def __init__(self, max_pixels: int, max_decode_bytes: int = DEFAULT_MAX_DECODE_BYTES) -> None:
        self.max_pixels = max_pixels
        self.max_decode_bytes = max_decode_bytes
        Image.MAX_IMAGE_PIXELS = None
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def decode(self, data: bytes, spec: PixelSpec, route: DecodeRoute) -> DecodedImage:
        """The image in a file's bytes; of an animation or a multi-page file the first frame.

        Raises:
            ItemFailure: `empty`, `not_an_image`, `format_refused`, `too_many_pixels`, `broken_image` or
                `out_of_memory`.
        """
        try:
            return fit(self.read(data, spec.frame, route), spec)
        except MemoryError:
            detail = f"not enough memory to decode this {allowed_format(data)}"
            raise ItemFailure(ErrorCode.OUT_OF_MEMORY, detail) from None

    def read(self, data: bytes, frame: InputSize, route: DecodeRoute) -> Raster:
        """The first half: all that touches the file.

        Raises:
            ItemFailure: see `decode`.
            MemoryError: too little memory for this image, or just now.
        """
        image_format = allowed_format(data)
        check_outline(data, image_format)
        if image_format == "WEBP":  # libwebp has memory for all of it before Pillow knows the size
            self._check_canvas(data, frame)
        kept_bytes = jpeg_coefficient_bytes(data) if image_format == "JPEG" else 0
        if route is DecodeRoute.FAST and image_format == "JPEG":
            scaled = self._fast(data, frame, kept_bytes)
            if scaled is not None:
                return scaled
        return self._exact(data, frame, image_format, kept_bytes)

    def _exact(self, data: bytes, frame: InputSize, image_format: str, kept_bytes: int) -> WholeImage:
        with _damage_reported(image_format):
            image = Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS)
            tile_pixels = _tile_pixels(image)
        self.check_size(*image.size, frame)
        if tile_pixels > self.max_pixels:
            detail = f"a tile of this {image_format} has more than {self.max_pixels} pixels"
            raise ItemFailure(ErrorCode.TOO_MANY_PIXELS, detail)
        resize_pixels = pixels_of_passes(*image.size, image.size, frame)
        self._check_memory(pillow_bytes(image, kept_bytes, resize_pixels), *image.size)
        self._check_memory(tile_pixels * TIFF_TILE_PIXEL_BYTES, *image.size)
        if is_run_length_bmp(image):
            _check_run_lengths(len(data), *image.size)
        with _damage_reported(image_format):
            image.load()
        return WholeImage(image, image_format)

    def _fast(self, data: bytes, frame: InputSize, kept_bytes: int) -> ScaledJpeg | None:
        """The image in a JPEG, or None where this route does not cover it."""
        if not is_covered(frame):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None  # damaged or unusual: Pillow judges
        if colours not in _FAST_COLOURS:
            return None
        self.check_size(width, height, frame)
        sizes = jpeg_sizes(width, height, frame)
        columns, rows = sizes.rectangle
        channels = 1 if colours == "Gray" else 3
        needed = jpeg_bytes(kept_bytes, int(columns * rows) * channels, sizes.resize_pixels * channels)
        self._check_memory(needed, width, height)
        pixels = _scaled_jpeg(data, _FAST_COLOURS[colours], sizes.rectangle)
        return None if pixels is None else ScaledJpeg(pixels, sizes.eighths, width, height)

    def check_size(self, width: int, height: int, frame: InputSize) -> None:
        """Refuse what is too large, before or after it is brought to the model's size.

        Raises:
            ItemFailure: `too_many_pixels`, or `broken_image` without any.
        """
        if not width or not height:
            raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"{width} x {height} has no pixels")
        if width * height > self.max_pixels:
            raise ItemFailure(
                ErrorCode.TOO_MANY_PIXELS, f"{width} x {height} is more than {self.max_pixels} pixels"
            )
        if resized_pixels(width, height, frame) > max(_MAX_RESIZED_PIXELS, width * height):
            raise ItemFailure(
                ErrorCode.TOO_MANY_PIXELS,
                f"{width} x {height} is too long a strip: with the model's {frame.width} x {frame.height} "
                f"filled it would have more than {_MAX_RESIZED_PIXELS} pixels",
            )

    def _check_canvas(self, data: bytes, frame: InputSize) -> None:
        size = webp_size(data)
        if size is not None:
            self.check_size(*size, frame)
            self._check_memory(size[0] * size[1] * WEBP_PIXEL_BYTES, *size)

    def _check_memory(self, needed: int, width: int, height: int) -> None:
        if needed > self.max_decode_bytes:
            raise ItemFailure(
                ErrorCode.TOO_MANY_PIXELS,
                f"{width} x {height} would take {needed >> 20} MiB to decode, "
                f"more than {self.max_decode_bytes >> 20} MiB",
            )


def fit(raster: Raster, spec: PixelSpec) -> DecodedImage:
    """The second half: what was read, at the model's size.

    Raises:
        ItemFailure: `broken_image`, a mode that Pillow cannot resize or convert.
        MemoryError: too little memory.
    """
    if isinstance(raster, ScaledJpeg):
        return _fit_scaled(raster, spec)
    image = raster.image
    try:
        pixels = np.array(spec.exact(image), dtype=np.uint8)
    except ValueError as error:
        detail = f"{raster.image_format} of mode {image.mode}: {_described(error)}"
        raise ItemFailure(ErrorCode.BROKEN_IMAGE, detail) from None
    return DecodedImage(pixels, *image.size)


def _fit_scaled(jpeg: ScaledJpeg, spec: PixelSpec) -> DecodedImage:
    sizes = jpeg_sizes(jpeg.width, jpeg.height, spec.frame)
    pixels = _centre_crop(_resize(jpeg.pixels, sizes, spec.interpolation), spec.width, spec.height)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return DecodedImage(np.ascontiguousarray(pixels), jpeg.width, jpeg.height)


@contextmanager
def _damage_reported(image_format: str) -> Iterator[None]:
    """Around calls of Pillow alone: an error of ours must not pass for a damaged file."""
    try:
        yield
    except UnidentifiedImageError:
        raise ItemFailure(
            ErrorCode.BROKEN_IMAGE, f"the header of this {image_format} cannot be read"
        ) from None
    except _DAMAGED as error:
        if _NO_MEMORY in str(error):
            raise MemoryError(str(error)) from None
        raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"{image_format}: {_described(error)}") from None


def _tile_pixels(image: Image.Image) -> int:
    """Pixels in a TIFF's tile: it may be far larger than the image, and is in memory as a whole."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    width, height = (image.tag_v2.get(tag, 0) for tag in (_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT))
    return int(width) * int(height)


def _check_run_lengths(file_bytes: int, width: int, height: int) -> None:
    if width * height > _MAX_RUN_LENGTH_PIXELS:
        detail = f"{width} x {height} is more than {_MAX_RUN_LENGTH_PIXELS} pixels of a BMP in run lengths"
        raise ItemFailure(ErrorCode.TOO_MANY_PIXELS, detail)
    if file_bytes > width * height * _MAX_RUN_LENGTH_BYTES_PER_PIXEL + _RUN_LENGTH_SPARE_BYTES:
        raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"BMP: too many run lengths for {width} x {height}")


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, OSError | SyntaxError | ValueError) else repr(error)


def _scaled_jpeg(data: bytes, colours: str, rectangle: tuple[float, float]) -> np.ndarray | None:
    """A JPEG scaled to a rectangle (width, height), rounded up; None where Pillow should judge."""
    columns, rows = math.ceil(rectangle[0]), math.ceil(rectangle[1])
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data, colours, min_height=rows, min_width=columns, min_factor=1
        )
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (rows, columns) else None


def _resize(pixels: np.ndarray, sizes: JpegSizes, interpolation: str) -> np.ndarray:
    """Resize the rectangle at the top left to the target, antialiased.

    The array of a scaled JPEG is up to one pixel larger than the image in it. Resizing it whole would shift
    the image: factors keep its scale, and what comes out too much is cut off.
    """
    import torch

    rectangle, target = sizes.rectangle, sizes.target
    if (pixels.shape[1], pixels.shape[0]) == rectangle == target:
        return pixels
    # unsqueeze, not an axis of numpy's: by its strides torch sees that channels come last, and need not copy.
    planes = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    # torch multiplies by them and rounds down: not a bit too small, or the last row or column is missing.
    across, down = (math.nextafter(target[n] / rectangle[n], math.inf) for n in (0, 1))
    with memory_errors():
        for factors in ((down, 1.0), (1.0, across)) if sizes.is_vertical_first else ((down, across),):
            planes = torch.nn.functional.interpolate(
                planes, scale_factor=factors, mode=interpolation, align_corners=False, antialias=True
            )
    array: np.ndarray = planes[0, :, : target[1], : target[0]].permute(1, 2, 0).numpy()
    return array


def _centre_crop(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Torchvision's centre crop, with its rounding (half to even)."""
    top, left = round((pixels.shape[0] - height) / 2.0), round((pixels.shape[1] - width) / 2.0)
    return pixels[top : top + height, left : left + width]


def pillow_bytes(image: Image.Image, kept_bytes: int, resize_pixels: int) -> int:
    """What it takes to load and then to resize an image that was opened by Pillow.

    Args:
        image: opened, not loaded.
        kept_bytes: what its decoder keeps beside the pixels until it is loaded.
        resize_pixels: of both passes of the resize.
    """
    pixels = image.width * image.height
    held = _SMALL_MODES.get(image.mode, _PILLOW_PIXEL_BYTES)
    multiplied = _PILLOW_PIXEL_BYTES if image.mode in _WITH_ALPHA else 0  # by it, before a resize
    loading, resizing = held, held + multiplied
    if isinstance(image, WebPImagePlugin.WebPImageFile):
        loading, resizing = WEBP_PIXEL_BYTES, resizing + _WEBP_CANVASES_BYTES
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        is_turned = image.tag_v2.get(_TIFF_ORIENTATION, 1) != 1
        loading += _TIFF_STRIP_BYTES + (held if is_turned else 0)
    elif is_run_length_bmp(image):
        loading += _RUN_LENGTH_BYTES
    return max(pixels * loading + kept_bytes, pixels * resizing + resize_pixels * held)


def jpeg_bytes(kept_bytes: int, scaled_bytes: int, resize_bytes: int) -> int:
    """Likewise of libjpeg-turbo: coefficients and pixels, then pixels and both passes of the resize."""
    return scaled_bytes + max(kept_bytes, resize_bytes)


def is_run_length_bmp(image: Image.Image) -> bool:
    """Whether Pillow decodes this in Python, pixel by pixel."""
    return isinstance(image, BmpImagePlugin.BmpImageFile) and any(tile[0] == "bmp_rle" for tile in image.tile)
